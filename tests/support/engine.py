"""A scripted engine: each attempt does what the test lets it do, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from llama_orch.core.engine_ports import (
    AttemptEnd,
    AttemptFailure,
    AttemptSink,
    AttemptStart,
    EngineHealth,
    EngineProperties,
    EngineState,
    GenerateJob,
)
from llama_orch.core.entries import EntryBatch, batch_of
from llama_orch.core.errors import InvalidParamsError, PoolUnavailableError
from llama_orch.core.types import Entry

from .loop import StepLoop


class ScriptedAttempt:
    """A running job, and its handle."""

    def __init__(self, engine: ScriptedEngine, job: GenerateJob, sink: AttemptSink) -> None:
        self.engine = engine
        self.job = job
        self._sink = sink
        self.cancelled = False
        self.over = False
        self.resumed = 0
        self.said = ""
        self._loop = asyncio.get_running_loop()
        self._free: asyncio.Future[str] = self._loop.create_future()

    @contextmanager
    def _on_loop(self) -> Iterator[AttemptSink]:
        """The sink, as it is called on the event loop's thread."""
        assert isinstance(self._loop, StepLoop)
        with self._loop.inside():
            yield self._sink

    # --- what the test lets it do --------------------------------------------------------------------------------

    def start(self, prompt_tokens: int = 3, cached_tokens: int = 0) -> None:
        """First sign of life."""
        if not self.cancelled:
            with self._on_loop() as sink:
                sink.started(AttemptStart(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens))

    def say(self, *texts: str) -> None:
        """Say pieces that arrive together, a token each."""
        self.say_batch(batch_of([Entry(text=text, ids=(len(text),)) for text in texts]))

    def say_batch(self, batch: EntryBatch) -> None:
        """Say a batch."""
        if not self.cancelled and not self.over:
            self.said += "".join(batch.texts)
            with self._on_loop() as sink:
                sink.entries(batch)

    def late(self, *texts: str) -> None:
        """Say something although it was cancelled, as an engine does whose words were on their way."""
        with self._on_loop() as sink:
            sink.entries(batch_of([Entry(text=text) for text in texts]))

    def late_end(self) -> None:
        """End although it was cancelled."""
        with self._on_loop() as sink:
            sink.ended(AttemptEnd(finish_reason="stop"))

    def end(self, finish_reason: str = "stop", *, decode_us: int = 5_000, **more: Any) -> None:
        """Finish properly; the slot is free then."""
        if self.cancelled or self.over:
            return
        self.over = True
        self.free()
        with self._on_loop() as sink:
            sink.ended(AttemptEnd(finish_reason=finish_reason, prompt_tokens=3, decode_us=decode_us, **more))  # type: ignore[arg-type]

    def fail(self, kind: str = "cut", *, retriable: bool = True, message: str = "scripted") -> None:
        """Break off."""
        if self.cancelled or self.over:
            return
        self.over = True
        with self._on_loop() as sink:
            sink.failed(AttemptFailure(kind=kind, message=message, retriable=retriable))

    def break_watch(self, error: Exception) -> None:
        """Asking for the slot fails from now on."""
        self._free.set_exception(error)

    def free(self, cause: str = "slot-free") -> None:
        """The slot is seen free."""
        if not self._free.done():
            self._free.set_result(cause)

    @property
    def pressed(self) -> bool:
        """The journal asks for a pause."""
        return self._sink.pressure()

    @property
    def slot_is_free(self) -> bool:
        """The slot was seen free."""
        return self._free.done()

    # --- AttemptHandle -------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        self.cancelled = True

    async def slot_free(self) -> str:
        return await asyncio.shield(self._free)

    def resume(self) -> None:
        self.resumed += 1


class ScriptedEngine:
    """An engine that keeps every attempt for the test."""

    def __init__(self, *, slots: int = 1, ctx: int = 4096, name: str = "scripted") -> None:
        self.name = name
        self.slots = slots
        self.ctx = ctx
        self.attempts: list[ScriptedAttempt] = []
        self.refuses = False
        #: raised by ``generate`` when it is set
        self.breaks: Exception | None = None
        self.renders = True
        self.strict_capable = True
        #: slots whose KV cache was to be freed
        self.forgotten: list[int] = []
        self.workloads: tuple[str, ...] = ("completion", "chat")
        #: beside them; ``None`` = as an engine that says nothing of it
        self.features: tuple[str, ...] | None = None

    @property
    def last(self) -> ScriptedAttempt:
        """The newest attempt."""
        return self.attempts[-1]

    def of(self, task_id: str) -> ScriptedAttempt:
        """The newest attempt of a task."""
        return next(a for a in reversed(self.attempts) if a.job.task_id == task_id)

    def own_properties(self) -> EngineProperties:
        own = EngineProperties(
            engine_version="scripted-1",
            model_name="m",
            slots=self.slots,
            ctx=self.ctx,
            strict_capable=self.strict_capable,
            workloads=self.workloads,
        )
        return own if self.features is None else msgspec.structs.replace(own, features=self.features)

    async def health(self) -> EngineHealth:
        return EngineHealth(state=EngineState.READY)

    async def properties(self) -> EngineProperties:
        return self.own_properties()

    def generate(self, job: GenerateJob, sink: AttemptSink) -> ScriptedAttempt:
        if self.breaks is not None:
            raise self.breaks
        attempt = ScriptedAttempt(self, job, sink)
        self.attempts.append(attempt)
        return attempt

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [len(word) for word in text.split(" ")]

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        if not self.renders:
            msg = "the template cannot be rendered"
            raise PoolUnavailableError(msg)
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)

    async def detokenize(self, ids: Sequence[int]) -> str:
        msg = "this engine does not turn token ids into text"
        raise InvalidParamsError(msg, field="tokens")

    async def forget(self, slot: int) -> bool:
        self.forgotten.append(slot)
        return True

    async def slots_in_use(self) -> int | None:
        return sum(not a.slot_is_free for a in self.attempts)

    async def metrics(self) -> Mapping[str, float]:
        return {}

    async def close(self) -> None:
        pass


class Engines:
    """The directory of engines by pool."""

    def __init__(self, engines: dict[str, ScriptedEngine]) -> None:
        self.by_pool = engines

    def engine(self, pool_id: str) -> ScriptedEngine | None:
        return self.by_pool.get(pool_id)

    def properties(self, pool_id: str) -> EngineProperties | None:
        found = self.by_pool.get(pool_id)
        return None if found is None else found.own_properties()
