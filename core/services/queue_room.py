"""Room in a group's queue: what happens when there is none, and when to hold back before that (ADM-4)."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import BackpressureError, DroppedError
from ..events.task import TaskCancelled
from ..journal.journal import Journal
from ..projections.pools import PoolState
from .ends import end_of

#: bounds of what a client is told to wait, milliseconds
_LEAST_MS, _MOST_MS = 100, 60_000


class QueueRoom:
    """Keeps queues within their capacity.

    :param slot_is_free: whether a task could start at once with so many before it.
    :param first_start_ms: when a task at the head of a group's queue starts, from now.
    """

    def __init__(
        self,
        journal: Journal,
        slot_is_free: Callable[[str, int], bool],
        first_start_ms: Callable[[str], int],
    ) -> None:
        self._journal = journal
        self._slot_is_free = slot_is_free
        self._first_start_ms = first_start_ms

    def make(self, group: str, pools: list[PoolState]) -> list[object]:
        """Events that make room in a full queue. :raises BackpressureError: there is none to make."""
        capacity, depth = self._fill(group, pools)
        if depth < capacity or self._slot_is_free(group, depth):
            return []
        policy = "drop-lru" if any(p.declared.full_policy == "drop-lru" for p in pools) else "reject"
        queue = self._journal.head.queue.groups.get(group)
        if policy == "drop-lru" and queue is not None:
            oldest = queue.batch.first()
            if oldest is not None:
                return self._drop(oldest[1])
        msg = f"the queue of {group!r} is full ({depth} of {capacity})"
        wait_ms = max(_LEAST_MS, min(_MOST_MS, self._first_start_ms(group)))
        raise BackpressureError(msg, retry_after_ms=wait_ms, policy_label=policy, queue_depth=depth)

    def backoff_ms(self, group: str, pools: list[PoolState]) -> int:
        """How long a client shall hold back its next task, so that the queue never fills; 0 = not at all.

        Nothing while the queue is less than half full; from there on the time in which one task leaves it, up to twice
        that as it gets full: who keeps to it sends more slowly than the queue drains.
        """
        capacity, depth = self._fill(group, pools)
        if not capacity or 2 * depth < capacity or self._slot_is_free(group, depth):
            return 0
        return max(_LEAST_MS, min(_MOST_MS, self._first_start_ms(group) * 2 * depth // capacity))

    def _fill(self, group: str, pools: list[PoolState]) -> tuple[int, int]:
        """Capacity and depth."""
        queue = self._journal.head.queue.groups.get(group)
        return sum(p.declared.queue_capacity for p in pools), len(queue) if queue is not None else 0

    def _drop(self, task_id: str) -> list[object]:
        state = self._journal.head.tasks.live[task_id]
        return [
            TaskCancelled(task_id=task_id, reason="drop-lru"),
            end_of(
                self._journal.head,
                state,
                self._journal.now_ns(),
                "failed",
                "error",
                code=DroppedError.code,
                message="dropped from the full queue as its oldest batch task",
                retriable=True,
            ),
        ]
