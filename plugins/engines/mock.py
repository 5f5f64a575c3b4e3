"""A mock engine inside this process, with faults on demand: for tests, demonstrations and capacity experiments.

What it says and how it fails is told by knobs, in the pool's options or in the prompt itself; see
:mod:`llama_orch.plugins.engines._mock_script`. `python -m llama_orch.plugins.engines._mock_server` is the same
machine behind llama.cpp's wire format, as a process of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .. import (
    AttemptEnd,
    AttemptFailure,
    AttemptSink,
    AttemptStart,
    ConfigError,
    EngineFactory,
    EngineHealth,
    EngineProperties,
    EngineState,
    Entry,
    EntryBatch,
    GenerateJob,
    InvalidParamsError,
    UnavailableError,
    batch_of,
    hookimpl,
)
from ._chat_template import ChatTemplate
from ._mock_machine import DEFAULT_CTX, DEFAULT_SLOTS, Machine, Request, Run
from ._mock_script import KnobError, Said, tokenize

NAME: Final = "mock"
VERSION: Final = "mock-1"
#: ChatML, as many models have it
CHAT_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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
            strict_capable=True,
        )

    def generate(self, job: GenerateJob, sink: AttemptSink) -> MockAttempt:
        return MockAttempt(self.machine, job, sink)

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
        return self._template.render(messages)

    async def detokenize(self, ids: Sequence[int]) -> str:
        msg = "this engine does not turn token ids into text"
        raise InvalidParamsError(msg, field="tokens")

    async def forget(self, slot: int) -> bool:
        return False

    async def slots_in_use(self) -> int | None:
        return None if self.machine.dead else sum(run is not None for run in self.machine.slots)

    async def metrics(self) -> Mapping[str, float]:
        return {"mock:requests_total": self.machine.requests, "mock:tokens_total": self.machine.tokens_said}

    async def close(self) -> None:
        self.machine.die()

    def _alive(self) -> None:
        if self.machine.dead:
            msg = "the mock died, as it was told to"
            raise UnavailableError(msg, engine=NAME)


class MockAttempt:
    """One run, told to a sink."""

    def __init__(self, machine: Machine, job: GenerateJob, sink: AttemptSink) -> None:
        self._sink: AttemptSink | None = sink
        self._logprobs = job.logprobs > 0
        self._run = machine.submit(
            Request(
                prompt=job.prompt + job.prefix,
                slot=job.slot,
                seed=job.seed,
                max_tokens=job.max_tokens,
                stop=job.stop,
                cache_prompt=job.cache_prompt,
            ),
            self,
        )

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
            self._sink.entries(_batch(frames, logprobs=self._logprobs))

    def ended(self, run: Run) -> None:
        sink, self._sink = self._sink, None
        assert run.speech is not None
        if sink is not None:
            sink.ended(
                AttemptEnd(
                    finish_reason="length" if run.speech.stop_type == "limit" else "stop",
                    stop_sequence=run.speech.stop_word,
                    prompt_tokens=run.prompt_tokens,
                    cached_tokens=run.cached_tokens,
                    prefill_us=run.knobs.prefill_ms * 1000,
                    decode_us=round(run.decode_ms * 1000),
                    tokens=run.speech.counted,
                )
            )

    def broke(self, kind: str, message: str) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            name, retriable = _KINDS[kind]
            sink.failed(AttemptFailure(kind=name, message=message, retriable=retriable))

    def blocked(self) -> bool:
        return self._sink is not None and self._sink.pressure()


def _batch(frames: list[Said], *, logprobs: bool) -> EntryBatch:
    probability = "-0.5" if logprobs else ""
    entries: list[Entry] = []
    for frame in frames:
        entries += [Entry(text="", ids_complete=False)] * (frame.tokens - 1)
        entries.append(
            Entry(
                text=frame.text,
                tokens=min(frame.tokens, 1),
                ids=() if frame.id < 0 else (frame.id,),
                ids_complete=frame.tokens == 1 and frame.id >= 0,
                logprob=probability,
            )
        )
    return batch_of(entries)


@hookimpl
def llama_orch_engine() -> tuple[str, EngineFactory]:
    """The mock."""
    return NAME, MockEngine
