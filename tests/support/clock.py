"""Time and ids as inputs."""

from __future__ import annotations

import itertools
import uuid

START_NS = 1_700_000_000_000_000_000


class ManualClock:
    """A clock that tests set."""

    def __init__(self, now_ns: int = START_NS) -> None:
        self.wall_ns = now_ns
        self.steady_ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.wall_ns

    def monotonic_ns(self) -> int:
        return self.steady_ns

    def advance_ms(self, milliseconds: float) -> None:
        """Both clocks go on."""
        self.wall_ns += int(milliseconds * 1_000_000)
        self.steady_ns += int(milliseconds * 1_000_000)


class Ids:
    """Ids in order: the n-th is always the same."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def __call__(self) -> str:
        return str(uuid.UUID(int=next(self._numbers)))
