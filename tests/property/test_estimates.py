"""Estimates and their calibration under whatever may happen to tasks and pools, in any order that a server allows."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llama_orch.core.events.lease import LeaseGranted, LeaseReleased
from llama_orch.core.events.pool import (
    PoolDeclared,
    PoolDraining,
    PoolLoading,
    PoolReady,
    PoolRetired,
    PoolSlotsTuned,
    PoolUndrained,
    PoolUnloading,
    PoolUnready,
)
from llama_orch.core.events.task import (
    DecisionRecord,
    TaskAdmitted,
    TaskAttemptFailed,
    TaskEnded,
    TaskPlaced,
    TaskStarted,
    TaskTranscribed,
)
from llama_orch.core.journal.pending import stream_name
from llama_orch.core.projections.estimates import Estimates
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.projection import EntriesRecorded, Recorded
from llama_orch.core.registry import type_of
from llama_orch.core.services.estimates import Estimator

from ..support.examples import search

DECISION = DecisionRecord(
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
POOLS = ("p", "q", "r")
GROUPS = ("m", "n")
names = st.sampled_from(POOLS)
picks = st.integers(0, 10**6)


class EstimateLives(RuleBasedStateMachine):
    """Every event goes into a head and, from a snapshot on, into one that was loaded from it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()
        self.copy: Head | None = None
        self.estimator = Estimator()
        self.now_ns = 10**18
        self.n = 0
        self.admitted: dict[str, TaskAdmitted] = {}
        self.leases: dict[str, str] = {}

    def fold(self, event: Any) -> None:
        declared = type_of(event)
        stream = stream_name(declared, event)
        head = self.head
        position = head.positions.get(stream, 0)
        record = Recorded(head.next_seq, 1, 1, stream, position, declared.name, self.now_ns, "", "", event)
        head.fold(record)
        if self.copy is not None:
            self.copy.fold(record)

    def tasks(self, *phases: str) -> list[str]:
        return [t for t, s in self.head.tasks.live.items() if s.phase in phases]

    def pick(self, found: list[str], number: int) -> str | None:
        return found[number % len(found)] if found else None

    # --- time and pools ------------------------------------------------------------------------------------------

    @rule(milliseconds=st.integers(0, 200_000))
    def pass_time(self, milliseconds: int) -> None:
        self.now_ns += milliseconds * 1_000_000

    @rule(pool=names, group=st.sampled_from(GROUPS), slots=st.integers(0, 4))
    def declare(self, pool: str, group: str, slots: int) -> None:
        self.fold(PoolDeclared(pool_id=pool, engine="mock", model_ref=group, slots=slots))

    @rule(pool=names, slots=st.integers(1, 4), load_ms=st.integers(0, 10_000), rate=st.sampled_from([0, 20_000]))
    def ready(self, pool: str, slots: int, load_ms: int, rate: int) -> None:
        self.fold(
            PoolReady(
                pool_id=pool,
                replica_id="r0",
                generation=1,
                engine_version="1",
                slots=slots,
                ctx=4096,
                load_ms=load_ms,
                decode_mtok_s=rate,
            )
        )

    @rule(
        pool=names,
        what=st.sampled_from(["loading", "unready", "unloading", "draining", "undrained", "retired", "tuned"]),
    )
    def turn(self, pool: str, what: str) -> None:
        event: Any = {
            "loading": PoolLoading(pool_id=pool, devices=["cpu"]),
            "unready": PoolUnready(pool_id=pool, cause="engine-exited"),
            "unloading": PoolUnloading(pool_id=pool, cause="swap"),
            "draining": PoolDraining(pool_id=pool, deadline_ms=0),
            "undrained": PoolUndrained(pool_id=pool),
            "retired": PoolRetired(pool_id=pool),
            "tuned": PoolSlotsTuned(pool_id=pool, slots=1, was=2, reason=""),
        }[what]
        self.fold(event)

    # --- tasks ---------------------------------------------------------------------------------------------------

    @rule(
        group=st.sampled_from(GROUPS),
        owner=st.sampled_from("abc"),
        priority=st.sampled_from(["interactive", "batch"]),
        cap=st.sampled_from([0, 1, 40, 5000]),
        hint=st.sampled_from([0, 1, 300]),
        prompt=st.integers(0, 5000),
    )
    def admit(self, group: str, owner: str, priority: str, cap: int, hint: int, prompt: int) -> None:
        self.n += 1
        queue = self.head.queue.groups.get(group)
        ahead = len(queue) if queue is not None else 0
        found = self.estimator.start(self.head, group, ahead, self.now_ns, priority=priority, prompt_tokens=prompt)
        assert 0 <= found.p10_ms <= found.start_ms <= found.p90_ms
        fresh = Estimator().start(self.head, group, ahead, self.now_ns, priority=priority, prompt_tokens=prompt)
        assert fresh == found, "what was asked before changed the answer"
        self.fold(
            TaskAdmitted(
                task_id=f"t{self.n}",
                owner=owner,
                group=group,
                model_ref=group,
                workload="completion",
                priority=priority,
                body_id="",
                request_digest="",
                seed=1,
                max_tokens=cap,
                expected_tokens=hint,
                prompt_tokens=prompt,
                queue_position=ahead,
                load_band=found.band,
                modelled_start_ms=list(found.model_ms),
                predicted_start_ms=found.start_ms,
                predicted_start_ms_p10=found.p10_ms,
                predicted_start_ms_p90=found.p90_ms,
            )
        )

    @precondition(lambda self: self.tasks("queued"))
    @rule(number=picks, pool=names)
    def place(self, number: int, pool: str) -> None:
        task = self.pick(self.tasks("queued"), number)
        assert task is not None
        if task in self.leases:
            return
        attempt = self.head.tasks.live[task].attempt + 1
        self.fold(TaskPlaced(task_id=task, attempt=attempt, pool_id=pool, replica_id="r0", decision=DECISION))
        self.n += 1
        self.leases[task] = f"l{self.n}"
        self.fold(LeaseGranted(lease_id=f"l{self.n}", pool_id=pool, task_id=task, attempt=attempt, slot=self.n))

    @precondition(lambda self: self.tasks("placed"))
    @rule(number=picks)
    def start(self, number: int) -> None:
        task = self.pick(self.tasks("placed"), number)
        assert task is not None
        state = self.head.tasks.live[task]
        self.fold(
            TaskStarted(
                task_id=task,
                attempt=state.attempt,
                pool_id=state.pool_id,
                replica_id="r0",
                engine="mock",
                engine_version="1",
                seed=1,
                queue_time_ms=(self.now_ns - state.admitted_ns) // 1_000_000,
            )
        )

    @precondition(lambda self: self.tasks("running"))
    @rule(number=picks, tokens=st.integers(1, 400))
    def say(self, number: int, tokens: int) -> None:
        task = self.pick(self.tasks("running"), number)
        assert task is not None
        state = self.head.tasks.live[task]
        us = max(0, self.now_ns - state.entry_ns) // 1000
        chunk = EntriesRecorded(
            frame_no=1,
            epoch=1,
            task_no=state.task_no,
            attempt=state.attempt,
            first_ordinal=state.entries + 1,
            entries=tokens,
            tokens=tokens,
            first_us=us,
            elapsed_us=us,
        )
        self.head.fold_entries(chunk)
        if self.copy is not None:
            self.copy.fold_entries(chunk)

    @precondition(lambda self: self.tasks("placed", "running"))
    @rule(number=picks)
    def break_off(self, number: int) -> None:
        task = self.pick(self.tasks("placed", "running"), number)
        assert task is not None
        state = self.head.tasks.live[task]
        self.fold(TaskAttemptFailed(task_id=task, attempt=state.attempt, pool_id=state.pool_id, code="cut", message=""))
        self.release(task)

    def release(self, task: str) -> None:
        lease = self.head.leases.by_id[self.leases.pop(task)]
        self.fold(LeaseReleased(lease_id=lease.lease_id, pool_id=lease.pool_id, task_id=task, cause="slot-free"))

    @precondition(lambda self: self.head.tasks.live)
    @rule(
        number=picks,
        how=st.sampled_from(
            [("completed", "stop"), ("completed", "length"), ("cancelled", "cancelled"), ("failed", "error")]
        ),
        decode_ms=st.integers(0, 60_000),
        prefill_ms=st.integers(0, 5_000),
    )
    def end(self, number: int, how: tuple[str, str], decode_ms: int, prefill_ms: int) -> None:
        task = self.pick(list(self.head.tasks.live), number)
        assert task is not None
        state = self.head.tasks.live[task]
        self.fold(
            TaskEnded(
                task_id=task,
                outcome=how[0],
                finish_reason=how[1],
                entries=state.entries,
                tokens_out=state.tokens_out,
                prompt_tokens=state.admitted.prompt_tokens,
                decode_ms=decode_ms,
                prefill_ms=prefill_ms,
            )
        )
        if task in self.leases:
            self.release(task)
        self.fold(TaskTranscribed(task_id=task, entries=state.entries, digest="", bytes=0))

    # --- what must hold ------------------------------------------------------------------------------------------

    @rule()
    def snapshot(self) -> None:
        self.copy = Head()
        self.copy.load(msgspec.json.decode(msgspec.json.encode(self.head.dump())))

    @invariant()
    def a_head_from_a_snapshot_is_the_same(self) -> None:
        if self.copy is not None:
            assert self.copy.digest() == self.head.digest()

    @invariant()
    def sums_are_those_of_what_waits(self) -> None:
        rates = self.head.of(Estimates)
        waiting: dict[tuple[str, str], list[int]] = {}
        for state in self.head.tasks.live.values():
            if state.phase == "queued":
                key = (state.admitted.group, state.admitted.priority)
                waiting.setdefault(key, []).append(state.admitted.prompt_tokens)
        for key, lane in rates.lanes.items():
            found = waiting.get(key, [])
            assert lane.tasks == len(found) == sum(lane.kinds.values())
            assert lane.prompt_tokens == sum(found)
            assert all(count > 0 for count in lane.kinds.values())
            assert lane.left >= 0
            assert lane.waited_ms >= 0
        assert set(waiting) <= set(rates.lanes)
        assert all(pool.streams >= 0 and pool.stream_ns >= 0 for pool in rates.pools.values())

    @invariant()
    def a_group_waits_for_a_pool_if_and_only_if_it_has_tasks_and_none_is_open(self) -> None:
        rates = self.head.of(Estimates)
        for group, wake in rates.wakes.items():
            assert wake.open == sum(p.open for p in rates.pools.values() if p.group == group)
            waits = any(lane.tasks for (g, _), lane in rates.lanes.items() if g == group)
            assert bool(wake.since_ns) == (waits and not wake.open)

    @invariant()
    def nothing_is_a_float(self) -> None:
        def look(value: Any) -> None:
            assert not isinstance(value, float)
            for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
                look(part)

        projections = self.head.dump()["projections"]
        look(projections["estimates"])
        look(projections["calibration"])


TestEstimateLives = EstimateLives.TestCase
TestEstimateLives.settings = search(40)
