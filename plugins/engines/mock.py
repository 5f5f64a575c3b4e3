"""A mock engine inside this process, with faults on demand: for tests, demonstrations and capacity experiments.

What it says and how it fails is told by knobs, in the pool's options or in the prompt itself; see
:mod:`llama_orch.plugins.engines._mock_script`. `python -m llama_orch.plugins.engines._mock_server` is the same
machine behind llama.cpp's wire format, as a process of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .. import (
    AttemptEnd,
    AttemptFailure,
    AttemptHandle,
    AttemptSink,
    AttemptStart,
    ConfigError,
    EmbeddingResult,
    EngineFactory,
    EngineHealth,
    EngineProperties,
    EngineState,
    Entry,
    EntryBatch,
    GenerateJob,
    InvalidParamsError,
    RerankResult,
    UnavailableError,
    batch_of,
    hookimpl,
    pack_logprobs,
)
from ._chat_template import ChatTemplate, TemplateError
from ._mock_chat import RefusedError, plain_texts
from ._mock_machine import DEFAULT_CTX, DEFAULT_SLOTS, Machine, Request, Run, banned
from ._mock_script import KnobError, Said
from ._mock_words import detokenize, embedding, likelihood, score, tokenize

NAME: Final = "mock"
VERSION: Final = "mock-1"
#: ChatML, as many models have it
CHAT_TEMPLATE: Final = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for call in m['tool_calls'] or [] %}{{ call | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: a grammar is nothing that made-up words could be held to, and pictures nothing that they could be about
FEATURES: Final = (
    *("render", "tools", "reasoning", "logprobs", "prompt_ids", "logit_bias", "json_schema"),
    *("tokenize", "detokenize", "seed", "continue"),
)
#: what each fault looks like to whoever speaks to an engine: kind and whether another attempt may do better
_KINDS: Final[dict[str, tuple[str, bool]]] = {
    "cut": ("cut", True),
    "die": ("cut", True),
    "gone": ("unreachable", True),
    "unfinished": ("cut", True),
    "garbage": ("garbage", True),
    "utf8": ("garbage", True),
    "error": ("server-error", True),
    "500": ("server-error", True),
    "refuse": ("refused", True),
    "context": ("context", False),
    "invalid": ("invalid", False),
}


class MockEngine:
    """The mock as an engine.

    Args:
        config: optional ``slots``, ``ctx`` (tokens per slot) and ``script`` (default knobs).

    Raises:
        ConfigError: a knob of ``script`` is unknown.
    """

    name = NAME

    def __init__(self, config: Mapping[str, Any]) -> None:
        try:
            self.machine = Machine(
                slots=int(config.get("slots") or DEFAULT_SLOTS),
                ctx=int(config.get("ctx") or DEFAULT_CTX),
                script=config.get("script"),
            )
        except KnobError as error:
            raise ConfigError(str(error), field="provisioning.options.script", got=config.get("script")) from error
        self._model = str(config.get("alias") or config.get("model") or "mock")
        self._template = ChatTemplate(CHAT_TEMPLATE)
        # Only by its defaults: what thinks has its chats parsed, and those cannot be continued.
        self._thinks = int(self.machine.script.get("thoughts", 0)) > 0

    async def health(self) -> EngineHealth:
        if self.machine.dead:
            return EngineHealth(state=EngineState.UNREACHABLE, detail="the mock died, as it was told to")
        return EngineHealth(state=EngineState.READY)

    async def properties(self) -> EngineProperties:
        self._alive()
        return EngineProperties(
            engine_version=VERSION,
            model_name=self._model,
            model_digest=f"meta:{hashlib.sha256(self._model.encode()).hexdigest()}",
            tokenizer_digest=f"meta:{hashlib.sha256(VERSION.encode()).hexdigest()}",
            chat_template=CHAT_TEMPLATE,
            slots=len(self.machine.slots),
            ctx=self.machine.ctx,
            workloads=("completion", "chat", "embedding", "rerank"),
            features=FEATURES if self._thinks else tuple(name for name in FEATURES if name != "reasoning"),
            strict_capable=True,
        )

    def generate(self, job: GenerateJob, sink: AttemptSink) -> AttemptHandle:
        try:
            return MockAttempt(self.machine, job, self._request(job), sink)
        except (RefusedError, TemplateError) as error:
            return _Refused(str(error), sink)

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        self._alive()
        return tokenize(text, add_special=add_special)

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        self._alive()
        try:
            return self._template.render(plain_texts(messages), tools, template_kwargs)
        except (RefusedError, TemplateError) as error:
            raise InvalidParamsError(str(error), field="messages", engine=NAME) from error

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids, as far as the mock ever saw it.

        Raises:
            InvalidParamsError: an id that stands for nothing.
        """
        self._alive()
        try:
            return detokenize(ids)
        except KeyError as error:
            msg = f"the mock knows no token {error}"
            raise InvalidParamsError(msg, field="tokens", engine=NAME) from error

    async def forget(self, slot: int) -> bool:
        return self.machine.forget(slot)

    async def slots_in_use(self) -> int | None:
        return None if self.machine.dead else sum(run is not None for run in self.machine.slots)

    async def metrics(self) -> Mapping[str, float]:
        return {"mock:requests_total": self.machine.requests, "mock:tokens_total": self.machine.tokens_said}

    async def close(self) -> None:
        self.machine.die()

    def _request(self, job: GenerateJob) -> Request:
        """The job as the machine takes it.

        Raises:
            RefusedError: it cannot be done.
        """
        if job.grammar:
            msg = "grammar: the mock's words fit no grammar"
            raise RefusedError(msg)
        if job.workload not in ("completion", "chat", "embedding", "rerank"):
            msg = f"workload: the mock has no {job.workload}"
            raise RefusedError(msg)
        prompt, chat = job.prompt + job.prefix, job.chat
        if job.inputs:
            prompt = job.query
        elif chat is not None:
            prompt = self._template.render(plain_texts(chat.messages), chat.tools, chat.template_kwargs)
        elif job.prompt_ids:
            prompt = job.prefix
        return Request(
            prompt=prompt,
            prompt_ids=job.prompt_ids,
            chat=chat,
            inputs=job.inputs,
            slot=job.slot,
            seed=job.seed,
            max_tokens=job.max_tokens,
            stop=job.stop,
            json_schema=job.json_schema,
            banned=banned(job.logit_bias.items()),
            n=job.n,
            cache_prompt=job.cache_prompt,
        )

    def _alive(self) -> None:
        if self.machine.dead:
            msg = "the mock died, as it was told to"
            raise UnavailableError(msg, engine=NAME)


class MockAttempt:
    """One run, told to a sink."""

    def __init__(self, machine: Machine, job: GenerateJob, request: Request, sink: AttemptSink) -> None:
        self._sink: AttemptSink | None = sink
        self._job = job
        self._run = machine.submit(request, self)

    # --- AttemptHandle

    def cancel(self) -> None:
        self._sink = None
        self._run.cancel()

    async def slot_free(self) -> str:
        return await self._run.slot_free()

    def resume(self) -> None:
        self._run.resume()

    # --- Outlet

    def started(self, prompt_tokens: int, cached_tokens: int) -> None:
        if self._sink is not None:
            self._sink.started(AttemptStart(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens))

    def said(self, frames: list[Said]) -> None:
        if self._sink is not None:
            job = self._job
            top = job.top_logprobs if job.logprobs else -1
            self._sink.entries(_batch(frames, choice=self._run.choice, top=top))

    def ended(self, run: Run) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if run.request.inputs:
            sink.started(AttemptStart(prompt_tokens=run.prompt_tokens))
            sink.ended(AttemptEnd(finish_reason="stop", result=self._result(), prompt_tokens=run.prompt_tokens))
            return
        first = run.ends[0]
        sink.ended(
            AttemptEnd(
                finish_reason=first.finish_reason,
                finish_reasons=tuple(speech.finish_reason for speech in run.ends) if len(run.ends) > 1 else (),
                stop_sequence=first.stop_word,
                prompt_tokens=run.prompt_tokens,
                cached_tokens=run.cached_tokens,
                prefill_us=run.knobs.prefill_ms * 1000,
                decode_us=round(run.decode_ms * 1000),
                tokens=sum(speech.counted for speech in run.ends),
            )
        )

    def broke(self, kind: str, message: str) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            name, retriable = _KINDS[kind]
            sink.failed(AttemptFailure(kind=name, message=message, retriable=retriable))

    def blocked(self) -> bool:
        return self._sink is not None and self._sink.pressure()

    def _result(self) -> EmbeddingResult | RerankResult:
        job = self._job
        if job.workload == "rerank":
            return RerankResult(scores=[repr(score(job.query, text)) for text in job.inputs])
        return EmbeddingResult(vectors=[embedding(text, job.dimensions) for text in job.inputs])


class _Refused:
    """An attempt that nobody made."""

    def __init__(self, message: str, sink: AttemptSink) -> None:
        self._sink: AttemptSink | None = sink
        asyncio.get_running_loop().call_soon(self._fail, message)

    def cancel(self) -> None:
        self._sink = None

    async def slot_free(self) -> str:
        return "slot-free"

    def resume(self) -> None:
        """There is nothing that could be paused."""

    def _fail(self, message: str) -> None:
        if self._sink is not None:
            self._sink.failed(AttemptFailure(kind="invalid", message=message, retriable=False))


def _batch(frames: list[Said], *, choice: int, top: int) -> EntryBatch:
    entries: list[Entry] = []
    for frame in frames:
        entries += [Entry(text="", ids_complete=False, choice=choice, channel=frame.channel)] * (frame.tokens - 1)
        tokens = min(frame.tokens, 1)
        likely = likelihood(frame.text, max(frame.id, 0), top) if top >= 0 and tokens else None
        plain = likely is not None and not likely.top
        entries.append(
            Entry(
                text=frame.text,
                tokens=tokens,
                ids=() if frame.id < 0 else (frame.id,),
                ids_complete=frame.tokens == 1 and frame.id >= 0,
                choice=choice,
                channel=frame.channel,
                logprob="" if likely is None else likely.logprob if plain else pack_logprobs([likely]),
            )
        )
    return batch_of(entries)


@hookimpl
def llama_orch_engine() -> tuple[str, EngineFactory]:
    """The mock."""
    return NAME, MockEngine
