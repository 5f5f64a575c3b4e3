"""The committed tail of a live task in memory: segments, rendered once for all readers.

Only committed entries are here. Bytes are bounded; a reader that falls behind the oldest segment reads the
journal instead (STR-3), so neither the engine nor other readers ever wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from ..entries import EntryBatch
from ..errors import OrchError


class Segment(msgspec.Struct, gc=False):
    """Entries of a task that became readable together."""

    #: ordinal of the first entry; ordinals run from 1
    first_ordinal: int
    #: index of its first token among the task's tokens
    first_token: int
    epoch: int
    batch: EntryBatch
    #: bytes by name of the rendering; filled by whoever renders first
    rendered: dict[str, bytes]

    @property
    def end_ordinal(self) -> int:
        """Ordinal after the last entry."""
        return self.first_ordinal + len(self.batch.texts)

    def cost(self) -> int:
        """Bytes that the segment may take in memory, rendered, roughly."""
        return 400 + 160 * len(self.batch.texts)


class LiveStream:
    """Committed segments of one task, a bounded number of bytes of them, and who waits for more."""

    __slots__ = ("base", "broken", "bytes", "limit", "listeners", "segments", "task_id", "terminal")

    def __init__(self, task_id: str, limit: int, base: int = 1) -> None:
        self.task_id = task_id
        self.limit = limit
        self.segments: deque[Segment] = deque()
        #: ordinal of the oldest entry in memory
        self.base = base
        self.bytes = 0
        #: the terminal is committed
        self.terminal = False
        #: why readers have to come back later, when the journal was lost under them
        self.broken: OrchError | None = None
        self.listeners: set[Callable[[], None]] = set()

    def push(self, segment: Segment) -> None:
        """Add a committed segment; the oldest ones leave when there are too many bytes."""
        self.segments.append(segment)
        self.bytes += segment.cost()
        while self.bytes > self.limit and len(self.segments) > 1:
            old = self.segments.popleft()
            self.bytes -= old.cost()
            self.base = old.end_ordinal

    def from_ordinal(self, ordinal: int) -> list[Segment] | None:
        """Segments that hold this ordinal and later ones; ``None`` when memory does not reach back that far."""
        if ordinal < self.base:
            return None
        segments = self.segments
        if not segments or segments[-1].end_ordinal <= ordinal:
            return []
        if segments[-1].first_ordinal <= ordinal:
            return [segments[-1]]
        return [s for s in segments if s.end_ordinal > ordinal]

    def wake(self) -> None:
        """Tell everybody who waits that something changed."""
        for listener in tuple(self.listeners):
            listener()
