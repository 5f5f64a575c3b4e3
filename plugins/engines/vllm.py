"""vLLM, by its server's own API: OpenAI's, and what vLLM has beside it. The server is run by somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from .. import (
    EngineFactory,
    EngineHealth,
    EngineProperties,
    EngineState,
    GenerateJob,
    InvalidParamsError,
    UnavailableError,
    hookimpl,
)
from . import _hf_identity
from ._http import HttpError
from ._openai_attempt import Attempt
from ._openai_client import QUICK_TIMEOUT_S, SLOW_TIMEOUT_S, OpenAIClient, Server
from ._openai_config import OPTIONS
from ._openai_dialects import VLLM as DIALECT
from ._openai_wire import error_of_body
from ._shared_slots import MAX_IN_USE
from ._slots import EngineGoneError, SlotWatch

T = TypeVar("T")
NAME: Final = "vllm"
#: as long as nobody else uses the server, a slot is seen free within milliseconds
RELEASE_MS: Final = 2_000
#: keys of ``provisioning.options``, and what they do
VLLM_OPTIONS: Final[dict[str, str]] = {
    **{key: OPTIONS[key] for key in ("served_model", "api_key_env", "headers", "headers_env", "ca_file")},
    "workloads": OPTIONS["workloads"],
    "features": "what it can besides; without it what it is seen to do",
    "batch_invariant": "the server runs with `VLLM_BATCH_INVARIANT=1`: it can promise strict determinism at any load",
    "release_ms": "time after which a slot is taken as free although others keep the server busy",
    "extra_body": OPTIONS["extra_body"],
}
#: what vLLM's messages mean for whoever runs it
_ADVICE: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (
        re.compile(r"EngineCore encountered an issue|EngineDeadError"),
        (
            "vLLM's engine process failed and the server ends itself; the cause is in its log, often memory: lower"
            " --gpu-memory-utilization, --max-model-len or --max-num-seqs"
        ),
    ),
    (
        re.compile(r"requires --enable-auto-tool-choice|requires --tool-call-parser"),
        "start vLLM with --enable-auto-tool-choice and the --tool-call-parser of the model",
    ),
    (re.compile(r"[Cc]hat template"), "start vLLM with --chat-template, the model's tokenizer has none"),
)
_PROBE_CHAT: Final = [{"role": "user", "content": "Räuber 🙂"}, {"role": "assistant", "content": "x"}]
_PROBE_TOOL: Final = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object"}}}
#: of each data-parallel engine, requests that it decodes and those that wait
_IN_USE: Final = re.compile(rb"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? ([0-9.eE+]+)$", re.MULTILINE)
#: names that grow with the number of buckets, or tell when a counter was made
_NOISE: Final = re.compile(r"_(?:bucket|created)(?:\{|$)")
_SAME_FOR_ALL: Final = re.compile(r'(?:engine|model_name)="[^"]*",?')


class _Tokens(msgspec.Struct, gc=False):
    tokens: list[int]


class _Text(msgspec.Struct, gc=False):
    prompt: str


class _Version(msgspec.Struct, gc=False):
    version: str


_decode_tokens = msgspec.json.Decoder(_Tokens).decode
_decode_text = msgspec.json.Decoder(_Text).decode
_decode_version = msgspec.json.Decoder(_Version).decode
_encode = msgspec.json.Encoder().encode


class Vllm(OpenAIClient):
    """Client of one vLLM server.

    Args:
        config: see :data:`VLLM_OPTIONS`.

    Raises:
        ConfigError: the URL is none, an option is wrong, or an environment variable is not set.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config, name=NAME, options=VLLM_OPTIONS, dialect=DIALECT, below="/v1")
        told = config.get("release_ms")
        self._release_s = (RELEASE_MS if told is None else int(told)) / 1000
        self._batch_invariant = bool(config.get("batch_invariant"))
        self._watch = SlotWatch(self._look)
        #: the largest id that is known to be a token
        self._known_id = -1
        #: prompts of ids together with the text that they are continued from
        self._continued: dict[tuple[str, int], list[int]] = {}

    # --- what it is

    async def health(self) -> EngineHealth:
        try:
            answer = await self.http.request("GET", "/health", timeout_s=QUICK_TIMEOUT_S)
        except HttpError as error:
            return EngineHealth(state=EngineState.UNREACHABLE, detail=error.message)
        if answer.status == 200:
            return EngineHealth(state=EngineState.READY)
        if answer.status == 503 and not answer.body:
            detail = self.explained("EngineDeadError")
            return EngineHealth(state=EngineState.FAILED, detail=detail)
        detail = self.explained(error_of_body(answer.status, answer.body).message)
        state = EngineState.LOADING if answer.status == 503 else EngineState.FAILED
        return EngineHealth(state=state, detail=detail)

    async def properties(self) -> EngineProperties:
        """What the server says of itself, and is seen to do.

        Raises:
            UnavailableError: it does not answer, not as vLLM does, or has no such model.
        """
        answer = await self.exchange("GET", "/version", b"", QUICK_TIMEOUT_S)
        if answer.status == 404:
            msg = "the server tells no /version as vLLM does"
            raise UnavailableError(msg, remedy="The engine openai speaks to servers of other kinds.", engine=NAME)
        version = self._read(_decode_version, answer.body, "/version").version
        server = await self.learn()
        if self._features is None:
            self._features = await self._found(server)
        workloads, features = await self.abilities()
        root, host = server.item.root or "", self.http.host
        return EngineProperties(
            engine_version=f"vllm {version}",
            model_name=self.model,
            model_digest=await asyncio.to_thread(_hf_identity.model_digest, root, host) or self.model_digest(server),
            tokenizer_digest=await asyncio.to_thread(_hf_identity.tokenizer_digest, root, host)
            or self.tokenizer_digest(server),
            slots=self.slots,
            ctx=server.ctx,
            flags=f"max_model_len={server.ctx} batch_invariant={int(self._batch_invariant)}",
            workloads=workloads,
            features=features,
            # Alone in its batch, and cold by its own salt, a request is not touched by any other.
            strict_capable=self._batch_invariant or self.slots == 1,
            device=self.device,
        )

    async def _found(self, server: Server) -> tuple[str, ...]:
        """Its features, but for those that it does not show when it is asked to."""
        missing = set()
        if not await self._renders():
            missing.add("render")
        body = {"model": self.model, "messages": _PROBE_CHAT[:1], "max_tokens": 1, "tools": [_PROBE_TOOL]}
        answer = await self.exchange("POST", f"{self.api}/chat/completions", _encode(body), SLOW_TIMEOUT_S)
        if answer.status != 200:
            missing.add("tools")
        return tuple(feature for feature in server.dialect.features if feature not in missing)

    async def _renders(self) -> bool:
        """Whether the text of a rendered chat makes the tokens again that the chat has."""
        try:
            ids = await self._chat_ids(_PROBE_CHAT, (), {})
            text = await self._text(ids)
            return ids == await self.tokenize(text, add_special=False, parse_special=True)
        except (InvalidParamsError, UnavailableError):
            return False  # no template, or one that wants another kind of chat

    # --- work

    def prompt_of(self, job: GenerateJob) -> str | Sequence[int] | None:
        if not job.prompt_ids or not job.prefix:
            return super().prompt_of(job)
        return self._continued.pop((job.task_id, job.attempt), None)

    async def look_up(self, job: GenerateJob) -> None:
        await super().look_up(job)
        if job.prompt_ids and job.prefix:
            said = await self.tokenize(job.prefix, add_special=False, parse_special=False)
            self._continued[job.task_id, job.attempt] = [*job.prompt_ids, *said]

    async def slot_free(self, attempt: Attempt) -> str:
        """Wait until as few requests are at work there as there are others of ours.

        Whoever else uses the server may keep it from being seen; vLLM aborts what nobody listens to within
        milliseconds, so that after a while the slot is free all the same.
        """
        try:
            async with asyncio.timeout(self._release_s):
                # Before its first frame a job may still be on its way to the server's queue.
                return await self._watch.free(
                    -1,
                    others=lambda: sum(other.width for other in self.live - {attempt}),
                    looks=1 if attempt.took_off else 2,
                )
        except TimeoutError:
            return "slot-free"

    # --- questions

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text. Special tokens in it are always taken as such: the tokenizers know no other way.

        Raises:
            UnavailableError: the server does not answer.
        """
        body = {"model": self.model, "prompt": text, "add_special_tokens": add_special}
        answer = await self.ask("POST", "/tokenize", _encode(body), SLOW_TIMEOUT_S)
        return self._read(_decode_tokens, answer.body, "/tokenize").tokens

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the server's template makes of a chat.

        Raises:
            InvalidParamsError: the template refuses these messages.
            UnavailableError: the server does not answer.
        """
        return await self._text(await self._chat_ids(messages, tools, template_kwargs or {}))

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids.

        Raises:
            InvalidParamsError: one is no token of the model.
            UnavailableError: the server does not answer.
        """
        largest = max(ids, default=-1)
        # vLLM passes over ids that it does not know: the largest one is looked at alone.
        if largest > self._known_id:
            if not await self._text([largest]):
                msg = f"{largest} is no token of this model"
                raise InvalidParamsError(msg, field="tokens", got=largest)
            self._known_id = largest
        return await self._text(ids) if ids else ""

    async def forget(self, slot: int) -> bool:
        return False  # its cache is one for all, and does not know slots

    async def slots_in_use(self) -> int | None:
        try:
            return await self._in_use()
        except HttpError:
            return None

    async def metrics(self) -> Mapping[str, float]:
        """What vLLM measures; of several engines behind one server the sum, shares the mean."""
        try:
            answer = await self.http.request("GET", "/metrics", timeout_s=QUICK_TIMEOUT_S)
        except HttpError:
            return {}
        return _measured(answer.body) if answer.status == 200 else {}

    async def close(self) -> None:
        await self._watch.close()
        await self.http.close()

    def explained(self, text: str) -> str:
        text = super().explained(text)
        advice = next((advice for pattern, advice in _ADVICE if pattern.search(text)), "")
        return f"{text} ({advice})" if advice else text

    # --- inside

    async def _look(self) -> Mapping[int, bool] | None:
        try:
            in_use = await self._in_use()
        except HttpError as error:
            if error.kind == "unreachable":
                raise EngineGoneError(error.message) from error
            return None
        return None if in_use is None else dict.fromkeys(range(in_use), True)

    async def _in_use(self) -> int | None:
        answer = await self.http.request("GET", "/metrics", timeout_s=QUICK_TIMEOUT_S)
        found = _IN_USE.findall(answer.body) if answer.status == 200 else []
        count = sum(float(value) for value in found) if found else math.nan
        return int(count) if 0 <= count < MAX_IN_USE else None

    async def _chat_ids(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any]
    ) -> list[int]:
        body: dict[str, Any] = {"model": self.model, "messages": [dict(message) for message in messages]}
        if tools:
            body["tools"] = [dict(tool) for tool in tools]
        if kwargs:
            body["chat_template_kwargs"] = dict(kwargs)
        answer = await self.ask("POST", "/tokenize", _encode(body), SLOW_TIMEOUT_S)
        return self._read(_decode_tokens, answer.body, "/tokenize").tokens

    async def _text(self, ids: Sequence[int]) -> str:
        body = _encode({"model": self.model, "tokens": list(ids)})
        answer = await self.ask("POST", "/detokenize", body, SLOW_TIMEOUT_S)
        return self._read(_decode_text, answer.body, "/detokenize").prompt

    @staticmethod
    def _read(decode: Callable[[bytes], T], body: bytes, path: str) -> T:
        try:
            return decode(body)
        except (msgspec.MsgspecError, ValueError) as error:
            msg = f"{path}: this is no vLLM server: {error}"
            raise UnavailableError(msg, engine=NAME) from error


def _measured(body: bytes) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for line in body.decode("utf-8", "replace").splitlines():
        name, _, value = line.rpartition(" ")
        if not name.startswith("vllm:") or _NOISE.search(name):
            continue
        name = _SAME_FOR_ALL.sub("", name).replace(",}", "}").removesuffix("{}")
        with contextlib.suppress(ValueError):
            number = float(value)
            values.setdefault(name, []).append(number)
    return {name: sum(found) / (len(found) if "_perc" in name else 1) for name, found in values.items()}


@hookimpl
def llama_orch_engine() -> tuple[str, EngineFactory]:
    """The client of vLLM."""
    return NAME, Vllm
