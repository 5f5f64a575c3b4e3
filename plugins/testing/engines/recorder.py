"""A sink that keeps what it hears, for tests of engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ....core.engine_ports import AttemptEnd, AttemptFailure, AttemptStart
from ....core.entries import EntryBatch
from ....core.types import Entry

#: a test that hangs is told apart from one that fails, in seconds
PATIENCE_S: Final = 60.0


class Recorder:
    """A sink that keeps what it hears, and notes every breach of the sink's rules in ``breaches``.

    Args:
        pause_after: ask for a pause (once) as soon as so many entries are there; 0 = never.
    """

    def __init__(self, *, pause_after: int = 0) -> None:
        self.start: AttemptStart | None = None
        self.batches: list[EntryBatch] = []
        self.outcome: AttemptEnd | AttemptFailure | None = None
        self.breaches: list[str] = []
        #: calls so far
        self.heard = 0
        self.muted = False
        self.on_entries: Callable[[], None] | None = None
        self._pause_after = pause_after
        self._changed = asyncio.Event()

    # --- AttemptSink

    def started(self, start: AttemptStart) -> None:
        """The engine took the job."""
        self._hear("started")
        if self.start is not None or self.batches:
            self.breaches.append("started came twice or late")
        self.start = start

    def entries(self, batch: EntryBatch) -> None:
        """The engine said something."""
        self._hear("entries")
        if self.start is None:
            self.breaches.append("entries came before started")
        if len(batch) == 0:
            self.breaches.append("an empty batch came")
        self.batches.append(batch)
        if self.on_entries is not None:
            self.on_entries()

    def ended(self, end: AttemptEnd) -> None:
        """The engine finished."""
        self._hear("ended")
        if self.start is None:
            self.breaches.append("ended came before started")
        self.outcome = end

    def failed(self, failure: AttemptFailure) -> None:
        """The attempt broke off."""
        self._hear("failed")
        self.outcome = failure

    def pressure(self) -> bool:
        """Whether the engine's reader shall pause."""
        if self._pause_after and self.count >= self._pause_after:
            self._pause_after = 0
            return True
        return False

    # --- for tests

    @property
    def count(self) -> int:
        """Entries so far."""
        return sum(len(batch) for batch in self.batches)

    @property
    def tokens(self) -> int:
        """Tokens so far, as the entries tell."""
        return sum(batch.token_count for batch in self.batches)

    @property
    def text(self) -> str:
        """All text so far, of whatever channel."""
        return "".join(text for batch in self.batches for text in batch.texts)

    @property
    def all(self) -> list[Entry]:
        """The entries so far, one by one."""
        return [entry for batch in self.batches for entry in batch.entries()]

    @property
    def channels(self) -> dict[tuple[int, str], str]:
        """The text so far by choice and channel: what has to be the same when a job is done again."""
        said: dict[tuple[int, str], str] = {}
        for entry in self.all:
            key = (entry.choice, entry.channel)
            said[key] = said.get(key, "") + entry.text
        return {key: text for key, text in said.items() if text}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something heard makes a condition true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def over(self) -> AttemptEnd | AttemptFailure:
        """Wait for the end or failure."""
        await self.until(lambda: self.outcome is not None)
        assert self.outcome is not None
        return self.outcome

    async def end(self) -> AttemptEnd:
        """Wait for a proper end, kept by all the rules."""
        outcome = await self.over()
        assert isinstance(outcome, AttemptEnd), outcome
        assert self.breaches == []
        return outcome

    async def failure(self) -> AttemptFailure:
        """Wait for a failure, kept by all the rules."""
        outcome = await self.over()
        assert isinstance(outcome, AttemptFailure), outcome
        assert self.breaches == []
        return outcome

    def _hear(self, what: str) -> None:
        self.heard += 1
        if self.outcome is not None:
            self.breaches.append(f"{what} came after the end")
        if self.muted:
            self.breaches.append(f"{what} came after the cancel")
        self._changed.set()
