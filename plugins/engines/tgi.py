"""Hugging Face's Text Generation Inference, by its own API: exact tokens, seeds, probabilities."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from .. import (
    AttemptHandle,
    AttemptSink,
    ConfigError,
    EngineFactory,
    EngineHealth,
    EngineProperties,
    EngineState,
    GenerateJob,
    InvalidParamsError,
    UnavailableError,
    hookimpl,
)
from ._api_key import authorization
from ._http import HttpClient, HttpError
from ._in_turn import InTurn
from ._known_options import require_known
from ._metric_lines import prometheus
from ._plain_jobs import plain_messages, require_able
from ._shared_slots import MAX_IN_USE, SharedSlots, patience
from ._slots import EngineGoneError
from ._stream_attempt import RefusedError, StreamAttempt
from ._tgi_frames import TokenStream, failure_of_body
from ._tgi_request import body_of

T = TypeVar("T")
NAME: Final = "tgi"
QUICK_TIMEOUT_S: Final = 5.0
SLOW_TIMEOUT_S: Final = 60.0
_FEATURES: Final = ("json_schema", "logprobs", "seed", "continue", "tokenize")
#: keys of ``provisioning.options``, and what they do
OPTIONS: Final[dict[str, str]] = {
    "api_key_env": "name of the environment variable that holds the server's key, sent as a bearer token",
    "release_ms": "how long the slot of a task that was broken off is kept at most while the server is not seen to be done; 3000",
}
_PROBE: Final = [{"role": "user", "content": "one"}]


class Info(msgspec.Struct):
    """What `/info` says, as far as it is of use."""

    model_id: str
    version: str
    model_sha: str | None = None
    sha: str | None = None
    max_concurrent_requests: int = 0
    max_stop_sequences: int = 4
    max_total_tokens: int = 0


class _Token(msgspec.Struct, gc=False):
    id: int
    text: str = ""
    start: int = 0
    stop: int = 0


class _ChatTokens(msgspec.Struct):
    templated_text: str


_decode_info = msgspec.json.Decoder(Info).decode
_decode_tokens = msgspec.json.Decoder(list[_Token]).decode
_decode_chat = msgspec.json.Decoder(_ChatTokens).decode
_encode = msgspec.json.Encoder().encode


class Tgi:
    """Client of one TGI server.

    Args:
        config: ``url``, the keys of :data:`OPTIONS`, and of the pool ``slots`` (else what the server takes at once),
            ``ctx`` (else its ``max_total_tokens``), ``device``.

    Raises:
        ConfigError: the URL is none, an option is unknown or of no use, or the environment variable is not set.
    """

    name = NAME

    def __init__(self, config: Mapping[str, Any]) -> None:
        require_known(config, OPTIONS, NAME)
        try:
            self._http = HttpClient(str(config.get("url", "")), headers=authorization(config))
        except ValueError as error:
            raise ConfigError(str(error), field="url", got=config.get("url")) from error
        self._slots = int(config.get("slots") or 0)
        self._ctx = int(config.get("ctx") or 0)
        self._device = str(config.get("device", "") or "cpu")
        self._released = SharedSlots(self._in_use, patience_s=patience(config))
        self._info: Info | None = None
        self._renders = False
        #: what a rendered chat begins with although the tokenizer adds it
        self._doubled = ""
        #: attempts that may rightly be running
        self.live: set[Any] = set()
        #: requests that the server got from here
        self.sent = 0

    # --- what it is

    async def health(self) -> EngineHealth:
        try:
            answer = await self._http.request("GET", "/health", timeout_s=QUICK_TIMEOUT_S)
        except HttpError as error:
            return EngineHealth(state=EngineState.UNREACHABLE, detail=error.message)
        if answer.status == 200:
            return EngineHealth(state=EngineState.READY)
        failure = failure_of_body(answer.status, answer.body)
        # TGI itself opens its port when it has loaded; its own 503 says that its model's process fails.
        own = b'"healthcheck"' in answer.body
        state = EngineState.LOADING if answer.status == 503 and not own else EngineState.FAILED
        return EngineHealth(state=state, detail=failure.message)

    async def properties(self) -> EngineProperties:
        """What the server says of itself.

        Raises:
            UnavailableError: it does not answer, or not as TGI does.
        """
        try:
            info = await self._learn()
        except RefusedError as error:
            raise UnavailableError(error.failure.message, engine=NAME) from error
        identity = hashlib.sha256(f"{info.model_id}\n{info.model_sha or ''}".encode()).hexdigest()
        return EngineProperties(
            engine_version=f"tgi {info.version}{f' ({info.sha[:12]})' if info.sha else ''}",
            model_name=info.model_id,
            model_digest=f"meta:{identity}",
            tokenizer_digest=f"meta:{identity}",
            slots=self._slots or max(info.max_concurrent_requests, 1),
            ctx=self._ctx or info.max_total_tokens,
            flags=f"max_total_tokens={info.max_total_tokens} max_concurrent_requests={info.max_concurrent_requests}",
            workloads=("completion", "chat") if self._renders else ("completion",),
            features=(*_FEATURES, "render") if self._renders else _FEATURES,
            device=self._device,
        )

    # --- work

    def generate(self, job: GenerateJob, sink: AttemptSink) -> AttemptHandle:
        if job.n > 1:
            return InTurn(job, sink, self._one)
        return self._one(job, sink)

    def _one(self, job: GenerateJob, sink: AttemptSink) -> StreamAttempt:
        frames = TokenStream(stop=job.stop, logprobs=job.logprobs, top=job.top_logprobs)
        attempt = StreamAttempt(self, sink, frames)
        if self._info is None or job.chat is not None:
            attempt.prepare(partial(self._send_unprepared, attempt, job))
            return attempt
        try:
            self._send(attempt, job, job.prompt, self._info)
        except Exception as error:  # whatever it is, the attempt has an end
            attempt.prepare(partial(_refuse, error))
        return attempt

    async def _send_unprepared(self, attempt: StreamAttempt, job: GenerateJob) -> None:
        info = self._info or await self._learn()
        prompt = job.prompt
        if job.chat is not None:
            self._require_able(job)
            prompt = await self._render(job.chat.messages)
        self._send(attempt, job, prompt, info)

    def _send(self, attempt: StreamAttempt, job: GenerateJob, prompt: str, info: Info) -> None:
        self._require_able(job)
        body = body_of(job, prompt + job.prefix, max_stop_sequences=info.max_stop_sequences)
        attempt.send(self._http, "/generate_stream", body)

    def _require_able(self, job: GenerateJob) -> None:
        able = {"completion", *_FEATURES, *(("chat", "render") if self._renders else ())}
        require_able(job, able, NAME)

    # --- questions

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text.

        Raises:
            InvalidParamsError: without special tokens, or with their text taken as plain text: TGI cannot.
            UnavailableError: the server does not answer.
        """
        if not add_special or not parse_special:
            msg = "TGI always adds special tokens, and always takes their text for them"
            raise InvalidParamsError(msg, field="add_special" if not add_special else "parse_special", engine=NAME)
        try:
            return [token.id for token in await self._tokens(text)]
        except RefusedError as error:
            raise UnavailableError(error.failure.message, engine=NAME) from error

    async def detokenize(self, ids: Sequence[int]) -> str:
        msg = "TGI does not turn token ids into text"
        raise InvalidParamsError(msg, field="tokens", engine=NAME)

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the model's own template makes of a chat.

        Raises:
            InvalidParamsError: the template refuses these messages, or tools or variables of it are named.
            UnavailableError: the server does not answer.
        """
        if tools or template_kwargs:
            what = "tools" if tools else "chat_template_kwargs"
            msg = f"{what}: this client of TGI renders plain chats only"
            raise InvalidParamsError(msg, field=what, engine=NAME)
        try:
            if self._info is None:
                await self._learn()
            return await self._render(messages)
        except RefusedError as error:
            failure = error.failure
            if failure.retriable:
                raise UnavailableError(failure.message, engine=NAME) from error
            raise InvalidParamsError(f"messages: {failure.message}", field="messages", engine=NAME) from error

    # --- how it does

    async def forget(self, slot: int) -> bool:
        return False

    async def slots_in_use(self) -> int | None:
        try:
            return await self._in_use()
        except EngineGoneError:
            return None

    async def metrics(self) -> Mapping[str, float]:
        try:
            answer = await self._http.request("GET", "/metrics", timeout_s=QUICK_TIMEOUT_S)
        except HttpError:
            return {}
        return prometheus(answer.body) if answer.status == 200 else {}

    async def close(self) -> None:
        await self._released.close()
        await self._http.close()

    async def slot_free(self, attempt: object) -> str:
        """Wait until the server is seen done with a broken-off attempt."""
        answer = await self._released.free(lambda: len(self.live - {attempt}))
        if answer == "engine-gone":
            self._info = None
        return "slot-free" if answer == "not-seen" else answer

    async def _in_use(self) -> int | None:
        """Requests that it decodes or keeps waiting; ``None`` = it does not say."""
        try:
            answer = await self._http.request("GET", "/metrics", timeout_s=QUICK_TIMEOUT_S)
        except HttpError as error:
            if error.kind == "unreachable":
                raise EngineGoneError(error.message) from error
            return None
        values = prometheus(answer.body) if answer.status == 200 else {}
        count = values.get("tgi_batch_current_size", math.nan) + values.get("tgi_queue_size", 0.0)
        return int(count) if 0 <= count < MAX_IN_USE else None

    # --- inside

    async def _learn(self) -> Info:
        """What the server is, and whether it renders chats. :raises RefusedError: it does not say."""
        info = await self._ask("GET", "/info", b"", _decode_info)
        try:
            text = await self._templated(_PROBE)
            self._doubled = _doubled(text, await self._tokens(text))
            self._renders = True
        except RefusedError as error:
            if error.failure.retriable:
                raise
            self._renders = False  # the model has no template, or this version of TGI no such route
        self._info = info
        return info

    async def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if not self._renders:
            raise RefusedError("invalid", "the model has no chat template")
        return (await self._templated(plain_messages(messages))).removeprefix(self._doubled)

    async def _templated(self, messages: Sequence[Mapping[str, Any]]) -> str:
        body = _encode({"model": NAME, "messages": messages})
        return (await self._ask("POST", "/chat_tokenize", body, _decode_chat)).templated_text

    async def _tokens(self, text: str) -> list[_Token]:
        return await self._ask("POST", "/tokenize", _encode({"inputs": text}), _decode_tokens)

    async def _ask(self, method: str, path: str, body: bytes, decode: Callable[[bytes], T]) -> T:
        try:
            answer = await self._http.request(method, path, body, timeout_s=SLOW_TIMEOUT_S if body else QUICK_TIMEOUT_S)
        except HttpError as error:
            kind = "unreachable" if error.kind == "timeout" else error.kind
            raise RefusedError(kind, f"{path}: {error.message}", retriable=True) from error
        if answer.status != 200:
            failure = failure_of_body(answer.status, answer.body)
            raise RefusedError(failure.kind, f"{path}: {failure.message}", retriable=failure.retriable)
        try:
            return decode(answer.body)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RefusedError("garbage", f"{path}: this is no TGI server: {error}", retriable=True) from error


def _doubled(text: str, tokens: Sequence[_Token]) -> str:
    """What a rendered chat begins with although the tokenizer adds it: both would be put before the prompt."""
    if len(tokens) > 1 and tokens[0].id == tokens[1].id and tokens[0].stop == tokens[0].start and tokens[1].start == 0:
        return text[: tokens[1].stop]
    return ""


async def _refuse(error: Exception) -> None:
    raise error


@hookimpl
def llama_orch_engine() -> tuple[str, EngineFactory]:
    """The client of TGI."""
    return NAME, Tgi
