"""Triton Inference Server: language models that speak TensorRT-LLM's contract, or that of its vLLM backend."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from .. import (
    AttemptHandle,
    AttemptSink,
    ConfigError,
    EngineFactory,
    EngineHealth,
    EngineProperties,
    GenerateJob,
    InvalidParamsError,
    UnavailableError,
    hookimpl,
)
from ._api_key import authorization
from ._chat_template import TemplateError
from ._http import HttpClient, HttpError
from ._in_turn import InTurn
from ._known_options import require_known
from ._metric_lines import prometheus
from ._own_template import own_template
from ._plain_jobs import plain_messages, require_able
from ._shared_slots import SharedSlots, patience
from ._stream_attempt import Owner, RefusedError
from ._triton_grpc import GrpcTransport
from ._triton_http import HttpTransport
from ._triton_model import Model, limit_of, tensors_of

NAME: Final = "triton"
#: Triton tells of no slots
DEFAULT_SLOTS: Final = 4
QUICK_TIMEOUT_S: Final = 5.0
#: keys of ``provisioning.options``, and what they do
OPTIONS: Final[dict[str, str]] = {
    "served_model": "the model's name at the server; without it the pool's `model`",
    "version": "of the model; without it the one that the server's version policy picks",
    "chat_template": "Jinja template of the model's chats, or the path of a file with it; without it there are no chats",
    "bos_token": "the template's `bos_token`",
    "eos_token": "the template's `eos_token`",
    "metrics_url": "address of the server's metrics, e.g. `http://127.0.0.1:8002`; without it there are none",
    "api_key_env": "name of the environment variable that holds a bearer token, for a server behind a proxy",
    "release_ms": "how long the slot of a task that was broken off is kept at most while the model is not seen to be done; 3000",
}


class _Attempt(AttemptHandle, Protocol):
    def ask(self, tensors: Mapping[str, Any], model: Model) -> None: ...

    def prepare(self, sending: Callable[[], Coroutine[Any, Any, None]]) -> None: ...


class _Transport(Protocol):
    host: str

    async def health(self) -> EngineHealth: ...

    async def version(self) -> str: ...

    async def model(self) -> Model: ...

    async def completed(self) -> int | None: ...

    def attempt(self, owner: Owner, sink: AttemptSink, *, max_tokens: int, stop: Sequence[str]) -> _Attempt: ...

    async def close(self) -> None: ...


class Triton:
    """Client of one model on a Triton server.

    Args:
        config: ``url`` (``http://``, ``https://``, ``grpc://`` or ``grpcs://``), the keys of :data:`OPTIONS`, and of the
            pool ``model``, ``slots``, ``ctx``, ``device``.

    Raises:
        ConfigError: the URL is none, it is for gRPC and `tritonclient` is not installed, no model is named, an option is
            unknown or of no use, or an environment variable is not set.
    """

    name = NAME

    def __init__(self, config: Mapping[str, Any]) -> None:
        require_known(config, OPTIONS, NAME)
        url = str(config.get("url", ""))
        self._model_name = str(config.get("served_model") or config.get("model") or "")
        if not self._model_name or "/" in self._model_name:
            msg = (
                "no model of the server is named"
                if not self._model_name
                else "the name of a model on Triton has no slash"
            )
            raise ConfigError(msg, field="provisioning.options.served_model", got=self._model_name)
        version = str(config.get("version") or "")
        headers = authorization(config)
        over_grpc = url.startswith(("grpc://", "grpcs://"))
        try:
            kind = GrpcTransport if over_grpc else HttpTransport
            self._transport: _Transport = kind(url, self._model_name, version, headers)
            metrics_url = str(config.get("metrics_url") or "")
            self._metrics = HttpClient(metrics_url) if metrics_url else None
        except ValueError as error:
            raise ConfigError(str(error), field="url", got=url) from error
        self._chat_template, self._template = own_template(config)
        self._slots = int(config.get("slots") or DEFAULT_SLOTS)
        self._ctx = int(config.get("ctx") or 0)
        self._device = str(config.get("device", "") or "cpu")
        self._released = SharedSlots(self._in_use, patience_s=patience(config))
        self._model: Model | None = None
        #: what the server had completed before it got anything from here
        self._before: int | None = None
        #: attempts that may rightly be running
        self.live: set[Any] = set()
        #: requests that the server got from here
        self.sent = 0

    # --- what it is

    async def health(self) -> EngineHealth:
        return await self._transport.health()

    async def properties(self) -> EngineProperties:
        """What the server says of itself and of the model.

        Raises:
            UnavailableError: it does not answer, or not as Triton does, or the model is none that says texts.
        """
        try:
            version = await self._transport.version()
            model = await self._learn()
        except RefusedError as error:
            raise UnavailableError(error.failure.message, engine=NAME) from error
        if not model.speaks:
            raise UnavailableError(model.takes_no_text, engine=NAME)
        template = hashlib.sha256(self._chat_template.encode()).hexdigest() if self._chat_template else ""
        return EngineProperties(
            engine_version=f"triton {version}",
            model_name=model.name,
            model_digest=model.digest,
            tokenizer_digest=f"{model.digest}{f'+{template[:16]}' if template else ''}",
            chat_template=self._chat_template,
            slots=self._slots,
            ctx=self._ctx,
            flags=f"platform={model.platform} versions={','.join(model.versions)}",
            workloads=self._workloads(),
            features=self._features(model),
            device=self._device,
        )

    def _workloads(self) -> tuple[str, ...]:
        return ("completion", "chat") if self._template is not None else ("completion",)

    def _features(self, model: Model) -> tuple[str, ...]:
        return (*model.features(), *(("render",) if self._template is not None else ()))

    # --- work

    def generate(self, job: GenerateJob, sink: AttemptSink) -> AttemptHandle:
        if job.n > 1:
            return InTurn(job, sink, self._one)
        return self._one(job, sink)

    def _one(self, job: GenerateJob, sink: AttemptSink) -> AttemptHandle:
        attempt = self._transport.attempt(self, sink, max_tokens=limit_of(job, self._ctx), stop=job.stop)
        try:
            prompt = self._prompt(job)
            if self._model is not None:
                attempt.ask(self._tensors(job, prompt, self._model), self._model)
                return attempt
        except Exception as error:  # whatever it is, the attempt has an end
            attempt.prepare(partial(_refuse, error))
            return attempt
        attempt.prepare(lambda: self._ask_unknown(attempt, job, prompt))
        return attempt

    async def _ask_unknown(self, attempt: _Attempt, job: GenerateJob, prompt: str) -> None:
        model = await self._learn()
        attempt.ask(self._tensors(job, prompt, model), model)

    def _prompt(self, job: GenerateJob) -> str:
        if job.chat is None:
            return job.prompt + job.prefix
        require_able(job, self._able(), NAME)
        try:
            return self._render(job.chat.messages) + job.prefix
        except TemplateError as error:
            raise RefusedError("invalid", f"messages: {error}") from error

    def _tensors(self, job: GenerateJob, prompt: str, model: Model) -> dict[str, Any]:
        able = {*self._able(), *self._workloads(), *self._features(model)}
        require_able(job, able, NAME)
        return tensors_of(job, model, prompt=prompt, max_tokens=limit_of(job, self._ctx))

    def _able(self) -> set[str]:
        """What it can do whatever the model is."""
        return {"completion", "continue", "json_schema", *(("chat", "render") if self._template is not None else ())}

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        msg = "Triton does not tell the tokens of a text"
        raise InvalidParamsError(msg, field="content", engine=NAME)

    async def detokenize(self, ids: Sequence[int]) -> str:
        msg = "Triton does not turn token ids into text"
        raise InvalidParamsError(msg, field="tokens", engine=NAME)

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the configured template makes of a chat.

        Raises:
            InvalidParamsError: there is no template, it refuses these messages, or tools or variables are named.
        """
        if self._template is None or tools or template_kwargs:
            what = "tools" if tools else "chat_template_kwargs" if template_kwargs else "messages"
            msg = f"{what}: Triton renders no chats, and provisioning.options.chat_template does not say how"
            raise InvalidParamsError(msg, field=what, engine=NAME)
        try:
            return self._render(messages)
        except TemplateError as error:
            raise InvalidParamsError(str(error), field="messages", engine=NAME) from error

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if self._template is None:
            msg = "there is no chat template"
            raise TemplateError(msg)
        return self._template.render(plain_messages(messages))

    # --- how it does

    async def forget(self, slot: int) -> bool:
        return False

    async def slots_in_use(self) -> int | None:
        return None

    async def metrics(self) -> Mapping[str, float]:
        if self._metrics is None:
            return {}
        try:
            answer = await self._metrics.request("GET", "/metrics", timeout_s=QUICK_TIMEOUT_S)
        except HttpError:
            return {}
        return prometheus(answer.body) if answer.status == 200 else {}

    async def close(self) -> None:
        await self._released.close()
        await self._transport.close()
        if self._metrics is not None:
            await self._metrics.close()

    async def slot_free(self, attempt: object) -> str:
        """Wait until the model is seen done with a broken-off attempt."""
        answer = await self._released.free(lambda: self._asked(attempt))
        if answer == "slot-free":
            return answer
        # Its counters cannot be relied on any more: it is gone, or others ask it too.
        self._before = None
        if answer == "engine-gone":
            self._model = None
            return answer
        return "slot-free"

    async def _in_use(self) -> int | None:
        """Requests from here that the server has not completed."""
        completed = await self._transport.completed()
        if completed is None:
            return None
        if self._before is None or completed < self._before:
            self._before = completed - (self.sent - self._asked())
        return max(0, self.sent - (completed - self._before))

    async def _learn(self) -> Model:
        """What the model takes and gives. :raises RefusedError: the server does not say."""
        self._model = await self._transport.model()
        if self._before is None:
            completed = await self._transport.completed()
            if completed is not None:
                self._before = completed - (self.sent - self._asked())
        return self._model

    def _asked(self, but: object = None) -> int:
        """Attempts that may rightly be running on the server."""
        return sum(attempt.asked for attempt in self.live if attempt is not but)


async def _refuse(error: Exception) -> None:
    raise error


@hookimpl
def llama_orch_engine() -> tuple[str, EngineFactory]:
    """The client of Triton."""
    return NAME, Triton
