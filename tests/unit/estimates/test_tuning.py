"""How many slots of a pool are used: the decision, and the service that appends it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.errors import OrchError
from llama_orch.core.events.pool import PoolSlotsTuned
from llama_orch.core.scheduling.tuning import TuningAims, TuningState, tune
from llama_orch.core.services.tuning import LOOK_S
from llama_orch.core.settings import PoolSettings, QueueSettings, Settings, TuningSettings

from ...support.stage import Stage

AIMS = TuningAims(slots_min=1, slots_max=8, first_token_ms=2_000, inter_token_us=50_000)
BUSY = TuningState(
    slots=4,
    leases=4,
    waiting=5,
    since_change_ms=60_000,
    seen=20,
    first_token_ms=5_000,
    inter_token_us=30_000,
    kv_used_permille=400,
    token_us={},
)


def decided(**fields: Any) -> int:
    change = tune(msgspec.structs.replace(BUSY, **fields), AIMS)
    return 0 if change is None else change.slots - fields.get("slots", BUSY.slots)


def test_a_slot_is_added_while_tasks_wait_too_long_and_streams_are_quick() -> None:
    assert decided() == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"waiting": 0},
        {"leases": 3},
        {"first_token_ms": 1_500},
        {"since_change_ms": 3_000},
        {"inter_token_us": 0},
        {"slots": 8, "leases": 8},
        {"kv_used_permille": 800},
        {"inter_token_us": 48_000},
        {"token_us": {4: 30_000, 5: 49_000}},
        # With one more all of them together would say no more than now.
        {"inter_token_us": 20_000, "token_us": {4: 20_000, 5: 25_000}},
    ],
    ids="-".join,
)
def test_none_is_added_where_it_would_not_help(fields: dict[str, Any]) -> None:
    assert decided(**fields) == 0


@pytest.mark.parametrize("fields", [{"inter_token_us": 60_000}, {"kv_used_permille": 960}])
def test_one_is_given_up_when_streams_are_slow_or_the_cache_is_full(fields: dict[str, Any]) -> None:
    assert decided(**fields) == -1
    assert decided(**fields, slots=1, leases=1) == 0


def test_slowness_has_to_be_seen_after_the_last_change() -> None:
    assert decided(inter_token_us=60_000, seen=2) == 0
    assert decided(inter_token_us=60_000, since_change_ms=9_000) == 0


def test_a_full_cache_is_acted_on_before_any_task_ended() -> None:
    assert decided(kv_used_permille=980, seen=0) == -1


def test_bounds_that_changed_hold_at_once() -> None:
    assert decided(slots=12, since_change_ms=0) == -4


def test_what_was_given_up_for_slowness_is_not_taken_back_at_once() -> None:
    slow = msgspec.structs.replace(BUSY, inter_token_us=58_000, token_us={4: 58_000})
    change = tune(slow, AIMS)
    assert change is not None
    assert change.slots == 3
    after = msgspec.structs.replace(slow, slots=3, leases=3, inter_token_us=49_000, token_us={3: 49_000, 4: 58_000})
    assert tune(after, AIMS) is None


def test_the_reason_says_what_was_measured_and_what_is_aimed_at() -> None:
    change = tune(BUSY, AIMS)
    assert change is not None
    assert "5 tasks wait" in change.reason
    assert "5.0 s, 2 s are aimed at" in change.reason
    slower = tune(msgspec.structs.replace(BUSY, inter_token_us=61_500), AIMS)
    assert slower is not None
    assert "61.5 ms, 50 ms are aimed at" in slower.reason


@given(
    st.builds(
        TuningState,
        slots=st.integers(1, 12),
        leases=st.integers(0, 12),
        waiting=st.integers(0, 100),
        since_change_ms=st.integers(0, 100_000),
        seen=st.integers(0, 50),
        first_token_ms=st.integers(0, 100_000),
        inter_token_us=st.integers(0, 200_000),
        kv_used_permille=st.integers(0, 1000),
        token_us=st.dictionaries(st.integers(1, 12), st.integers(1, 200_000), max_size=5),
    ),
    st.integers(1, 8),
    st.integers(0, 8),
)
def test_it_stays_within_the_bounds_and_goes_one_step_at_a_time(state: TuningState, least: int, more: int) -> None:
    aims = msgspec.structs.replace(AIMS, slots_min=least, slots_max=least + more)
    change = tune(state, aims)
    if change is None:
        assert least <= state.slots <= least + more
        return
    assert least <= change.slots <= least + more
    assert change.slots != state.slots
    assert change.reason
    if least <= state.slots <= least + more:
        assert abs(change.slots - state.slots) == 1


# --- the service -----------------------------------------------------------------------------------------------------


def tuned_stage(mode: str) -> Stage:
    pool = PoolSettings(
        id="p",
        engine="mock",
        model="m",
        slots=4,
        queue=QueueSettings(capacity=100),
        tuning=TuningSettings(mode=mode, slots_min=1, slots_max=3, inter_token_ms=50),  # type: ignore[arg-type]
    )
    return Stage(slots={"p": 4}, settings=Settings(pools=[pool]))


def test_a_change_is_an_event_with_its_reason_and_holds_for_placement() -> None:
    stage = tuned_stage("auto")
    stage.advance(LOOK_S + 0.1)
    (event,) = stage.payloads(PoolSlotsTuned)
    assert (event.was, event.slots) == (4, 3)
    assert event.reason == "4 slots are not within 1 to 3"
    assert stage.journal.head.pools.by_id["p"].slots == 3
    tasks = [stage.submit().task_id for _ in range(4)]
    assert [stage.state(t) for t in tasks] == ["placed", "placed", "placed", "queued"]
    for task in tasks:
        stage.cancel(task)
    stage.check()
    stage.end()


def test_fixed_switches_it_off() -> None:
    stage = tuned_stage("fixed")
    stage.advance(20 * LOOK_S)
    assert stage.payloads(PoolSlotsTuned) == []
    assert stage.journal.head.pools.by_id["p"].slots == 4
    stage.end()


def test_slow_streams_cost_a_slot_and_the_lease_that_is_too_many_may_end() -> None:
    stage = tuned_stage("auto")
    stage.advance(LOOK_S + 0.1)
    tasks = [stage.submit().task_id for _ in range(6)]
    for round_ in range(2):
        for task in tasks[3 * round_ : 3 * round_ + 3]:
            attempt = stage.attempt(task)
            attempt.start()
            attempt.say("a")
        stage.advance(0.2)
        for task in tasks[3 * round_ : 3 * round_ + 3]:
            stage.attempt(task).say("b")
        stage.settle()
        for task in tasks[3 * round_ : 3 * round_ + 3]:
            stage.attempt(task).end(decode_us=200_000)
        stage.settle()
    running = [stage.submit().task_id for _ in range(3)]
    stage.advance(15)
    last = stage.payloads(PoolSlotsTuned)[-1]
    assert last.slots == 2
    assert last.inter_token_us == 200_000
    assert stage.journal.head.leases.count("p") == 3
    waiting = stage.submit().task_id
    for task, expected in zip(running, ("queued", "placed"), strict=False):
        stage.cancel(task)
        stage.attempt(task).free()
        stage.settle()
        assert stage.state(waiting) == expected
    for task in (running[2], waiting):
        stage.cancel(task)
        stage.attempt(task).free()
    stage.settle()
    stage.end()


def test_a_strict_task_is_not_given_to_a_pool_whose_batch_may_grow_meanwhile() -> None:
    stage = tuned_stage("auto")
    with pytest.raises(OrchError) as refused:
        stage.submit(determinism="strict")
    assert "determinism" in refused.value.message
    stage.end()
