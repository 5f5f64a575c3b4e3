"""llama.cpp, by its server's native API: external, or the server of the `xllamacpp` package as a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from .. import (
    AttemptFailure,
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
from ._chat_template import TemplateError, plain
from ._http import HttpClient, HttpError
from ._llama_attempt import Attempt
from ._llama_frames import failure_of_body
from ._llama_identity import engine_version, model_digest, tokenizer_digest
from ._llama_launch import package_version, plan
from ._llama_questions import NAME, QUICK_TIMEOUT_S, SLOW_TIMEOUT_S, Learned, Questions, read
from ._llama_vectors import VectorAttempt
from ._llama_wire import Abilities, decode_content, decode_slots, decode_tokens
from ._slots import EngineGoneError, SlotWatch

#: a token that every model has, and hardly any prompt begins with
_SOME_TOKEN: Final = 0


class LlamaCpp:
    """Client of one llama.cpp server.

    Args:
        config: ``url``; optional ``model_path`` (its model file on this machine), ``launched`` (it is the
            server started by :func:`~._llama_launch.plan`), ``provisioned`` (from what), ``device``, ``api_key_env`` (name
            of the environment variable that holds the server's key, so that no configuration does), ``cache_ram_mib``
            (memory that it was started with for cached prompts).

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
        self._questions = Questions(self.http)
        self._learning = asyncio.Lock()
        self._learned: Learned | None = None
        #: attempts that may rightly occupy a slot
        self.live: set[Attempt | VectorAttempt] = set()

    @property
    def abilities(self) -> Abilities | None:
        """What the server can; ``None`` while it was not asked."""
        return None if self._learned is None else self._learned.abilities

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
        self._learned = learned = await self._questions.learn()
        slots = await self._questions.slots()
        props, meta, name, abilities = learned.props, learned.meta, learned.name, learned.abilities
        ctx = min((s.n_ctx for s in slots), default=0)
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

    async def learned(self) -> Learned:
        """What the server is and has, asked once: who speaks to it need not be who saw it become ready.

        Raises:
            UnavailableError: it does not answer, or not as llama.cpp does.
        """
        async with self._learning:
            if self._learned is None:
                self._learned = await self._questions.learn()
        return self._learned

    async def learn_or_fail(self) -> AttemptFailure | None:
        """The same for an attempt, and why it cannot be made."""
        try:
            await self.learned()
        except UnavailableError as error:
            # Nobody answered; or the server said that it is not ready for questions, nor then for anything else.
            answered = not isinstance(error.__cause__, HttpError)
            return AttemptFailure(kind="refused" if answered else "unreachable", message=error.message)
        return None

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
        asked = {"content": text, "add_special": add_special, "parse_special": parse_special}
        answer = await self._questions.ask("POST", "/tokenize", asked, SLOW_TIMEOUT_S)
        return read(decode_tokens, answer, "/tokenize").tokens

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
        if not tools and not template_kwargs and plain(messages):
            template = (self._learned or await self.learned()).template
            if template is not None:
                try:
                    return template.render(messages)
                except TemplateError:
                    pass  # the engine has the last word, and its message is the better one
        return await self._questions.apply_template(messages, tools, template_kwargs)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids.

        Raises:
            InvalidParamsError: the model has no such token.
            UnavailableError: the server does not answer.
        """
        answer = await self._questions.answer("POST", "/detokenize", {"tokens": ids}, SLOW_TIMEOUT_S)
        if 400 <= answer.status <= 500:
            # llama.cpp answers 500 for an id beyond its vocabulary
            msg = f"the model knows not all of these tokens: {failure_of_body(answer.status, answer.body).message}"
            raise InvalidParamsError(msg, field="tokens", engine=NAME)
        return read(decode_content, answer, "/detokenize").content

    # --- how it does

    async def forget(self, slot: int) -> bool:
        """Free the KV cache of an idle slot."""
        if self.abilities is not None and "completion" not in self.abilities.workloads:
            return False  # what embeds or ranks keeps nothing
        try:
            answer = await self._questions.answer("POST", f"/slots/{slot}?action=erase", {}, SLOW_TIMEOUT_S)
            if answer.status == 200:
                return True
            # It erases only where it may also save. A prompt of one token takes the place of all that was there; but
            # a server that keeps prompts in the host's memory too would bring them back.
            if not self._keeps_nothing_else:
                return False
            asked = {"prompt": [_SOME_TOKEN], "id_slot": slot, "n_predict": 0, "cache_prompt": False}
            answer = await self._questions.answer("POST", "/completion", asked, SLOW_TIMEOUT_S)
        except UnavailableError:
            return False
        return answer.status == 200

    async def slots_in_use(self) -> int | None:
        try:
            return sum(slot.is_processing for slot in await self._questions.slots())
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
