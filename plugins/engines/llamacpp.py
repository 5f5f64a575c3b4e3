"""llama.cpp, by its server's native API: external, or the server of the `xllamacpp` package as a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
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
    LauncherFactory,
    ProvisionedEngine,
    UnavailableError,
    hookimpl,
)
from ._chat_template import PROBES, ChatTemplate, TemplateError, agreeing, plain
from ._http import HttpClient, HttpError, HttpResponse
from ._llama_attempt import Attempt
from ._llama_frames import failure_of_body
from ._llama_identity import engine_version, model_digest, tokenizer_digest
from ._llama_launch import package_version, plan
from ._llama_vectors import VectorAttempt
from ._llama_wire import (
    Abilities,
    Meta,
    Props,
    Slot,
    decode_content,
    decode_models,
    decode_prompt,
    decode_props,
    decode_slots,
    decode_tokens,
    tools_of,
)
from ._slots import EngineGoneError, SlotWatch

T = TypeVar("T")
NAME: Final = "llamacpp"
QUICK_TIMEOUT_S: Final = 5.0
SLOW_TIMEOUT_S: Final = 60.0
#: questions beside streams, health and slots that are asked at once: llama.cpp has a thread per connection, and no
#: more than its slots and four
MAX_QUESTIONS: Final = 2
#: a token that every model has, and hardly any prompt begins with
_SOME_TOKEN: Final = 0
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
            self.http = HttpClient(str(config.get("url", "")), headers=_authorization(config))
        except ValueError as error:
            raise ConfigError(str(error), field="url", got=config.get("url")) from error
        self._model_path = str(config.get("model_path", ""))
        self._version, self._flags = _build(config)
        self._keeps_nothing_else = bool(config.get("launched")) and not config.get("cache_ram_mib")
        self._device = str(config.get("device", "") or "cpu")
        self._slots = SlotWatch(self._look)
        self._questions = asyncio.Semaphore(MAX_QUESTIONS)
        self._template: ChatTemplate | None = None
        #: what the server can, once it was asked
        self.abilities: Abilities | None = None
        #: attempts that may rightly occupy a slot
        self.live: set[Attempt | VectorAttempt] = set()

    @property
    def told(self) -> Abilities:
        """What the server can; where it was not asked yet, everything, so that its own refusal is what is heard."""
        return self.abilities or Abilities(tools=True, images=True)

    # --- what it is

    async def health(self) -> EngineHealth:
        try:
            answer = await self.http.request("GET", "/health", timeout_s=QUICK_TIMEOUT_S)
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
        props = _read(decode_props, await self._get("/props"), "/props")
        models = _read(decode_models, await self._get("/v1/models"), "/v1/models")
        slots = await self._get_slots()
        meta = (models.data[0].meta if models.data else None) or Meta()
        name = props.model_alias or (models.data[0].id if models.data else "")
        ctx = min((s.n_ctx for s in slots), default=0)
        self.abilities = abilities = await self._abilities(props, meta)
        self._template = await self._compare_template(props) if "chat" in abilities.workloads else None
        path = self._model_path or props.model_path
        host = self.http.host
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
            workloads=abilities.workloads,
            features=abilities.features,
            strict_capable=True,
            device=self._device,
        )

    # --- work

    def generate(self, job: GenerateJob, sink: AttemptSink) -> AttemptHandle:
        vectors = job.workload in ("embedding", "rerank")
        attempt = VectorAttempt(self, job, sink) if vectors else Attempt(self, job, sink)
        attempt.begin()
        return attempt

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text.

        Raises:
            UnavailableError: the server does not answer.
        """
        body = _encode({"content": text, "add_special": add_special, "parse_special": parse_special})
        answer = await self._ask("POST", "/tokenize", body, SLOW_TIMEOUT_S)
        return _read(decode_tokens, answer, "/tokenize").tokens

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
        if self._template is not None and not tools and not template_kwargs and plain(messages):
            try:
                return self._template.render(messages)
            except TemplateError:
                pass  # the engine has the last word, and its message is the better one
        return await self._apply_template(messages, tools, template_kwargs)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids.

        Raises:
            InvalidParamsError: the model has no such token.
            UnavailableError: the server does not answer.
        """
        answer = await self._http_or_unavailable("POST", "/detokenize", _encode({"tokens": ids}), SLOW_TIMEOUT_S)
        if 400 <= answer.status <= 500:
            # llama.cpp answers 500 for an id beyond its vocabulary
            msg = f"the model knows not all of these tokens: {failure_of_body(answer.status, answer.body).message}"
            raise InvalidParamsError(msg, field="tokens", engine=NAME)
        return _read(decode_content, answer, "/detokenize").content

    # --- how it does

    async def forget(self, slot: int) -> bool:
        """Free the KV cache of an idle slot."""
        if self.abilities is not None and "completion" not in self.abilities.workloads:
            return False  # what embeds or ranks keeps nothing
        try:
            answer = await self._http_or_unavailable("POST", f"/slots/{slot}?action=erase", b"{}", SLOW_TIMEOUT_S)
            if answer.status == 200:
                return True
            # It erases only where it may also save. A prompt of one token takes the place of all that was there; but
            # a server that keeps prompts in the host's memory too would bring them back.
            if not self._keeps_nothing_else:
                return False
            body = {"prompt": [_SOME_TOKEN], "id_slot": slot, "n_predict": 0, "cache_prompt": False}
            answer = await self._http_or_unavailable("POST", "/completion", _encode(body), SLOW_TIMEOUT_S)
        except UnavailableError:
            return False
        return answer.status == 200

    async def slots_in_use(self) -> int | None:
        try:
            return sum(slot.is_processing for slot in await self._get_slots())
        except UnavailableError:
            return None

    async def metrics(self) -> Mapping[str, float]:
        try:
            answer = await self.http.request("GET", "/metrics", timeout_s=QUICK_TIMEOUT_S)
        except HttpError:
            return {}
        return _prometheus(answer.body) if answer.status == 200 else {}

    async def close(self) -> None:
        await self._slots.close()
        await self.http.close()

    async def slot_free(self, attempt: Attempt | VectorAttempt) -> str:
        """Wait until the slot of a broken-off attempt is free."""
        # Before its first frame a job may still be on its way to the server's own queue, behind which the question
        # for slots can overtake it: then one look is not enough.
        return await self._slots.free(
            attempt.slot, others=lambda: len(self.live - {attempt}), looks=1 if attempt.took_off else 2
        )

    # --- inside

    async def _look(self) -> Mapping[int, bool] | None:
        try:
            answer = await self.http.request("GET", "/slots", timeout_s=QUICK_TIMEOUT_S)
        except HttpError as error:
            if error.kind == "unreachable":
                raise EngineGoneError(error.message) from error
            return None
        try:
            return {slot.id: slot.is_processing for slot in decode_slots(answer.body)}
        except msgspec.MsgspecError:
            return None

    async def _get_slots(self) -> list[Slot]:
        answer = await self._http_or_unavailable("GET", "/slots", b"", QUICK_TIMEOUT_S)
        if answer.status in (404, 501):
            msg = "the server does not tell its slots, so that a cancelled task's end could not be seen"
            raise UnavailableError(msg, remedy="Start llama-server without --no-slots.", engine=NAME)
        return _read(decode_slots, answer, "/slots")

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

    async def _abilities(self, props: Props, meta: Meta) -> Abilities:
        embeds = await self._serves("/v1/embeddings")
        ranks = await self._serves("/v1/rerank")
        if embeds or ranks:
            return Abilities(embeds=embeds, ranks=ranks, dimensions=meta.n_embd)
        switchable = await self._thinks_on_demand(props)
        caps = props.chat_template_caps
        return Abilities(
            tools=tools_of(props),
            reasons=switchable or (caps is not None and caps.supports_preserve_reasoning),
            thinking_can_be_off=switchable,
            images=props.modalities is not None and props.modalities.vision,
            dimensions=meta.n_embd,
        )

    async def _serves(self, path: str) -> bool:
        """Whether a path that takes inputs is served: then it misses them, else it says how the server has to be
        started. One whose model makes a vector of each token refuses too."""
        answer = await self._http_or_unavailable("POST", path, b"{}", QUICK_TIMEOUT_S)
        return answer.status == 400 and "must be provided" in failure_of_body(answer.status, answer.body).message

    async def _thinks_on_demand(self, props: Props) -> bool:
        """Whether the model's template can be told to think or not."""
        if not props.chat_template:
            return False
        try:
            thoughts = [await self._apply_template(PROBES[0], (), {"enable_thinking": on}) for on in (True, False)]
        except (UnavailableError, InvalidParamsError):
            return False
        return thoughts[0] != thoughts[1]

    async def _apply_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        asked: dict[str, Any] = {"messages": [dict(m) for m in messages]}
        if tools:
            asked["tools"] = tools
        if template_kwargs:
            asked["chat_template_kwargs"] = template_kwargs
        answer = await self._http_or_unavailable("POST", "/apply-template", _encode(asked), SLOW_TIMEOUT_S)
        if 400 <= answer.status < 500 or answer.status == 500:
            # llama.cpp answers 500 when a template raises
            msg = f"the model's chat template refused: {failure_of_body(answer.status, answer.body).message}"
            raise InvalidParamsError(msg, field="messages", engine=NAME)
        return _read(decode_prompt, answer, "/apply-template").prompt

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
                return await self.http.request(method, path, body, timeout_s=timeout_s)
        except HttpError as error:
            msg = f"{path}: {error.message}"
            raise UnavailableError(msg, engine=NAME) from error


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
