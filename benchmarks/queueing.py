"""A queue in simulated time over the real folds: what predictions are tuned and held against.

Engines are slots that share their speed, tasks come by a trace's rule, and everything that a server would journal is
folded into a real head, so that estimates see what they see in a server. Nothing here decides about placement beyond
first come, first served; the scheduler itself is what `llama_orch.simulator` runs.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llama_orch.core.events.lease import LeaseGranted, LeaseReleased
from llama_orch.core.events.pool import PoolDeclared, PoolReady
from llama_orch.core.events.task import (
    DecisionRecord,
    TaskAdmitted,
    TaskCancelled,
    TaskEnded,
    TaskPlaced,
    TaskStarted,
    TaskTranscribed,
)
from llama_orch.core.journal.pending import stream_name
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.projection import EntriesRecorded, Recorded
from llama_orch.core.projections.tasks import TaskState
from llama_orch.core.registry import type_of
from llama_orch.core.services.estimates import Estimator

_PATIENCE_NS = 60_000_000_000
_NOWHERE = DecisionRecord(
    selected_pool_id="",
    candidates_considered=[],
    filters_applied=[],
    scores_ms={},
    tie_breakers_applied=[],
    pinned=False,
    fallback_used=False,
    decision_reason="",
    policy="",
    policy_version="",
)


@dataclass
class Request:
    """One task as a trace brings it."""

    owner: str = "a"
    priority: str = "interactive"
    prompt_tokens: int = 200
    tokens: int = 100
    max_tokens: int = 0
    #: it is cancelled so long after it came, seconds; 0 = never
    patience_s: float = 0.0
    #: called at its end, with the time
    then: Callable[[float], None] | None = None


@dataclass
class PoolModel:
    """An engine: slots, and how fast it is."""

    pool_id: str
    group: str = "m"
    slots: int = 4
    token_s: float = 0.02
    #: what each further stream adds to a token's time, as a share
    crowding: float = 0.08
    prefill_token_s: float = 0.0004
    running: dict[str, _Job] = field(default_factory=dict)
    ready: bool = True


@dataclass
class _Job:
    request: Request
    task_id: str
    slot: int
    lease_id: str
    started_s: float
    #: seconds of prompt left to read, then tokens left to say
    prefill_s: float
    left: float
    at_s: float
    told: int = 0
    first_s: float = 0.0
    begun: bool = False


class Queueing:
    """The loop: a heap of times and what happens then."""

    def __init__(self, pools: list[PoolModel], seed: int, estimator: Estimator | None = None) -> None:
        self.head = Head()
        self.estimator = estimator or Estimator()
        self.random = random.Random(seed)
        self.pools = {p.pool_id: p for p in pools}
        self.now_s = 1_000_000.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._n = 0
        self._requests: dict[str, Request] = {}
        self._versions: dict[str, int] = {}
        #: (group, band, wait, low, middle, high) of everything that started
        self.outcomes: list[tuple[str, int, int, int, int]] = []
        self._predicted: dict[str, tuple[str, int, int, int]] = {}
        for pool in pools:
            self.fold(PoolDeclared(pool_id=pool.pool_id, engine="mock", model_ref=pool.group, slots=pool.slots))
            self._ready(pool)

    # --- time ------------------------------------------------------------------------------------------------

    def at(self, time_s: float, what: Callable[[], None]) -> None:
        """Something happens then."""
        self._n += 1
        heapq.heappush(self._heap, (max(time_s, self.now_s), self._n, what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Something happens so much later."""
        self.at(self.now_s + seconds, what)

    def run(self, upto_starts: int) -> None:
        """Until so many tasks have started."""
        while self._heap and len(self.outcomes) < upto_starts:
            self.now_s, _, what = heapq.heappop(self._heap)
            what()

    @property
    def now_ns(self) -> int:
        """As events have it."""
        return int(self.now_s * 1e9)

    def fold(self, payload: Any, task_id: str = "") -> Recorded:
        """An event is folded into head."""
        declared = type_of(payload)
        stream = stream_name(declared, payload)
        head = self.head
        record = Recorded(
            head.next_seq, head.next_seq, 1, stream, head.positions.get(stream, 0), declared.name, self.now_ns, "", "", payload
        )  # fmt: skip
        head.fold(record)
        return record

    # --- tasks -----------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A task comes."""
        self._n += 1
        task_id = f"t{self._n}"
        group = "m"
        queue = self.head.queue.groups.get(group)
        ahead = 0
        if queue is not None:
            ahead = len(queue.interactive) if request.priority == "interactive" else len(queue)
        for pool in self.pools.values():
            self._bring_up(pool)
        found = self.estimator.start(
            self.head, group, ahead, self.now_ns, priority=request.priority, prompt_tokens=request.prompt_tokens
        )
        self._predicted[task_id] = (found.band, found.p10_ms, found.start_ms, found.p90_ms)
        self._requests[task_id] = request
        self.fold(
            TaskAdmitted(
                task_id=task_id,
                owner=request.owner,
                group=group,
                model_ref=group,
                workload="completion",
                priority=request.priority,
                body_id="b",
                request_digest="d",
                seed=1,
                prompt_tokens=request.prompt_tokens,
                max_tokens=request.max_tokens,
                queue_position=ahead,
                predicted_start_ms=found.start_ms,
                predicted_start_ms_p10=found.p10_ms,
                predicted_start_ms_p90=found.p90_ms,
                load_band=found.band,
                modelled_start_ms=list(found.model_ms),
            )
        )
        if request.patience_s:
            self.after(request.patience_s, lambda: self._cancel(task_id))
        self.pump()

    def pump(self) -> None:
        """Free slots take what is first."""
        while True:
            free = [p for p in self.pools.values() if p.ready and len(p.running) < p.slots]
            queue = self.head.queue.groups.get("m")
            first = None
            if queue is not None:
                patient = queue.batch.first()
                first = queue.interactive.first() or patient
                if patient is not None and self.now_ns - queue.batch_since_ns >= _PATIENCE_NS:
                    first = patient
            if not free or first is None:
                return
            self._place(min(free, key=lambda p: (len(p.running) / p.slots, p.pool_id)), first[1])

    def _place(self, pool: PoolModel, task_id: str) -> None:
        request = self._requests[task_id]
        slot = next(iter(self.head.leases.free_slots(pool.pool_id, pool.slots)), None)
        assert slot is not None
        self._n += 1
        lease_id = f"l{self._n}"
        self.fold(
            TaskPlaced(task_id=task_id, attempt=1, pool_id=pool.pool_id, replica_id="r0", decision=_NOWHERE), task_id
        )
        self.fold(LeaseGranted(lease_id=lease_id, pool_id=pool.pool_id, task_id=task_id, attempt=1, slot=slot))
        job = _Job(request, task_id, slot, lease_id, 0.0, 0.0, request.tokens, self.now_s)
        self._advance(pool)
        pool.running[task_id] = job
        # The engine takes it after a commit and a round trip.
        self.after(self.random.lognormvariate(math.log(0.004), 0.5), lambda: self._start(pool, task_id, job))

    def _start(self, pool: PoolModel, task_id: str, job: _Job) -> None:
        state = self.head.tasks.live.get(task_id)
        if state is None or pool.running.get(task_id) is not job:
            return
        wait_ms = (self.now_ns - state.admitted_ns) // 1_000_000
        self.fold(
            TaskStarted(
                task_id=task_id,
                attempt=1,
                pool_id=pool.pool_id,
                replica_id="r0",
                engine="mock",
                engine_version="1",
                seed=1,
                queue_time_ms=wait_ms,
                prompt_tokens=job.request.prompt_tokens,
            )
        )
        band, low, middle, high = self._predicted.pop(task_id)
        self.outcomes.append((band, wait_ms, low, middle, high))
        self._advance(pool)
        job.begun, job.started_s = True, self.now_s
        job.prefill_s = job.request.prompt_tokens * pool.prefill_token_s * self.random.uniform(0.9, 1.1)
        self._schedule(pool)

    # --- engines ---------------------------------------------------------------------------------------------

    def _pace(self, pool: PoolModel) -> float:
        return pool.token_s * (1 + pool.crowding * (max(1, len(pool.running)) - 1))

    def _advance(self, pool: PoolModel) -> None:
        """What the pool's streams did since they were last looked at."""
        pace = self._pace(pool)
        for job in pool.running.values():
            passed, job.at_s = self.now_s - job.at_s, self.now_s
            if not job.begun:
                continue
            read = min(passed, job.prefill_s)
            job.prefill_s -= read
            if not job.prefill_s and not job.first_s:
                job.first_s = self.now_s - (passed - read)
            job.left -= (passed - read) / pace

    def _schedule(self, pool: PoolModel) -> None:
        version = self._versions[pool.pool_id] = self._versions.get(pool.pool_id, 0) + 1
        pace = self._pace(pool)
        ends = [(j.prefill_s + max(0.0, j.left) * pace, t) for t, j in pool.running.items() if j.begun]
        if ends:
            seconds, task_id = min(ends)
            self.after(seconds, lambda: self._finish(pool, task_id, version))

    def pace_to(self, pool: PoolModel, token_s: float) -> None:
        """Its engine is quicker or slower from now on."""
        self._advance(pool)
        pool.token_s = token_s
        self._schedule(pool)

    def _finish(self, pool: PoolModel, task_id: str, version: int) -> None:
        if self._versions.get(pool.pool_id) == version:
            self._advance(pool)
            self._end(pool, task_id, "completed")

    def _bring_up(self, pool: PoolModel) -> None:
        """Tokens that running tasks have said by now, as the journal would hold them."""
        self._advance(pool)
        for job in pool.running.values():
            self._tell(job, min(job.request.tokens, int(job.request.tokens - job.left)))

    def _tell(self, job: _Job, tokens: int) -> None:
        state = self.head.tasks.live.get(job.task_id)
        if state is None or tokens <= job.told or not job.begun:
            return
        elapsed_us = (self.now_ns - state.entry_ns) // 1000
        self.head.fold_entries(
            EntriesRecorded(
                frame_no=self.head.next_seq,
                epoch=1,
                task_no=state.task_no,
                attempt=1,
                first_ordinal=state.entries + 1,
                entries=tokens - job.told,
                tokens=tokens - job.told,
                first_us=max(0, int((job.first_s * 1e9 - state.entry_ns) / 1000)) if not job.told else elapsed_us,
                elapsed_us=elapsed_us,
            )
        )
        job.told = tokens

    def _end(self, pool: PoolModel, task_id: str, outcome: str) -> None:
        job = pool.running.pop(task_id)
        state = self.head.tasks.live[task_id]
        self._tell(job, job.request.tokens if outcome == "completed" else int(job.request.tokens - job.left))
        self._fold_end(state, outcome, job)
        self.fold(LeaseReleased(lease_id=job.lease_id, pool_id=pool.pool_id, task_id=task_id, cause="slot-free"))
        self._schedule(pool)
        self.pump()

    def _fold_end(self, state: TaskState, outcome: str, job: _Job | None) -> None:
        request = self._requests.pop(state.task_id)
        cut = bool(request.max_tokens) and state.tokens_out >= request.max_tokens
        self.fold(
            TaskEnded(
                task_id=state.task_id,
                outcome=outcome,
                finish_reason="cancelled" if outcome == "cancelled" else "length" if cut else "stop",
                entries=state.entries,
                tokens_out=state.tokens_out,
                prompt_tokens=request.prompt_tokens,
                prefill_ms=int((job.first_s - job.started_s) * 1000) if job is not None and job.first_s else 0,
                decode_ms=int((self.now_s - job.first_s) * 1000) if job is not None and job.first_s else 0,
                attempts=1,
            )
        )
        self.fold(TaskTranscribed(task_id=state.task_id, entries=state.entries, digest="", bytes=0))
        if request.then is not None:
            request.then(self.now_s)

    def _cancel(self, task_id: str) -> None:
        state = self.head.tasks.live.get(task_id)
        if state is None:
            return
        self._predicted.pop(task_id, None)
        self.fold(TaskCancelled(task_id=task_id, reason="client"))
        pool = next((p for p in self.pools.values() if task_id in p.running), None)
        if pool is not None:
            self._advance(pool)
            self._end(pool, task_id, "cancelled")
        else:
            self._fold_end(state, "cancelled", None)
            self.pump()

    def _ready(self, pool: PoolModel) -> None:
        pool.ready = True
        self.fold(
            PoolReady(
                pool_id=pool.pool_id,
                replica_id="r0",
                generation=1,
                engine_version="1",
                slots=pool.slots,
                ctx=8192,
                decode_mtok_s=round(1000 / pool.token_s),
            )
        )
