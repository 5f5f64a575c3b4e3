"""When to try again after a failure: exponential pauses with jitter, and a circuit breaker behind them. Pure.

::

    CLOSED --failure--> CLOSED, after a pause that doubles
    CLOSED --too many failures within the window, or one that only a person can mend--> OPEN
    OPEN --its pause is over--> HALF_OPEN: one single try
    HALF_OPEN --failure--> OPEN, for twice as long
    CLOSED, HALF_OPEN --ready for the stable time--> CLOSED, and all is forgiven
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from msgspec import Struct

from .timing import Timing


class Circuit(enum.StrEnum):
    """Whether starts are tried."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Pause(Struct, frozen=True):
    """What follows from a failure."""

    delay_ms: int
    #: the circuit is open now
    opened: bool


class Breaker:
    """Counts the failures of one engine.

    Args:
        timing: pauses and bounds.
        jitter: 0 to 1 at each call; up to half of a pause is taken away by it, so that many pools do not restart in step.
    """

    def __init__(self, timing: Timing, jitter: Callable[[], float]) -> None:
        self._timing = timing
        self._jitter = jitter
        self.circuit = Circuit.CLOSED
        #: failures in a row, since it was stable
        self.failures = 0
        #: times of failures within the window, oldest first
        self._recent: list[int] = []
        #: how often it opened in a row
        self._opened = 0

    @property
    def recent(self) -> int:
        """Failures within the window, as of the last one."""
        return len(self._recent)

    def failed(self, now_ms: int, *, permanent: bool = False) -> Pause:
        """A start, or what ran, failed. :param permanent: trying again cannot help by itself."""
        timing = self._timing
        self.failures += 1
        self._recent = [at for at in self._recent if at > now_ms - timing.breaker_window_ms] + [now_ms]
        if permanent:
            self.circuit = Circuit.OPEN
            return Pause(self._jittered(timing.permanent_ms), True)
        many = 0 < timing.breaker_failures <= len(self._recent)
        if self.circuit is Circuit.HALF_OPEN or many:
            self.circuit = Circuit.OPEN
            self._opened += 1
            full_ms = min(timing.open_first_ms * 2 ** min(self._opened - 1, 40), timing.open_last_ms)
            return Pause(self._jittered(full_ms), True)
        full_ms = min(timing.backoff_first_ms * 2 ** min(self.failures - 1, 40), timing.backoff_last_ms)
        return Pause(self._jittered(full_ms), False)

    def tries(self) -> None:
        """A start begins."""
        if self.circuit is Circuit.OPEN:
            self.circuit = Circuit.HALF_OPEN

    def served(self, ready_ms: int) -> None:
        """It was ready for so long."""
        if ready_ms >= self._timing.stable_ms:
            self.reset()

    def reset(self) -> None:
        """Forgive everything."""
        self.circuit = Circuit.CLOSED
        self.failures = self._opened = 0
        self._recent = []

    def _jittered(self, full_ms: int) -> int:
        return round(full_ms * (0.5 + 0.5 * self._jitter()))
