"""Time and ids as inputs."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable

START_NS = 1_700_000_000_000_000_000


class ManualClock:
    """A clock that tests set.

    :param elapsed_s: seconds that passed by themselves, such as the time of a stepped loop.
    """

    def __init__(self, now_ns: int = START_NS, elapsed_s: Callable[[], float] = lambda: 0.0) -> None:
        self._wall_ns = now_ns
        self._steady_ns = 1_000_000_000
        self._elapsed_s = elapsed_s
        self._start_s = elapsed_s()

    def _elapsed_ns(self) -> int:
        return round((self._elapsed_s() - self._start_s) * 1e9)

    def now_ns(self) -> int:
        return self._wall_ns + self._elapsed_ns()

    def monotonic_ns(self) -> int:
        return self._steady_ns + self._elapsed_ns()

    def advance_ms(self, milliseconds: float) -> None:
        """Both clocks go on."""
        self._wall_ns += int(milliseconds * 1_000_000)
        self._steady_ns += int(milliseconds * 1_000_000)

    def set_back_ms(self, milliseconds: float) -> None:
        """Somebody corrects the wall clock."""
        self._wall_ns -= int(milliseconds * 1_000_000)


class Ids:
    """Ids in order: the n-th is always the same."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def __call__(self) -> str:
        return str(uuid.UUID(int=next(self._numbers)))
