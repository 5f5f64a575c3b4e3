"""Several answers of an engine that gives one at a time: one after another, on one slot, each with a seed of its own."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .. import AttemptEnd, AttemptFailure, AttemptHandle, AttemptSink, AttemptStart, EntryBatch, GenerateJob

#: seeds are numbers of 32 bits
_SEEDS = 2**32


class InTurn:
    """An attempt with ``n`` answers, made of ``n`` attempts with one: the k-th with ``seed + k``.

    Args:
        job: what is asked for, with ``n``.
        sink: hears one attempt.
        begin: begins an attempt with one answer.
    """

    def __init__(
        self, job: GenerateJob, sink: AttemptSink, begin: Callable[[GenerateJob, AttemptSink], AttemptHandle]
    ) -> None:
        self._job = job
        self._sink: AttemptSink | None = sink
        self._begin = begin
        self._ends: list[AttemptEnd] = []
        self._begun = False
        self._paused = False
        #: the next answer is begun when the reader goes on
        self._due = False
        self._handle = begin(msgspec.structs.replace(job, n=1), self)

    # --- AttemptHandle

    def cancel(self) -> None:
        self._sink = None
        self._handle.cancel()

    async def slot_free(self) -> str:
        return await self._handle.slot_free()

    def resume(self) -> None:
        self._paused = False
        if self._due:
            self._next()
        else:
            self._handle.resume()

    # --- AttemptSink

    def started(self, start: AttemptStart) -> None:
        if self._sink is not None and not self._begun:
            self._begun = True
            self._sink.started(start)

    def entries(self, batch: EntryBatch) -> None:
        if self._sink is not None:
            choice = len(self._ends)
            if choice:
                batch = msgspec.structs.replace(batch, choices=[choice] * len(batch))
            self._sink.entries(batch)

    def ended(self, end: AttemptEnd) -> None:
        sink, job = self._sink, self._job
        if sink is None:
            return
        self._ends.append(end)
        if len(self._ends) < job.n:
            if self._paused:
                self._due = True
            else:
                self._next()
            return
        self._sink = None
        first = self._ends[0]
        sink.ended(
            msgspec.structs.replace(
                first,
                finish_reasons=tuple(end.finish_reason for end in self._ends),
                prefill_us=sum(end.prefill_us for end in self._ends),
                decode_us=sum(end.decode_us for end in self._ends),
                tokens=sum(end.tokens for end in self._ends),
            )
        )

    def failed(self, failure: AttemptFailure) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.failed(failure)

    def pressure(self) -> bool:
        self._paused = self._sink is not None and self._sink.pressure()
        return self._paused

    # --- inside

    def _next(self) -> None:
        self._due = False
        if self._sink is not None:
            job = self._job
            seed = (job.seed + len(self._ends)) % _SEEDS
            self._handle = self._begin(msgspec.structs.replace(job, n=1, seed=seed), self)
