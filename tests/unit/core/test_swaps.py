"""The swap planner's rules one by one, with what it says of them; its properties stand in tests/property/test_swaps.py (PLC-5)."""

from __future__ import annotations

from typing import Any

import msgspec

from llama_orch.core.scheduling.ledger import Ledger, gib
from llama_orch.core.scheduling.swap_types import (
    DeviceMemory,
    Drain,
    GroupDemand,
    Load,
    PoolMemory,
    SwapLimits,
    SwapPlan,
    SwapSnapshot,
    Undrain,
    Unload,
)
from llama_orch.core.scheduling.swaps import plan_swaps

GIB = 2**30
MS = 1_000_000
NOW = 1_700_000_000_000 * MS
BIG = DeviceMemory(device="big", total_bytes=24 * GIB, free_bytes=24 * GIB, speed=3)
SMALL = DeviceMemory(device="small", total_bytes=12 * GIB, free_bytes=12 * GIB, speed=1)


def pool(name: str, size_gib: int, *, on: str = "", **more: Any) -> PoolMemory:
    fields: dict[str, Any] = {
        "pool_id": name,
        "group": f"m-{name}",
        "devices": ("big", "small"),
        "need_bytes": size_gib * GIB,
        "load_ms": 8_000,
        "slots": 2,
    }
    if on:
        fields |= {
            "phase": "ready",
            "placed_on": (on,),
            "reserved_bytes": {on: size_gib * GIB},
            "since_ns": NOW - 600_000 * MS,
            "last_used_ns": NOW - 300_000 * MS,
        }
    return PoolMemory(**(fields | more))


def wants(name: str, *, waiting: int = 1, waited_ms: int = 0, **more: Any) -> GroupDemand:
    return GroupDemand(group=f"m-{name}", interactive=waiting, oldest_ns=NOW - waited_ms * MS, **more)


def plan(
    *pools: PoolMemory,
    waiting: tuple[GroupDemand, ...] = (),
    devices: tuple[DeviceMemory, ...] = (BIG, SMALL),
    **more: Any,
) -> SwapPlan:
    held: dict[str, int] = {}
    for one in pools:
        for device, size in one.reserved_bytes.items():
            held[device] = held.get(device, 0) + size
    seen = tuple(
        msgspec.structs.replace(d, free_bytes=None if d.free_bytes is None else d.free_bytes - held.get(d.device, 0))
        for d in devices
    )
    return plan_swaps(SwapSnapshot(now_ns=NOW, devices=seen, pools=pools, groups=waiting, **more))


def placed(made: SwapPlan) -> dict[str, tuple[str, ...]]:
    return {a.pool_id: a.devices for a in made.actions if isinstance(a, Load)}


# --- where ---------------------------------------------------------------------------------------------------------------


def test_a_model_goes_to_the_fastest_device_that_has_room() -> None:
    assert placed(plan(pool("a", 8), waiting=(wants("a"),))) == {"a": ("big",)}


def test_but_not_where_it_would_block_a_model_that_fits_nowhere_else() -> None:
    assert placed(plan(pool("a", 8), pool("b", 20), waiting=(wants("a"),))) == {"a": ("small",)}
    assert placed(plan(pool("a", 8), pool("b", 14), waiting=(wants("a"),))) == {"a": ("big",)}, "both fit there"


def test_models_share_a_device_only_when_the_others_are_no_emptier() -> None:
    beside = pool("b", 4, on="big")
    assert placed(plan(pool("a", 8), beside, waiting=(wants("a"),))) == {"a": ("small",)}
    both = (beside, pool("c", 2, on="small"))
    assert placed(plan(pool("a", 8), *both, waiting=(wants("a"),))) == {"a": ("big",)}


def test_of_equally_fast_devices_the_one_with_most_room_is_taken() -> None:
    slow = msgspec.structs.replace(BIG, speed=1)
    assert placed(plan(pool("a", 8), waiting=(wants("a"),), devices=(SMALL, slow))) == {"a": ("big",)}


def test_only_what_fits_no_single_device_is_spread_and_only_within_its_mask() -> None:
    wide = pool("a", 30, split_bytes=(21 * GIB, 11 * GIB))
    made = plan(wide, waiting=(wants("a"),))
    assert placed(made) == {"a": ("big", "small")}
    (load,) = made.actions
    assert isinstance(load, Load)
    assert load.predicted_bytes == {"big": 21 * GIB, "small": 11 * GIB}
    narrow = msgspec.structs.replace(wide, devices=("big",), split_bytes=())
    assert plan(narrow, waiting=(wants("a"),)).actions == ()
    waits_for_room = plan(
        msgspec.structs.replace(wide, need_bytes=20 * GIB), pool("b", 8, on="big", pinned=True), waiting=(wants("a"),)
    )
    assert waits_for_room.actions == (), "it fits one device, if not now"


def test_a_load_says_who_waits_and_what_it_takes() -> None:
    (load,) = plan(pool("a", 8), waiting=(wants("a", waiting=3),)).actions
    assert load.reason == "3 tasks wait for m-a; takes 8.0 GiB on big"


def test_what_fits_nowhere_is_said_with_numbers() -> None:
    made = plan(pool("a", 40), waiting=(wants("a"),))
    assert made.waits == {
        "m-a": "a needs 40.0 GiB, more than its devices hold (big: 24.0 GiB of 24.0 GiB free, small: 12.0 GiB of 12.0 GiB free)"
    }


def test_two_groups_are_not_promised_the_same_bytes() -> None:
    made = plan(
        pool("a", 20, devices=("big",)),
        pool("b", 20, devices=("big",)),
        waiting=(wants("b", waited_ms=10), wants("a", waited_ms=5)),
    )
    assert placed(made) == {"b": ("big",)}, "who waited longer goes first"


# --- what is free --------------------------------------------------------------------------------------------------------


def ledger(device: DeviceMemory, *pools: PoolMemory) -> Ledger:
    return Ledger(SwapSnapshot(now_ns=NOW, devices=(device,), pools=pools))


def test_free_is_the_smaller_of_what_the_sample_and_the_ledger_say() -> None:
    key = ("local", "big")
    held = pool("a", 10, on="big")
    seen = msgspec.structs.replace(BIG, reserve_bytes=GIB)
    assert ledger(msgspec.structs.replace(seen, free_bytes=20 * GIB), held).free(key) == 13 * GIB
    assert ledger(msgspec.structs.replace(seen, free_bytes=5 * GIB), held).free(key) == 4 * GIB, "less the reserve"


def test_what_is_being_loaded_may_not_be_in_the_sample_yet() -> None:
    loading = msgspec.structs.replace(pool("a", 10, on="big"), phase="loading")
    assert ledger(msgspec.structs.replace(BIG, free_bytes=18 * GIB), loading).free(("local", "big")) == 8 * GIB


def test_a_stale_or_missing_sample_is_not_guessed_and_that_is_said() -> None:
    stale = msgspec.structs.replace(BIG, stale=True, age_ms=90_000, free_bytes=0)
    never = msgspec.structs.replace(BIG, free_bytes=None)
    key = ("local", "big")
    assert ledger(stale, pool("a", 10, on="big")).free(key) == 14 * GIB
    assert ledger(stale).said(key) == "big: 24.0 GiB of 24.0 GiB free by the ledger alone (last sample 90000 ms ago)"
    assert ledger(never).said(key) == "big: 24.0 GiB of 24.0 GiB free by the ledger alone (never sampled)"


def test_sizes_are_told_to_a_tenth_and_small_ones_in_their_own_unit() -> None:
    assert [gib(size) for size in (0, 700 * 2**10, 2**20 * 52, GIB, 13 * GIB + 400 * 2**20)] == [
        "0 KiB",
        "700 KiB",
        "52 MiB",
        "1.0 GiB",
        "13.4 GiB",
    ]


# --- making room ---------------------------------------------------------------------------------------------------------


def just_used(name: str, size_gib: int, **more: Any) -> PoolMemory:
    return pool(name, size_gib, on="big", last_used_ns=NOW - 1_000 * MS, **more)


def test_an_idle_model_makes_room_once_others_have_waited_as_long_as_that_is_worth() -> None:
    pools = (just_used("a", 20), pool("b", 20))
    early = plan(*pools, waiting=(wants("b", waited_ms=1_000),))
    assert early.actions == ()
    assert "a would have to leave big; that is worth" in early.waits["m-b"]
    assert NOW < early.next_look_ns < NOW + 20_000 * MS
    later = plan(*pools, waiting=(wants("b", waited_ms=(early.next_look_ns - NOW) // MS + 1_000),))
    (unload,) = later.actions
    assert isinstance(unload, Unload)
    assert (unload.pool_id, unload.cause, unload.for_group) == ("a", "swap", "m-b")
    assert "m-b needs 20.0 GiB on big" in unload.reason


def test_a_model_that_nobody_came_back_to_makes_room_at_once() -> None:
    made = plan(pool("a", 20, on="big"), pool("b", 20), waiting=(wants("b"),))
    assert [a.pool_id for a in made.actions] == ["a"], "it was idle for five minutes"


def test_where_several_want_the_room_a_place_has_to_be_worth_more() -> None:
    pools = (pool("a", 20, on="big"), pool("b", 20), pool("c", 20))
    crowd = (wants("b", waited_ms=20_000), wants("c", waited_ms=10_000))
    assert plan(*pools, waiting=crowd[:1]).actions != ()
    assert plan(*pools, waiting=crowd).actions == ()
    assert plan(*pools, waiting=(wants("b", waiting=9, waited_ms=20_000), crowd[1])).actions != ()


def test_many_who_wait_are_worth_more_than_one() -> None:
    pools = (just_used("a", 20), pool("b", 20))
    assert plan(*pools, waiting=(wants("b", waited_ms=10_000),)).actions == ()
    assert plan(*pools, waiting=(wants("b", waiting=20, waited_ms=10_000),)).actions != ()


def test_the_one_that_nobody_used_for_longest_goes_and_no_more_than_are_needed() -> None:
    old = pool("old", 8, on="big", last_used_ns=NOW - 900_000 * MS, since_ns=NOW - 1_000_000 * MS)
    new = pool("new", 8, on="big", last_used_ns=NOW - 5_000 * MS)
    made = plan(old, new, pool("b", 14, devices=("big",)), waiting=(wants("b", waited_ms=100_000),))
    assert [a.pool_id for a in made.actions] == ["old"]


def test_the_room_is_not_taken_before_it_is_seen_free() -> None:
    leaving = msgspec.structs.replace(pool("a", 20, on="big"), phase="unloading")
    made = plan(leaving, pool("b", 20), waiting=(wants("b", waited_ms=60_000),))
    assert made.actions == ()
    assert made.waits["m-b"] == "b is loaded as soon as room on big is free"


def test_a_pool_at_work_is_drained_and_one_with_a_queue_is_left_to_serve_it() -> None:
    busy = pool("a", 20, on="big", leases=2)
    waiting = wants("b", waiting=9, waited_ms=60_000)
    (drain,) = plan(busy, pool("b", 20), waiting=(waiting,)).actions
    assert isinstance(drain, Drain)
    assert "2 running tasks end first" in drain.reason
    assert plan(busy, pool("b", 20), waiting=(waiting, wants("a", waited_ms=1_000))).actions == ()


def test_even_a_queue_gives_way_before_somebody_is_passed_over_for_the_bound() -> None:
    busy = pool("a", 20, on="big", leases=2)
    waiting = (wants("b", waited_ms=265_000), wants("a", waiting=50, waited_ms=280_000))
    (drain,) = plan(busy, pool("b", 20), waiting=waiting).actions
    assert isinstance(drain, Drain)
    assert "passed over for 265000 of 300000 ms" in drain.reason
    assert plan(busy, pool("b", 20), waiting=waiting, limits=SwapLimits(bound_ms=900_000)).actions == ()


def test_a_model_that_was_loaded_just_now_has_its_turn_first() -> None:
    fresh = pool("a", 20, on="big", leases=2, since_ns=NOW - 5_000 * MS)
    waiting = (wants("b", waited_ms=299_000), wants("a", waiting=50, waited_ms=200_000))
    made = plan(fresh, pool("b", 20), waiting=waiting)
    assert made.actions == ()
    assert made.waits["m-b"] == "a serves its queue for another 19000 ms"
    assert made.next_look_ns <= NOW + 19_000 * MS


def test_a_pinned_model_never_goes_and_is_named() -> None:
    made = plan(pool("a", 20, on="big", pinned=True), pool("b", 20), waiting=(wants("b", waited_ms=10**9),))
    assert made.actions == ()
    assert made.waits["m-b"].endswith("pinned: a")


def test_when_nobody_waits_any_more_a_drain_is_taken_back() -> None:
    draining = msgspec.structs.replace(
        pool("a", 20, on="big", leases=1), phase="draining", drain_cause="swap", made_room_for="m-b"
    )
    assert [type(a) for a in plan(draining, pool("b", 20)).actions] == [Undrain]
    assert plan(draining, pool("b", 20), waiting=(wants("b", waited_ms=60_000),)).actions == ()
    operators = msgspec.structs.replace(draining, drain_cause="operator", leases=0)
    assert plan(operators).actions == (), "what a person drained is theirs"


def test_a_drained_pool_is_unloaded_for_whom_it_was_drained() -> None:
    drained = msgspec.structs.replace(
        pool("a", 20, on="big"), phase="draining", drain_cause="swap", made_room_for="m-b", served_until_ns=NOW - 9 * MS
    )
    (unload,) = plan(drained, pool("b", 20), waiting=(wants("b", waited_ms=60_000),)).actions
    assert isinstance(unload, Unload)
    assert (unload.cause, unload.for_group) == ("swap", "m-b")
    gone = msgspec.structs.replace(drained, phase="unloaded", reserved_bytes={}, placed_on=(), drain_cause="")
    (load,) = plan(gone, pool("b", 20), waiting=(wants("b", waited_ms=60_000),)).actions
    assert isinstance(load, Load)
    assert load.makes_room_by == ("a",)


def test_interactive_tasks_are_served_before_batch_ones_that_waited_longer() -> None:
    batch = GroupDemand(group="m-a", batch=5, oldest_ns=NOW - 20_000 * MS)
    made = plan(
        pool("a", 20, devices=("big",)),
        pool("b", 20, devices=("big",)),
        waiting=(batch, wants("b", waited_ms=5_000)),
    )
    assert placed(made) == {"b": ("big",)}


# --- what nobody waits for -----------------------------------------------------------------------------------------------


def test_an_idle_model_goes_when_its_keep_alive_has_passed() -> None:
    kept = pool("a", 8, on="big", keep_alive_until_ns=NOW + 7 * MS)
    assert (plan(kept).actions, plan(kept).next_look_ns) == ((), NOW + 7 * MS)
    past = msgspec.structs.replace(kept, keep_alive_until_ns=NOW)
    (unload,) = plan(past).actions
    assert isinstance(unload, Unload)
    assert (unload.cause, unload.reason) == ("idle", "idle for 300000 ms, its keep-alive has passed")
    for stays in ({"leases": 1}, {"pinned": True}):
        assert plan(msgspec.structs.replace(past, **stays)).actions == ()
    assert plan(past, waiting=(wants("a"),)).actions == ()


def test_what_is_to_be_there_from_the_start_takes_room_that_nobody_waits_for() -> None:
    preloaded = pool("a", 20, preload=True)
    assert placed(plan(preloaded)) == {"a": ("big",)}
    assert placed(plan(preloaded, pool("b", 20), waiting=(wants("b"),))) == {"b": ("big",)}
    assert plan(preloaded, pool("b", 20, on="big")).actions == (), "nobody is evicted for it"


def test_a_long_queue_gets_a_second_pool_where_there_is_room_anyway() -> None:
    first, second = pool("a", 8, on="big", leases=2), pool("a2", 8, group="m-a", devices=("small",))
    long = wants("a", waiting=40, work_ms=60_000)
    assert placed(plan(first, second, waiting=(long,))) == {"a2": ("small",)}
    short = wants("a", waiting=2, work_ms=10_000)
    assert plan(first, second, waiting=(short,)).actions == ()
    other = pool("b", 8, on="small", last_used_ns=NOW - 10**6 * MS)
    assert plan(first, second, other, waiting=(long,)).actions == ()


# --- failures ------------------------------------------------------------------------------------------------------------


def test_a_failed_pool_is_tried_again_when_it_is_due() -> None:
    failed = pool("a", 8, phase="failed", retry_at_ns=NOW + 5 * MS)
    made = plan(failed, waiting=(wants("a"),))
    assert (made.actions, made.next_look_ns) == ((), NOW + 5 * MS)
    assert made.waits["m-a"] == "none of its pools can be loaded now: a is failed"
    assert placed(plan(msgspec.structs.replace(failed, retry_at_ns=NOW), waiting=(wants("a"),))) == {"a": ("big",)}
    assert plan(msgspec.structs.replace(failed, retry_at_ns=0), waiting=(wants("a"),)).actions == ()


def test_a_pool_that_ran_out_of_memory_is_placed_anew_with_what_it_needs() -> None:
    tried = pool("a", 11, on="small", phase="failed", need_bytes=13 * GIB, retry_at_ns=NOW)
    (unload,) = plan(tried, waiting=(wants("a"),)).actions
    assert isinstance(unload, Unload)
    assert unload.reason == "it needs 13.0 GiB, not 11.0 GiB as was planned"
    gone = msgspec.structs.replace(tried, phase="unloaded", reserved_bytes={}, placed_on=())
    assert placed(plan(gone, waiting=(wants("a"),))) == {"a": ("big",)}
