"""What a pool asks of whoever makes its workers and remembers them on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from .preparing import Order, Prepared
from .worker import Worker, WorkerEvents


class Workshop(Protocol):
    """Makes workers; the manager's side of a pool."""

    def worker(
        self,
        pool_id: str,
        seat_name: str,
        order: Order,
        prepare: Callable[[threading.Event, bool], Prepared],
        events: WorkerEvents,
        next_generation: Callable[[], int],
        *,
        any_port: bool,
        epoch: int,
    ) -> Worker:
        """A worker that is not started yet."""
        ...

    def seat_of(self, pool_id: str, names: tuple[str, ...], order: Order) -> str | None:
        """Which of these seats has an engine of this order running; ``None`` = none of them."""
        ...

    def clear(self, pool_id: str, name: str) -> None:
        """End what an earlier run of this program left in a seat."""
        ...

    def last_generation(self, pool_id: str, names: tuple[str, ...]) -> int:
        """The highest generation that was recorded."""
        ...

    def ended(self) -> None:
        """An engine ended just now: its memory may be told as taken for a moment."""
        ...

    def settle_s(self) -> float:
        """How long free memory may still look taken."""
        ...
