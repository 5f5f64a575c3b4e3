"""What a simulation watches: when tasks came, started and ended, and whom others overtook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from ..core.events.pool import PoolDraining, PoolLoading, PoolReady, PoolUndrained, PoolUnloading, PoolUnready
from ..core.events.task import TaskAdmitted, TaskEnded, TaskPlaced, TaskStarted
from ..core.projections.projection import Recorded
from .clock import START_NS
from .hosts import ModelledHost
from .report import Report, waits_of
from .rig import Rig
from .trace import TraceTask

_MS = 1_000_000


class Seen(Struct):
    """One task's life; times are Unix ns, 0 = not yet."""

    group: str
    order: int
    admitted_ns: int
    placed_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    outcome: str = ""
    tokens_out: int = 0
    #: since when a task that came after it had been started where it could have run
    overtaken_ns: int = 0
    #: time since then in which no pool of its group took tasks
    unserved_ns: int = 0
    #: since when it waits overtaken and unserved
    unserved_since_ns: int = 0


class Observer:
    """Hears every committed fact."""

    def __init__(self, rig: Rig, trace: Sequence[TraceTask]) -> None:
        self._trace = trace
        self._pools = {pool.pool_id: pool for pool in rig.pools}
        self.tasks: dict[str, Seen] = {}
        self._waiting: dict[str, Seen] = {}
        self._serving: dict[str, set[str]] = {}
        self._refused: dict[int, str] = {}
        #: per model: why the first of its tasks got no answer
        self._unserved: dict[str, str] = {}
        #: models that left so that another could be loaded
        self.swaps = 0
        #: pools that were loaded, with the devices that they are on
        self._on: dict[str, tuple[str, ...]] = {}
        self.passed_over_ms = 0
        self.passed_over_in_all_ms = 0

    def refused(self, number: int, model: str, why: str) -> None:
        """A task was turned away."""
        self._refused[number] = why
        self._unserved.setdefault(model, why)

    def note(self, records: list[Recorded]) -> None:
        """Facts were committed."""
        for record in records:
            event: Any = record.payload
            now_ns = record.time_ns
            if isinstance(event, TaskAdmitted):
                seen = Seen(event.group, len(self.tasks), now_ns)
                self.tasks[event.task_id] = self._waiting[event.task_id] = seen
            elif isinstance(event, TaskPlaced):
                self._placed(event.task_id, event.pool_id, now_ns)
            elif isinstance(event, TaskStarted):
                seen = self.tasks[event.task_id]
                seen.started_ns = seen.started_ns or now_ns
            elif isinstance(event, TaskEnded):
                seen = self.tasks[event.task_id]
                seen.ended_ns, seen.outcome, seen.tokens_out = now_ns, event.outcome, event.tokens_out
                self._waiting.pop(event.task_id, None)
                if event.outcome == "failed":
                    self._unserved.setdefault(seen.group, event.message)
            elif isinstance(event, PoolLoading):
                self._on[event.pool_id] = tuple(event.devices)
            elif isinstance(event, PoolReady | PoolUndrained):
                self._serves(event.pool_id, now_ns, begins=True)
            elif isinstance(event, PoolUnready | PoolDraining | PoolUnloading):
                self.swaps += isinstance(event, PoolUnloading) and event.cause == "swap"
                self._serves(event.pool_id, now_ns, begins=False)

    # --- who is passed over --------------------------------------------------------------------------------------

    def _serves(self, pool_id: str, now_ns: int, *, begins: bool) -> None:
        """A pool begins or ceases to take tasks: for those who wait for its group a clock stops or goes on."""
        group = self._pools[pool_id].model
        pools = self._serving.setdefault(group, set())
        before = bool(pools)
        (pools.add if begins else pools.discard)(pool_id)
        if before == bool(pools):
            return
        for seen in self._waiting.values():
            if seen.group != group or not seen.overtaken_ns:
                continue
            if pools:
                seen.unserved_ns += now_ns - seen.unserved_since_ns
                seen.unserved_since_ns = 0
            else:
                seen.unserved_since_ns = now_ns

    def _placed(self, task_id: str, pool_id: str, now_ns: int) -> None:
        mine = self.tasks[task_id]
        mine.placed_ns = mine.placed_ns or now_ns
        self._waiting.pop(task_id, None)
        if mine.overtaken_ns:
            if mine.unserved_since_ns:
                mine.unserved_ns += now_ns - mine.unserved_since_ns
            self.passed_over_ms = max(self.passed_over_ms, mine.unserved_ns // _MS)
            self.passed_over_in_all_ms = max(self.passed_over_in_all_ms, (now_ns - mine.overtaken_ns) // _MS)
        devices = set(self._on.get(pool_id, ()))
        for other in self._waiting.values():
            if other.order >= mine.order or other.overtaken_ns or other.group == mine.group:
                continue
            if any(devices & set(p.devices) for p in self._pools.values() if p.model == other.group):
                other.overtaken_ns = now_ns
                if not self._serving.get(other.group):
                    other.unserved_since_ns = now_ns

    # --- the end -------------------------------------------------------------------------------------------------

    def report(
        self,
        *,
        name: str,
        hosts: Sequence[ModelledHost],
        elapsed_us: int,
        busy_us: Mapping[str, int],
        violations: list[str],
        peak_bytes: Mapping[str, int],
        digest: str,
        waits: Mapping[str, str],
    ) -> Report:
        """All numbers."""
        ends_ns = START_NS + elapsed_us * 1000
        for seen in self._waiting.values():
            # Who waits at the end was passed over until then, at least.
            unserved = seen.unserved_ns + (ends_ns - seen.unserved_since_ns if seen.unserved_since_ns else 0)
            self.passed_over_ms = max(self.passed_over_ms, unserved // _MS)
        tasks = list(self.tasks.values())
        return Report(
            name=name,
            tasks=len(self._trace),
            completed=sum(t.outcome == "completed" for t in tasks),
            failed=sum(t.outcome == "failed" for t in tasks),
            refused=len(self._refused),
            elapsed_ms=elapsed_us // 1000,
            start=waits_of([((t.started_ns or ends_ns) - t.admitted_ns) // _MS for t in tasks]),
            end=waits_of([((t.ended_ns or ends_ns) - t.admitted_ns) // _MS for t in tasks]),
            loads=sum(h.loads for h in hosts),
            swaps=self.swaps,
            loaded_bytes=sum(h.loaded_bytes for h in hosts),
            load_ms=sum(h.load_ms for h in hosts),
            tokens_out=sum(t.tokens_out for t in tasks),
            prompt_tokens=sum(h.prompt_tokens for h in hosts),
            cached_tokens=sum(h.cached_tokens for h in hosts),
            busy_permille={d: us * 1000 // max(1, elapsed_us) for d, us in sorted(busy_us.items())},
            peak_bytes=dict(sorted(peak_bytes.items())),
            passed_over_ms=self.passed_over_ms,
            passed_over_in_all_ms=self.passed_over_in_all_ms,
            violations=violations,
            unserved=dict(sorted(self._unserved.items())),
            digest=digest,
            waits=dict(sorted(waits.items())),
        )
