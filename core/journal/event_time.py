"""The time of events: the clock's, but it never runs backwards and never stands still."""

from __future__ import annotations

from ..ports import Clock


class EventTime:
    """Follows the wall clock.

    When somebody sets the clock back, event time goes on at half the pace until the clock has caught up: what is due in
    a moment must not have to wait for as long as the clock was wrong.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_ns = 0
        self._steady_ns = clock.monotonic_ns()

    def now_ns(self, floor_ns: int) -> int:
        """Unix time, nanoseconds, not before ``floor_ns``, nor before the last answer."""
        steady = self._clock.monotonic_ns()
        passed, self._steady_ns = steady - self._steady_ns, steady
        self._last_ns = max(self._clock.now_ns(), floor_ns, self._last_ns + passed // 2)
        return self._last_ns
