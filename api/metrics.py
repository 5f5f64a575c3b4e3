"""Prometheus metrics: a fold of committed events, and gauges read from head when somebody scrapes (OBS-1).

Names, labels and how many values a label may take stand in ``metrics_lint.toml``; values past a bound become "other".
Series of tasks are labelled with the pool that ran the task; while it waits, with its group's pool, or ``*`` where
several pools serve the group.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from ..core.events.pool import PoolDraining, PoolReady, PoolUnready
from ..core.events.task import TaskAdmitted, TaskCancelled, TaskEnded, TaskPlaced, TaskRejected, TaskStarted
from ..core.projections.projection import Recorded

LINT_FILE = Path(__file__).with_name("metrics_lint.toml")
OTHER = "other"
#: pool of a task whose group has several
SEVERAL = "*"

_HELP = {
    "tasks_enqueued_total": "Tasks that were admitted.",
    "tasks_started_total": "Tasks that an engine took.",
    "tasks_canceled_total": "Tasks that were cancelled, by reason.",
    "tasks_rejected_total": "Requests turned away before the queue, by code.",
    "tokens_in_total": "Prompt tokens of ended tasks.",
    "tokens_out_total": "Tokens that ended tasks were given.",
    "admission_backpressure_events_total": "Requests that met a full queue, by its policy.",
    "placement_decisions_total": "Placement decisions.",
    "drain_events_total": "Drains of pools.",
    "pool_restarts_total": "Engine processes that took the place of earlier ones.",
    "preload_outcomes_total": "How attempts to bring a pool's engine up ended.",
    "queue_depth": "Tasks that wait.",
    "placement_candidates_considered": "Pools that the last placement decision considered.",
    "model_state": "1 for the state that a model is in.",
    "active_leases": "Slots that are promised or in use.",
    "active_sessions": "Open sessions.",
    "active_streams": "Readers of streams, and requests that wait for a task's end.",
    "pool_ready": "1 when the pool takes tasks.",
    "journal_ok": "1 when the journal can be written.",
    "latency_first_token_ms": "Milliseconds from admission to the first token.",
    "latency_decode_ms": "Milliseconds from the first token to the last.",
    "start_estimate_error_ms": "Milliseconds between the predicted and the real start, without sign.",
    "journal_commit_ms": "Milliseconds that commits with facts took.",
}


@cache
def lint() -> dict[str, Any]:
    """The lint file."""
    return tomllib.loads(LINT_FILE.read_text())


class _Series:
    """One metric with its children, looked up without prometheus-client's checks."""

    __slots__ = ("_bounds", "_children", "_labels", "_metric", "_seen")

    def __init__(self, metric: MetricWrapperBase, labels: Sequence[str], seen: dict[str, set[str]]) -> None:
        self._metric = metric
        self._labels = labels
        self._bounds = lint()["bounds"]
        self._seen = seen
        self._children: dict[tuple[str, ...], Any] = {}

    def of(self, *values: str) -> Any:
        """The child with these label values, as far as their bounds allow."""
        child = self._children.get(values)
        if child is None:
            bounded = tuple(self._bounded(name, value) for name, value in zip(self._labels, values, strict=True))
            child = self._metric.labels(*bounded) if bounded else self._metric
            if bounded == values:
                self._children[values] = child
        return child

    def _bounded(self, label: str, value: str) -> str:
        seen = self._seen.setdefault(label, set())
        if value not in seen:
            if len(seen) >= self._bounds[label]:
                return OTHER
            seen.add(value)
        return value

    def clear(self) -> None:
        """Forget all children: gauges are set anew at each scrape."""
        self._children.clear()
        if self._labels:
            self._metric.clear()


class Metrics:
    """All series of one server.

    :param services: whose journal is folded and read.
    """

    def __init__(self, services: Any) -> None:
        self._services = services
        self.registry = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        seen: dict[str, set[str]] = {}
        self._series: dict[str, _Series] = {}
        rules = lint()
        for name, labels in rules["counters"].items():
            counter = Counter(name.removesuffix("_total"), _HELP[name], labels, registry=self.registry)
            self._series[name] = _Series(counter, labels, seen)
        for name, labels in rules["gauges"].items():
            self._series[name] = _Series(Gauge(name, _HELP[name], labels, registry=self.registry), labels, seen)
        for name, rule in rules["histograms"].items():
            histogram = Histogram(name, _HELP[name], rule["labels"], buckets=rule["buckets"], registry=self.registry)
            self._series[name] = _Series(histogram, rule["labels"], seen)
        self._candidates = 0
        #: pool's labels (once it started) and priority of tasks that have not ended
        self._tasks: dict[str, tuple[tuple[str, str, str, str], str]] = {}
        self._generations: dict[str, int] = {}
        self._folds: dict[type, Callable[[Any], None]] = {
            TaskAdmitted: self._admitted,
            TaskRejected: self._rejected,
            TaskPlaced: self._placed,
            TaskStarted: self._started,
            TaskCancelled: self._cancelled,
            TaskEnded: self._ended,
            PoolReady: self._pool_ready,
            PoolUnready: self._pool_unready,
            PoolDraining: self._pool_draining,
        }

    def subscribe(self) -> None:
        """Fold what the journal commits from here on."""
        self._services.journal.on_committed(self.fold)

    def fold(self, records: Sequence[Recorded]) -> None:
        """Count committed events in."""
        for record in records:
            fold = self._folds.get(type(record.payload))
            if fold is not None:
                fold(record.payload)
        commits = self._services.journal.commit_seconds
        if commits:
            self._series["journal_commit_ms"].of().observe(commits[-1] * 1000)

    # --- labels ----------------------------------------------------------------------------------------------

    def _pool_labels(self, pool_id: str) -> tuple[str, str, str, str]:
        """engine, engine_version, pool_id, replica_id."""
        pool = self._services.journal.head.pools.by_id.get(pool_id)
        if pool is None:
            return "", "", pool_id, ""
        observed = pool.observed
        if observed is None:
            return pool.declared.engine, "", pool_id, ""
        return pool.declared.engine, observed.engine_version, pool_id, observed.replica_id

    def _group_labels(self, group: str) -> tuple[str, str, str, str]:
        pools = self._services.journal.head.pools.serving(group)
        if len(pools) == 1:
            return self._pool_labels(pools[0].declared.pool_id)
        engines = {p.declared.engine for p in pools}
        return (engines.pop() if len(engines) == 1 else SEVERAL), SEVERAL, SEVERAL, SEVERAL

    def _task_labels(self, task_id: str) -> tuple[tuple[str, str, str, str], str]:
        """Pool's labels and priority of a task that has not ended, also one from before this process."""
        known = self._tasks.get(task_id)
        if known is not None:
            return known
        state = self._services.journal.head.tasks.get(task_id)
        if state is None:
            return ("", "", "", ""), ""
        if state.started is None:
            return self._group_labels(state.admitted.group), state.admitted.priority
        started = state.started
        return (started.engine, started.engine_version, started.pool_id, started.replica_id), state.admitted.priority

    # --- events ----------------------------------------------------------------------------------------------

    def _admitted(self, event: TaskAdmitted) -> None:
        labels = self._group_labels(event.group)
        self._tasks[event.task_id] = labels, event.priority
        self._series["tasks_enqueued_total"].of(*labels, event.priority).inc()

    def _rejected(self, event: TaskRejected) -> None:
        head = self._services.journal.head
        group = head.pools.group_of(event.model_ref)
        engine = self._group_labels(group)[0] if group is not None else ""
        self._series["tasks_rejected_total"].of(engine, event.code).inc()
        if event.code in ("ADMISSION_REJECT", "QUEUE_FULL_DROP_LRU") and group is not None:
            dropping = any(p.declared.full_policy == "drop-lru" for p in head.pools.serving(group))
            self._series["admission_backpressure_events_total"].of(engine, "drop-lru" if dropping else "reject").inc()

    def _placed(self, event: TaskPlaced) -> None:
        decision = event.decision
        self._candidates = len(decision.candidates_considered)
        flags = ("true" if decision.pinned else "false", "true" if decision.fallback_used else "false")
        self._series["placement_decisions_total"].of("placed" if event.attempt == 1 else "placed-again", *flags).inc()

    def _started(self, event: TaskStarted) -> None:
        priority = self._task_labels(event.task_id)[1]
        pool = (event.engine, event.engine_version, event.pool_id, event.replica_id)
        self._tasks[event.task_id] = pool, priority
        self._series["tasks_started_total"].of(*pool, priority).inc()
        off_by = abs(event.queue_time_ms - event.predicted_start_ms)
        self._series["start_estimate_error_ms"].of(event.engine, event.pool_id).observe(off_by)

    def _cancelled(self, event: TaskCancelled) -> None:
        labels, _ = self._task_labels(event.task_id)
        self._series["tasks_canceled_total"].of(*labels, event.reason).inc()
        if event.reason == "drop-lru":
            self._series["admission_backpressure_events_total"].of(labels[0], "drop-lru").inc()

    def _ended(self, event: TaskEnded) -> None:
        labels, priority = self._task_labels(event.task_id)
        self._tasks.pop(event.task_id, None)
        if event.prompt_tokens:
            self._series["tokens_in_total"].of(*labels).inc(event.prompt_tokens)
        if event.tokens_out:
            self._series["tokens_out_total"].of(*labels).inc(event.tokens_out)
            engine, version, pool_id, _ = labels
            first = self._series["latency_first_token_ms"].of(engine, version, pool_id, priority)
            first.observe(event.queue_ms + event.prefill_ms)
            self._series["latency_decode_ms"].of(engine, version, pool_id, priority).observe(event.decode_ms)

    def _pool_ready(self, event: PoolReady) -> None:
        engine = self._pool_labels(event.pool_id)[0]
        self._series["preload_outcomes_total"].of(engine, event.pool_id, "ready").inc()
        before = self._generations.get(event.pool_id)
        self._generations[event.pool_id] = event.generation
        if before is not None and before != event.generation:
            self._series["pool_restarts_total"].of(engine, event.pool_id).inc()

    def _pool_unready(self, event: PoolUnready) -> None:
        if event.cause in ("starting", "shutdown"):
            return
        engine = self._pool_labels(event.pool_id)[0]
        self._series["preload_outcomes_total"].of(engine, event.pool_id, "failed").inc()

    def _pool_draining(self, event: PoolDraining) -> None:
        engine = self._pool_labels(event.pool_id)[0]
        self._series["drain_events_total"].of(engine, event.pool_id, "requested").inc()

    # --- scraping --------------------------------------------------------------------------------------------

    def exposition(self) -> bytes:
        """Prometheus' text format, with the gauges as they are now."""
        self._read_gauges()
        return generate_latest(self.registry)

    def _read_gauges(self) -> None:
        services, series = self._services, self._series
        head = services.journal.head
        for name in ("queue_depth", "model_state", "active_leases", "pool_ready"):
            series[name].clear()
        groups = {p.declared.model_ref for p in head.pools.by_id.values()} | set(head.queue.groups)
        for group in sorted(groups):
            queue = head.queue.groups.get(group)
            labels = self._group_labels(group)[:3]
            for priority in ("interactive", "batch"):
                depth = len(queue.lane(priority)) if queue is not None else 0
                series["queue_depth"].of(*labels, priority).set(depth)
        ready: dict[str, bool] = {}
        for pool_id, pool in sorted(head.pools.by_id.items()):
            labels_of_pool = self._pool_labels(pool_id)
            series["active_leases"].of(*labels_of_pool).set(head.leases.count(pool_id))
            series["pool_ready"].of(*labels_of_pool).set(int(pool.ready))
            ready[pool.declared.model_ref] = ready.get(pool.declared.model_ref, False) or pool.ready
        for model, is_ready in sorted(ready.items()):
            series["model_state"].of(model, "ready").set(int(is_ready))
            series["model_state"].of(model, "unready").set(int(not is_ready))
        series["placement_candidates_considered"].of().set(self._candidates)
        series["active_sessions"].of().set(len(head.sessions.by_id))
        series["active_streams"].of().set(services.readers.open)
        series["journal_ok"].of().set(int(services.journal.status == "ok"))
