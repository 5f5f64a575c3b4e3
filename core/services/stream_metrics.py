"""What `metrics` frames of a stream tell: queue, chances, rate and GPUs as they are just now (STR-5).

They are for readers who ask. Such a reader has one timer; nothing is computed for a token, and a frame is read from head
only when it is about to be sent. Whoever has no room, is behind, or finds the server late gets none that time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..amounts import decimal
from ..journal.journal import Journal
from ..projections.tasks import TaskState
from .budgets import Remaining
from .dispatch import Dispatcher
from .gpus import GpuService

#: chance that a live task ends by its deadline, thousandths; ``None``: it has none
OnTime = Callable[[TaskState, int], int | None]


class StreamMetrics:
    """Reads head for metrics frames, and counts those that were dropped."""

    def __init__(
        self,
        journal: Journal,
        dispatcher: Dispatcher,
        gpus: GpuService,
        on_time: OnTime,
        remaining: Callable[[str, str], Remaining | None] = lambda _owner, _session_id: None,
    ) -> None:
        self._remaining = remaining
        self._journal = journal
        self._dispatcher = dispatcher
        self._gpus = gpus
        self._on_time = on_time
        #: frames that were due and not sent
        self.dropped = 0

    def meter(self, state: TaskState, now_s: float) -> Meter:
        """What one reader is told of a task."""
        return Meter(self, state, now_s)

    def overloaded(self) -> bool:
        """Whether the journal has more waiting than it can write."""
        return self._journal.pressure()

    def read(self, state: TaskState) -> dict[str, Any]:
        """All that is known of a task's surroundings; what is not known is left out."""
        head = self._journal.head
        queue = head.queue.groups.get(state.admitted.group)
        told: dict[str, Any] = {
            "queue_depth": 0 if queue is None else sum(len(queue.lane(p)) for p in ("interactive", "batch")),
        }
        position = head.queue.position(state.task_id)
        if position >= 0:
            told["queue_position"] = position
        chance = self._on_time(state, self._journal.now_ns())
        if chance is not None:
            told["on_time_probability"] = chance / 1000
        told |= budget_fields(self._remaining(state.admitted.owner, state.admitted.session_id))
        if state.started is not None:
            attempt = self._dispatcher.attempts.get(state.task_id)
            if not state.started.cache_prompt:
                told["kv_warmth"] = False
            elif attempt is not None and attempt.cached_tokens:
                told["kv_warmth"] = True
            elif state.started.kv_lost:
                told["kv_warmth"] = told["kv_migrated"] = False
            pool = head.pools.by_id.get(state.pool_id)
            gpus = self._gpus.of_pool(pool) if pool is not None else []
            if gpus:
                told["gpus"] = [
                    {
                        "device": gpu.uuid,
                        "utilization_percent": gpu.utilization_percent,
                        "vram_used_bytes": gpu.used_bytes,
                        "vram_total_bytes": gpu.total_bytes,
                    }
                    for gpu in gpus
                ]
        return told


def budget_fields(remaining: Remaining | None) -> dict[str, Any]:
    """What budgets still allow (BUD-2); what none of them bounds is left out."""
    told: dict[str, Any] = {}
    if remaining is not None and remaining.tokens is not None:
        told["tokens_budget_remaining"] = remaining.tokens
    if remaining is not None and remaining.decode_us is not None:
        told["time_budget_remaining_ms"] = remaining.decode_us // 1000
    if remaining is not None and remaining.cost_pico is not None:
        told["cost_budget_remaining"] = decimal(remaining.cost_pico)
    return told


class Meter:
    """The frames of one reader."""

    __slots__ = ("_metrics", "_since_s", "_state", "_tokens")

    def __init__(self, metrics: StreamMetrics, state: TaskState, now_s: float) -> None:
        self._metrics = metrics
        self._state = state
        self._tokens = state.tokens_out
        self._since_s = now_s

    def read(self, now_s: float) -> dict[str, Any]:
        """A frame's data; the rate is that since the last frame."""
        state = self._state
        told = self._metrics.read(state)
        if state.started is not None and now_s > self._since_s:
            told["tokens_per_second"] = round((state.tokens_out - self._tokens) / (now_s - self._since_s), 1)
        self._tokens, self._since_s = state.tokens_out, now_s
        return told

    def drop(self) -> None:
        """A frame was due, and the tokens or the journal come first."""
        self._metrics.dropped += 1

    def overloaded(self) -> bool:
        """Whether the server has better things to do."""
        return self._metrics.overloaded()
