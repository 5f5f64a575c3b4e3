"""llama.cpp, by its server's native API: external, or the server of the `xllamacpp` package as a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from .. import (
    AttemptFailure,
    AttemptSink,
    ConfigError,
    EngineFactory,
    EngineHealth,
    EngineProperties,
    EngineState,
    GenerateJob,
    InvalidParamsError,
    LauncherFactory,
    ProvisionedEngine,
    UnavailableError,
    hookimpl,
)
from ._chat_template import PROBES, ChatTemplate, TemplateError, agreeing, plain
from ._http import HttpClient, HttpError, HttpResponse, StreamRequest
from ._json_grammar import SchemaError, grammar_of
from ._llama_frames import RESPONSE_FIELDS, CompletionStream, failure_of_body
from ._llama_identity import engine_version, model_digest, tokenizer_digest
from ._llama_launch import package_version, plan
from ._slots import EngineGoneError, SlotWatch

T = TypeVar("T")
NAME: Final = "llamacpp"
QUICK_TIMEOUT_S: Final = 5.0
SLOW_TIMEOUT_S: Final = 60.0
#: questions beside streams, health and slots that are asked at once: llama.cpp has a thread per connection, and no
#: more than its slots and four
MAX_QUESTIONS: Final = 2
#: as much of an error's body is read
MAX_REFUSAL_BYTES: Final = 65_536
#: llama.cpp takes this seed for "any"
_RANDOM_SEED: Final = 0xFFFF_FFFF
_WHOLE: Final = frozenset({"top_k"})


class _Slot(msgspec.Struct, gc=False):
    id: int
    is_processing: bool = False
    n_ctx: int = 0


class Props(msgspec.Struct, gc=False):
    """What `/props` says, as far as it is of use."""

    total_slots: int = 1
    model_alias: str = ""
    model_path: str = ""
    model_ftype: str = ""
    build_info: str = ""
    chat_template: str = ""
    bos_token: str = ""
    eos_token: str = ""


class Meta(msgspec.Struct, gc=False, omit_defaults=True):
    """What `/v1/models` says of the weights."""

    vocab_type: int = 0
    n_vocab: int = 0
    n_ctx_train: int = 0
    n_embd: int = 0
    n_params: int = 0
    size: int = 0
    ftype: str = ""


class _Model(msgspec.Struct, gc=False):
    id: str = ""
    meta: Meta | None = None


class _Models(msgspec.Struct, gc=False):
    data: list[_Model] = []


class _Tokens(msgspec.Struct, gc=False):
    tokens: list[int]


class _Prompt(msgspec.Struct, gc=False):
    prompt: str


_decode_slots = msgspec.json.Decoder(list[_Slot], strict=False).decode
_decode_props = msgspec.json.Decoder(Props).decode
_decode_models = msgspec.json.Decoder(_Models).decode
_decode_tokens = msgspec.json.Decoder(_Tokens).decode
_decode_prompt = msgspec.json.Decoder(_Prompt).decode
_encode = msgspec.json.Encoder().encode


class LlamaCpp:
    """Client of one llama.cpp server.

    Args:
        config: ``url``; optional ``model_path`` (its model file on this machine), ``launched`` (it is the
            server started by :func:`~._llama_launch.plan`), ``provisioned`` (from what), ``device``, ``api_key_env`` (name
            of the environment variable that holds the server's key, so that no configuration does).

    Raises:
        ConfigError: the URL is none, or that variable is not set.
    """

    name = NAME

    def __init__(self, config: Mapping[str, Any]) -> None:
        try:
            self._http = HttpClient(str(config.get("url", "")), headers=_authorization(config))
        except ValueError as error:
            raise ConfigError(str(error), field="url", got=config.get("url")) from error
        self._model_path = str(config.get("model_path", ""))
        self._version, self._flags = _build(config)
        self._device = str(config.get("device", "") or "cpu")
        self._slots = SlotWatch(self._look)
        self._questions = asyncio.Semaphore(MAX_QUESTIONS)
        self._template: ChatTemplate | None = None
        #: attempts that may rightly occupy a slot
        self.live: set[Attempt] = set()

    # --- what it is

    async def health(self) -> EngineHealth:
        try:
            answer = await self._http.request("GET", "/health", timeout_s=QUICK_TIMEOUT_S)
        except HttpError as error:
            return EngineHealth(state=EngineState.UNREACHABLE, detail=error.message)
        if answer.status == 200:
            return EngineHealth(state=EngineState.READY)
        detail = failure_of_body(answer.status, answer.body).message
        state = EngineState.LOADING if answer.status == 503 else EngineState.FAILED
        return EngineHealth(state=state, detail=detail)

    async def properties(self) -> EngineProperties:
        """What the server says of itself.

        Raises:
            UnavailableError: it does not answer, or not as llama.cpp does.
        """
        props = _read(_decode_props, await self._get("/props"), "/props")
        models = _read(_decode_models, await self._get("/v1/models"), "/v1/models")
        slots = await self._get_slots()
        meta = (models.data[0].meta if models.data else None) or Meta()
        name = props.model_alias or (models.data[0].id if models.data else "")
        ctx = min((s.n_ctx for s in slots), default=0)
        self._template = await self._compare_template(props)
        path = self._model_path or props.model_path
        host = self._http.host
        return EngineProperties(
            engine_version=engine_version(props.build_info, self._version),
            model_name=name,
            model_digest=await asyncio.to_thread(model_digest, path, host, name, meta),
            tokenizer_digest=await asyncio.to_thread(tokenizer_digest, path, host, props, meta),
            chat_template=props.chat_template,
            bos_token=props.bos_token,
            eos_token=props.eos_token,
            slots=len(slots) or props.total_slots,
            ctx=ctx,
            flags=f"ctx={ctx} parallel={len(slots)} ftype={props.model_ftype or meta.ftype}{self._flags}",
            strict_capable=True,
            device=self._device,
        )

    # --- work

    def generate(self, job: GenerateJob, sink: AttemptSink) -> Attempt:
        attempt = Attempt(self, job, sink)
        if job.parse_special:
            attempt.send(self._http, job.prompt + job.prefix)
        else:
            attempt.prepare(self._http)
        return attempt

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text.

        Raises:
            UnavailableError: the server does not answer.
        """
        body = _encode({"content": text, "add_special": add_special, "parse_special": parse_special})
        answer = await self._ask("POST", "/tokenize", body, SLOW_TIMEOUT_S)
        return _read(_decode_tokens, answer, "/tokenize").tokens

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the model's own template makes of a chat.

        Raises:
            InvalidParamsError: the template refuses these messages.
            UnavailableError: the server does not answer.
        """
        if self._template is not None and plain(messages):
            try:
                return self._template.render(messages)
            except TemplateError:
                pass  # the engine has the last word, and its message is the better one
        return await self._apply_template(messages)

    # --- how it does

    async def detokenize(self, ids: Sequence[int]) -> str:
        msg = "this engine does not turn token ids into text"
        raise InvalidParamsError(msg, field="tokens")

    async def forget(self, slot: int) -> bool:
        return False

    async def slots_in_use(self) -> int | None:
        try:
            return sum(slot.is_processing for slot in await self._get_slots())
        except UnavailableError:
            return None

    async def metrics(self) -> Mapping[str, float]:
        try:
            answer = await self._http.request("GET", "/metrics", timeout_s=QUICK_TIMEOUT_S)
        except HttpError:
            return {}
        return _prometheus(answer.body) if answer.status == 200 else {}

    async def close(self) -> None:
        await self._slots.close()
        await self._http.close()

    async def slot_free(self, attempt: Attempt) -> str:
        """Wait until the slot of a broken-off attempt is free."""
        # Before its first frame a job may still be on its way to the server's own queue, behind which the question
        # for slots can overtake it: then one look is not enough.
        return await self._slots.free(
            attempt.slot, others=lambda: len(self.live - {attempt}), looks=1 if attempt.took_off else 2
        )

    # --- inside

    async def _look(self) -> Mapping[int, bool] | None:
        try:
            answer = await self._http.request("GET", "/slots", timeout_s=QUICK_TIMEOUT_S)
        except HttpError as error:
            if error.kind == "unreachable":
                raise EngineGoneError(error.message) from error
            return None
        try:
            return {slot.id: slot.is_processing for slot in _decode_slots(answer.body)}
        except msgspec.MsgspecError:
            return None

    async def _get_slots(self) -> list[_Slot]:
        answer = await self._http_or_unavailable("GET", "/slots", b"", QUICK_TIMEOUT_S)
        if answer.status in (404, 501):
            msg = "the server does not tell its slots, so that a cancelled task's end could not be seen"
            raise UnavailableError(msg, remedy="Start llama-server without --no-slots.", engine=NAME)
        return _read(_decode_slots, answer, "/slots")

    async def _compare_template(self, props: Props) -> ChatTemplate | None:
        if not props.chat_template:
            return None
        rendered: list[tuple[Sequence[Mapping[str, Any]], str]] = []
        for probe in PROBES:
            try:
                rendered.append((probe, await self._apply_template(probe)))
            except (UnavailableError, InvalidParamsError):
                continue  # a template may refuse a system message
        return agreeing(props.chat_template, props.bos_token, props.eos_token, rendered)

    async def _apply_template(self, messages: Sequence[Mapping[str, Any]]) -> str:
        body = _encode({"messages": [dict(m) for m in messages]})
        answer = await self._http_or_unavailable("POST", "/apply-template", body, SLOW_TIMEOUT_S)
        if 400 <= answer.status < 500 or answer.status == 500:
            # llama.cpp answers 500 when a template raises
            msg = f"the model's chat template refused: {failure_of_body(answer.status, answer.body).message}"
            raise InvalidParamsError(msg, field="messages", engine=NAME)
        return _read(_decode_prompt, answer, "/apply-template").prompt

    async def _get(self, path: str) -> HttpResponse:
        return await self._ask("GET", path, b"", QUICK_TIMEOUT_S)

    async def _ask(self, method: str, path: str, body: bytes, timeout_s: float) -> HttpResponse:
        answer = await self._http_or_unavailable(method, path, body, timeout_s)
        if answer.status != 200:
            msg = f"{path}: {failure_of_body(answer.status, answer.body).message}"
            raise UnavailableError(msg, engine=NAME)
        return answer

    async def _http_or_unavailable(self, method: str, path: str, body: bytes, timeout_s: float) -> HttpResponse:
        try:
            async with self._questions:
                return await self._http.request(method, path, body, timeout_s=timeout_s)
        except HttpError as error:
            msg = f"{path}: {error.message}"
            raise UnavailableError(msg, engine=NAME) from error


class Attempt:
    """One running attempt: the handler of its stream, and the handle of who asked for it."""

    __slots__ = (
        "_engine",
        "_job",
        "_refusal",
        "_request",
        "_sink",
        "_status",
        "_stream",
        "_task",
        "slot",
        "took_off",
        "vacated",
    )

    def __init__(self, engine: LlamaCpp, job: GenerateJob, sink: AttemptSink) -> None:
        self._engine = engine
        self._job = job
        self._sink: AttemptSink | None = sink
        self._stream = CompletionStream(logprobs=job.logprobs > 0)
        self._request: StreamRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._status = 0
        self._refusal = b""
        self.slot = job.slot
        #: the engine said something of it
        self.took_off = False
        #: the engine itself said that it is done with it, or never took it
        self.vacated = False
        engine.live.add(self)

    # --- AttemptHandle

    def cancel(self) -> None:
        if self._sink is None:
            return
        self._leave()
        if self._task is not None:
            self._task.cancel()
        if self._request is None:
            self.vacated = True
        else:
            self._request.cancel()

    async def slot_free(self) -> str:
        return "slot-free" if self.vacated else await self._engine.slot_free(self)

    def resume(self) -> None:
        if self._request is not None:
            self._request.resume()

    # --- sending

    def prepare(self, http: HttpClient) -> None:
        """The prompt's special tokens are plain text here: tokenize it first."""
        self._task = asyncio.get_running_loop().create_task(self._prepare(http))

    async def _prepare(self, http: HttpClient) -> None:
        job = self._job
        try:
            ids = await self._engine.tokenize(job.prompt + job.prefix, add_special=True, parse_special=False)
        except UnavailableError as error:
            self.vacated = True
            self._fail(AttemptFailure(kind="unreachable", message=error.message))
        else:
            self.send(http, ids)

    def send(self, http: HttpClient, prompt: str | list[int]) -> None:
        """Ask for the completion."""
        if self._sink is None:
            return
        try:
            body = _body(self._job, prompt)
        except SchemaError as error:
            self.vacated = True
            refusal = AttemptFailure(kind="invalid", message=f"json_schema: {error}", retriable=False)
            asyncio.get_running_loop().call_soon(self._fail, refusal)
        else:
            self._request = http.stream("POST", "/completion", body, self)

    # --- StreamHandler

    def on_head(self, status: int) -> None:
        self._status = status

    def on_data(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            return
        stream = self._stream
        if self._status != 200:
            if len(self._refusal) < MAX_REFUSAL_BYTES:
                self._refusal += data
            return
        batch = stream.feed(data)
        if not self.took_off and stream.start is not None:
            self.took_off = True
            sink.started(stream.start)
        if batch is not None:
            sink.entries(batch)
            if sink.pressure() and self._request is not None:
                self._request.pause()
        if stream.end is not None:
            if self._sink is not None:
                self.vacated = True
                self._leave()
                sink.ended(stream.end)
        elif stream.failure is not None:
            self._fail(stream.failure)
            if self._request is not None:
                self._request.cancel()

    def on_done(self) -> None:
        if self._status != 200:
            self.vacated = True
            self._fail(failure_of_body(self._status, self._refusal))
            return
        self._stream.finish()
        if self._stream.failure is not None:
            self._fail(self._stream.failure)

    def on_lost(self, error: HttpError) -> None:
        if error.kind == "unreachable":
            self.vacated = True
        self._fail(AttemptFailure(kind=error.kind, message=error.message))

    # --- inside

    def _fail(self, failure: AttemptFailure) -> None:
        sink = self._sink
        if sink is not None:
            self._leave()
            sink.failed(failure)

    def _leave(self) -> None:
        self._sink = None
        self._engine.live.discard(self)


def _build(config: Mapping[str, Any]) -> tuple[str, str]:
    """What a server that was started here is called when it does not say, and how it was built, as words behind flags."""
    if not config.get("launched"):
        return "", ""
    built = config.get("provisioned")
    if not isinstance(built, ProvisionedEngine) or not (built.argv or built.container):
        version = package_version()
        return (f"xllamacpp {version}" if version else ""), ""
    flags = "".join(f" {flag}" for flag in built.flags)
    return f"llama-server {built.digest[:19]}", f" build={built.build}{flags}"


def _authorization(config: Mapping[str, Any]) -> dict[str, str]:
    variable = str(config.get("api_key_env") or "")
    if not variable:
        return {}
    key = os.environ.get(variable, "")
    if not key:
        msg = f"the environment variable {variable} is not set"
        remedy = "Set it to the server's API key where the orchestrator is started."
        raise ConfigError(msg, field="provisioning.options.api_key_env", got=variable, remedy=remedy)
    return {"Authorization": f"Bearer {key}"}


def _body(job: GenerateJob, prompt: str | list[int]) -> bytes:
    """The request of `/completion`. What llama.cpp does not know it ignores silently, so names are exact."""
    body: dict[str, Any] = {
        "prompt": prompt,
        "stream": True,  # a request without a stream is never stopped, whoever leaves
        "return_tokens": True,
        "return_progress": True,  # tells cached tokens, and that the prefill began
        "response_fields": RESPONSE_FIELDS,
        "cache_prompt": job.cache_prompt,
        "n_predict": job.max_tokens or -1,
        "seed": job.seed if job.seed != _RANDOM_SEED else _RANDOM_SEED - 1,
    }
    if job.slot >= 0:
        body["id_slot"] = job.slot
    for name, value in job.sampling.items():
        body[name] = int(value) if name in _WHOLE else value
    if job.stop:
        body["stop"] = job.stop
    if job.json_schema is not None:
        if job.grammar:
            msg = "grammar and json_schema exclude each other"
            raise SchemaError(msg)
        body["grammar"] = grammar_of(job.json_schema)
    elif job.grammar:
        body["grammar"] = job.grammar
    if job.logprobs:
        body["n_probs"] = job.logprobs
    return _encode(body)


def _read(decode: Callable[[bytes], T], answer: HttpResponse, path: str) -> T:
    if answer.status != 200:
        msg = f"{path}: {failure_of_body(answer.status, answer.body).message}"
        raise UnavailableError(msg, engine=NAME)
    try:
        return decode(answer.body)
    except (msgspec.MsgspecError, ValueError) as error:
        msg = f"{path}: this is no llama.cpp server: {error}"
        raise UnavailableError(msg, engine=NAME) from error


def _prometheus(body: bytes) -> dict[str, float]:
    values: dict[str, float] = {}
    for line in body.decode("utf-8", "replace").splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            try:
                values[name] = float(value)
            except ValueError:
                continue
    return values


@hookimpl
def llama_orch_engine() -> tuple[str, EngineFactory]:
    """The client of llama.cpp."""
    return NAME, LlamaCpp


@hookimpl
def llama_orch_launcher() -> tuple[str, LauncherFactory]:
    """Plans the server of the package."""
    return NAME, plan
