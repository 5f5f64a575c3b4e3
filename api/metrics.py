"""Prometheus metrics: a fold of committed events, and gauges read from head when somebody scrapes (OBS-1).

Names, labels and how many values a label may take stand in ``metrics_lint.toml``; values past a bound become "other".
Series of tasks are labelled with the pool that ran the task; while it waits, with its group's pool, or ``*`` where
several pools serve the group.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ..core.errors import BudgetExhaustedError
from ..core.events.pool import PoolDraining, PoolReady, PoolUnready
from ..core.events.task import TaskAdmitted, TaskCancelled, TaskEnded, TaskPlaced, TaskRejected, TaskStarted
from ..core.projections.projection import Recorded
from ..core.services.container import Services
from .gauges import PoolLabels, read_gpus, read_kv_cache

LINT_FILE = Path(__file__).with_name("metrics_lint.toml")
OTHER = "other"
#: pool of a task whose group has several
SEVERAL = "*"
Values = tuple[str, ...]
#: a task's pool, and its priority
TaskLabels = tuple[PoolLabels, str]

_HELP = {
    "tasks_enqueued_total": "Tasks that were admitted.",
    "tasks_started_total": "Tasks that an engine took.",
    "tasks_canceled_total": "Tasks that were cancelled, by reason.",
    "tasks_rejected_total": "Requests turned away before the queue, by code.",
    "budget_rejections_total": "Requests refused, and tasks ended, because a budget was used up.",
    "tokens_in_total": "Prompt tokens of ended tasks.",
    "tokens_out_total": "Tokens that ended tasks were given.",
    "admission_backpressure_events_total": "Requests that met a full queue, by its policy.",
    "placement_decisions_total": "Placement decisions.",
    "drain_events_total": "Drains of pools.",
    "pool_restarts_total": "Engine processes that took the place of earlier ones.",
    "preload_outcomes_total": "How attempts to bring a pool's engine up ended.",
    "driver_resets_total": "Engines that were lost because the GPU's driver reset.",
    "metrics_frames_dropped_total": "Metrics frames of streams that were due and not sent, because something came first.",
    "queue_depth": "Tasks that wait.",
    "placement_candidates_considered": "Pools that the last placement decision considered.",
    "model_state": "1 for the state that a model is in.",
    "kv_cache_usage_ratio": "Share of a pool's slots and context that the tokens of running tasks take, 0 to 1.",
    "gpu_utilization": "Share of time that a GPU was busy, 0 to 1; under each pool that is on it. Absent when not known.",
    "vram_used_bytes": "GPU memory: what a pool's engine was measured to take, and without a pool all the rest in use.",
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


class _Labels:
    """Which values each label has taken, up to its bound."""

    def __init__(self) -> None:
        self._bounds: dict[str, int] = lint()["bounds"]
        self._seen: dict[str, set[str]] = {}

    def bounded(self, names: Sequence[str], values: Values) -> Values:
        """The values, those past their label's bound as "other"."""
        return tuple(self._one(name, value) for name, value in zip(names, values, strict=True))

    def _one(self, name: str, value: str) -> str:
        seen = self._seen.setdefault(name, set())
        if value not in seen:
            if len(seen) >= self._bounds[name]:
                return OTHER
            seen.add(value)
        return value


class _Numbers:
    """A counter or a gauge: a number per combination of label values.

    Plain dictionaries, because prometheus-client's own counters cost 2 µs for each of a task's ten steps.
    """

    __slots__ = ("kind", "known", "labels", "name", "numbers")

    def __init__(self, name: str, kind: Callable[..., Any], labels: Sequence[str], known: _Labels) -> None:
        self.name = name
        self.kind = kind
        self.labels = labels
        self.known = known
        self.numbers: dict[Values, float] = {}

    def add(self, *values: str, by: float = 1) -> None:
        """Count."""
        if values not in self.numbers:
            values = self.known.bounded(self.labels, values)
        self.numbers[values] = self.numbers.get(values, 0) + by

    def set(self, *values: str, to: float) -> None:
        """Set a gauge."""
        self.numbers[self.known.bounded(self.labels, values)] = to

    def clear(self) -> None:
        """Forget: gauges are read anew at each scrape."""
        self.numbers.clear()

    def family(self) -> Metric:
        """As prometheus-client writes it."""
        family: Any = self.kind(self.name.removesuffix("_total"), _HELP[self.name], labels=self.labels)
        for values, number in self.numbers.items():
            family.add_metric(values, number)
        if not self.labels and not self.numbers:
            family.add_metric((), 0)
        return family  # type: ignore[no-any-return]


class _Histogram:
    """A histogram per combination of label values: counts per bucket, and the sum."""

    __slots__ = ("buckets", "known", "labels", "name", "rows")

    def __init__(self, name: str, labels: Sequence[str], buckets: Sequence[float], known: _Labels) -> None:
        self.name = name
        self.labels = labels
        self.buckets = buckets
        self.known = known
        self.rows: dict[Values, tuple[list[int], list[float]]] = {}

    def observe(self, *values: str, amount: float) -> None:
        """Count one observation."""
        if values not in self.rows:
            values = self.known.bounded(self.labels, values)
        row = self.rows.get(values)
        if row is None:
            row = self.rows[values] = ([0] * (len(self.buckets) + 1), [0.0])
        row[0][bisect_left(self.buckets, amount)] += 1
        row[1][0] += amount

    def family(self) -> Metric:
        """As prometheus-client writes it."""
        family = HistogramMetricFamily(self.name, _HELP[self.name], labels=self.labels)
        rows = self.rows or ({(): ([0] * (len(self.buckets) + 1), [0.0])} if not self.labels else {})
        for values, (counts, total) in rows.items():
            below = 0
            cumulated = []
            for bound, count in zip([*map(floatToGoString, self.buckets), "+Inf"], counts, strict=True):
                below += count
                cumulated.append((bound, below))
            family.add_metric(values, cumulated, total[0])
        return family


class Metrics(Collector):
    """All series of one server.

    :param services: whose journal is folded and read.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.registry = CollectorRegistry()
        self.registry.register(self)
        known, rules = _Labels(), lint()
        self._counters = {n: _Numbers(n, CounterMetricFamily, labels, known) for n, labels in rules["counters"].items()}
        self._gauges = {n: _Numbers(n, GaugeMetricFamily, labels, known) for n, labels in rules["gauges"].items()}
        self._histograms = {
            n: _Histogram(n, rule["labels"], rule["buckets"], known) for n, rule in rules["histograms"].items()
        }
        self._candidates = 0
        #: pool's labels (once it started) and priority of tasks that have not ended
        self._tasks: dict[str, TaskLabels] = {}
        #: equal labels are one object: a hundred thousand tasks may wait
        self._labels: dict[TaskLabels, TaskLabels] = {}
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
            self._histograms["journal_commit_ms"].observe(amount=commits[-1] * 1000)

    # --- labels ----------------------------------------------------------------------------------------------

    def _pool_labels(self, pool_id: str) -> PoolLabels:
        """engine, engine_version, pool_id, replica_id."""
        pool = self._services.journal.head.pools.by_id.get(pool_id)
        if pool is None:
            return "", "", pool_id, ""
        observed = pool.observed
        if observed is None:
            return pool.declared.engine, "", pool_id, ""
        return pool.declared.engine, observed.engine_version, pool_id, observed.replica_id

    def _group_labels(self, group: str) -> PoolLabels:
        pools = self._services.journal.head.pools.serving(group)
        if len(pools) == 1:
            return self._pool_labels(pools[0].declared.pool_id)
        engines = {p.declared.engine for p in pools}
        return (engines.pop() if len(engines) == 1 else SEVERAL), SEVERAL, SEVERAL, SEVERAL

    def _shared(self, pool: PoolLabels, priority: str) -> TaskLabels:
        labels = (pool, priority)
        return self._labels.setdefault(labels, labels)

    def _task_labels(self, task_id: str) -> TaskLabels:
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
        self._tasks[event.task_id] = self._shared(labels, event.priority)
        self._counters["tasks_enqueued_total"].add(*labels, event.priority)

    def _rejected(self, event: TaskRejected) -> None:
        head = self._services.journal.head
        group = head.pools.group_of(event.model_ref)
        engine = self._group_labels(group)[0] if group is not None else ""
        self._counters["tasks_rejected_total"].add(engine, event.code)
        if event.code == BudgetExhaustedError.code:
            self._counters["budget_rejections_total"].add("refused")
        if event.code in ("ADMISSION_REJECT", "QUEUE_FULL_DROP_LRU") and group is not None:
            dropping = any(p.declared.full_policy == "drop-lru" for p in head.pools.serving(group))
            self._counters["admission_backpressure_events_total"].add(engine, "drop-lru" if dropping else "reject")

    def _placed(self, event: TaskPlaced) -> None:
        decision = event.decision
        self._candidates = len(decision.candidates_considered)
        flags = ("true" if decision.pinned else "false", "true" if decision.fallback_used else "false")
        self._counters["placement_decisions_total"].add("placed" if event.attempt == 1 else "placed-again", *flags)

    def _started(self, event: TaskStarted) -> None:
        priority = self._task_labels(event.task_id)[1]
        pool = (event.engine, event.engine_version, event.pool_id, event.replica_id)
        self._tasks[event.task_id] = self._shared(pool, priority)
        self._counters["tasks_started_total"].add(*pool, priority)
        off_by = abs(event.queue_time_ms - event.predicted_start_ms)
        self._histograms["start_estimate_error_ms"].observe(event.engine, event.pool_id, amount=off_by)

    def _cancelled(self, event: TaskCancelled) -> None:
        labels, _ = self._task_labels(event.task_id)
        self._counters["tasks_canceled_total"].add(*labels, event.reason)
        if event.reason == "drop-lru":
            self._counters["admission_backpressure_events_total"].add(labels[0], "drop-lru")

    def _ended(self, event: TaskEnded) -> None:
        labels, priority = self._task_labels(event.task_id)
        self._tasks.pop(event.task_id, None)
        if event.code == BudgetExhaustedError.code:
            self._counters["budget_rejections_total"].add("ended")
        if event.prompt_tokens:
            self._counters["tokens_in_total"].add(*labels, by=event.prompt_tokens)
        if event.tokens_out:
            self._counters["tokens_out_total"].add(*labels, by=event.tokens_out)
            engine, version, pool_id, _ = labels
            of = (engine, version, pool_id, priority)
            self._histograms["latency_first_token_ms"].observe(*of, amount=event.queue_ms + event.prefill_ms)
            self._histograms["latency_decode_ms"].observe(*of, amount=event.decode_ms)

    def _pool_ready(self, event: PoolReady) -> None:
        engine = self._pool_labels(event.pool_id)[0]
        self._counters["preload_outcomes_total"].add(engine, event.pool_id, "ready")
        before = self._generations.get(event.pool_id)
        self._generations[event.pool_id] = event.generation
        if before is not None and before != event.generation:
            self._counters["pool_restarts_total"].add(engine, event.pool_id)

    def _pool_unready(self, event: PoolUnready) -> None:
        if event.cause in ("starting", "loading", "shutdown"):
            return
        engine = self._pool_labels(event.pool_id)[0]
        self._counters["preload_outcomes_total"].add(engine, event.pool_id, "failed")
        if event.cause == "driver-reset":
            self._counters["driver_resets_total"].add(engine, event.pool_id)

    def _pool_draining(self, event: PoolDraining) -> None:
        engine = self._pool_labels(event.pool_id)[0]
        self._counters["drain_events_total"].add(engine, event.pool_id, "requested")

    # --- scraping --------------------------------------------------------------------------------------------

    def exposition(self) -> bytes:
        """Prometheus' text format, with the gauges as they are now."""
        return generate_latest(self.registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing to check at registration: the registry has this collector alone."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All series, with the gauges as they are now."""
        self._read_gauges()
        for numbers in (*self._counters.values(), *self._gauges.values()):
            yield numbers.family()
        for histogram in self._histograms.values():
            yield histogram.family()

    def _read_gauges(self) -> None:
        services, gauges = self._services, self._gauges
        head = services.journal.head
        for name in ("queue_depth", "model_state", "active_leases", "pool_ready"):
            gauges[name].clear()
        groups = {p.declared.model_ref for p in head.pools.by_id.values()} | set(head.queue.groups)
        for group in sorted(groups):
            queue = head.queue.groups.get(group)
            labels = self._group_labels(group)[:3]
            for priority in ("interactive", "batch"):
                depth = len(queue.lane(priority)) if queue is not None else 0
                gauges["queue_depth"].set(*labels, priority, to=depth)
        ready: dict[str, bool] = {}
        for pool_id, pool in sorted(head.pools.by_id.items()):
            labels_of_pool = self._pool_labels(pool_id)
            gauges["active_leases"].set(*labels_of_pool, to=head.leases.count(pool_id))
            gauges["pool_ready"].set(*labels_of_pool, to=int(pool.ready))
            ready[pool.declared.model_ref] = ready.get(pool.declared.model_ref, False) or pool.ready
        for model, is_ready in sorted(ready.items()):
            gauges["model_state"].set(model, "ready", to=int(is_ready))
            gauges["model_state"].set(model, "unready", to=int(not is_ready))
        gauges["placement_candidates_considered"].set(to=self._candidates)
        now_ns = services.journal.now_ns()
        gauges["active_sessions"].set(to=sum(not session.due(now_ns) for session in head.sessions.by_id.values()))
        gauges["active_streams"].set(to=services.readers.open)
        gauges["journal_ok"].set(to=int(services.journal.status == "ok"))
        self._counters["metrics_frames_dropped_total"].set(to=services.streams.metrics_dropped)
        read_kv_cache(services, gauges["kv_cache_usage_ratio"], self._pool_labels)
        read_gpus(services, gauges["gpu_utilization"], gauges["vram_used_bytes"], self._pool_labels)
