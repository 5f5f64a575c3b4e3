"""Time and ids of a simulation: the loop's time as a clock, ids and salts in order."""

from __future__ import annotations

import hashlib
import itertools
import uuid

from .loop import StepLoop

#: when simulations begin, Unix ns
START_NS = 1_700_000_000_000_000_000


class LoopClock:
    """Both clocks of a server whose time is that of a stepped loop."""

    def __init__(self, loop: StepLoop) -> None:
        self._loop = loop
        self._start_s = loop.time()

    def elapsed_us(self) -> int:
        """Microseconds since the simulation began."""
        return round((self._loop.time() - self._start_s) * 1_000_000)

    def now_ns(self) -> int:
        """Unix time, nanoseconds."""
        return START_NS + self.elapsed_us() * 1000

    def monotonic_ns(self) -> int:
        """Time that never runs backwards, nanoseconds."""
        return 1_000_000_000 + self.elapsed_us() * 1000


class Numbered:
    """Ids, seeds and salts that are the same in every run: the n-th follows from its number alone."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._seeds = itertools.count(1)
        self._salts = itertools.count(1)

    def new_id(self) -> str:
        """The next id."""
        return str(uuid.UUID(int=next(self._ids)))

    def new_seed(self) -> int:
        """The next seed."""
        return next(self._seeds)

    def salt(self, size: int) -> bytes:
        """The next salt."""
        return hashlib.shake_128(str(next(self._salts)).encode()).digest(size)


def named_id(name: str) -> str:
    """An id that follows from a name."""
    return str(uuid.UUID(bytes=hashlib.sha256(name.encode()).digest()[:16]))
