"""What a simulation shows is what happened: its checkers find what is wrong, its engines behave as they are described."""

from __future__ import annotations

import msgspec
import pytest

from llama_orch.core.scheduling.swap_types import Load, SwapPlan, SwapSnapshot
from llama_orch.core.scheduling.swaps import plan_swaps
from llama_orch.simulator.memory_checker import MemoryChecker
from llama_orch.simulator.rig import GIB, ModelledPool, Rig, gpu, reference_rig
from llama_orch.simulator.trace import TraceTask
from llama_orch.simulator.world import World


def pool(name: str, gib: int, *devices: str, **more: object) -> ModelledPool:
    fields: dict[str, object] = {
        "pool_id": name,
        "model": f"model-{name}",
        "weights_bytes": gib * GIB,
        "devices": devices or ("GPU-0", "GPU-1"),
        **more,
    }
    return ModelledPool(**fields)  # type: ignore[arg-type]


def rig(*pools: ModelledPool, gpus: tuple[int, ...] = (24, 12)) -> Rig:
    return Rig(devices=tuple(gpu(n, size) for n, size in enumerate(gpus)), pools=pools)


def tasks(*wanted: tuple[int, str], **more: object) -> list[TraceTask]:
    return [
        msgspec.convert({"n": n, "at_ms": at_ms, "model": f"model-{name}", **more}, TraceTask)
        for n, (at_ms, name) in enumerate(wanted)
    ]


# --- the checkers can fail -----------------------------------------------------------------------------------------------


def reckless(snapshot: SwapSnapshot) -> SwapPlan:
    """Loads whatever is asked for at once, wherever."""
    waiting = {g.group for g in snapshot.groups}
    return SwapPlan(
        actions=tuple(
            Load(pool_id=p.pool_id, devices=("GPU-0",), predicted_bytes={"GPU-0": p.need_bytes}, reason="reckless")
            for p in snapshot.pools
            if p.phase == "unloaded" and p.group in waiting
        )
    )


def spreading(snapshot: SwapSnapshot) -> SwapPlan:
    """Puts everything on all devices."""
    return SwapPlan(
        actions=tuple(
            Load(
                pool_id=p.pool_id,
                devices=p.devices,
                predicted_bytes=dict(zip(p.devices, p.split_bytes, strict=True)),
                reason="spread",
            )
            for p in snapshot.pools
            if p.phase == "unloaded" and snapshot.groups
        )
    )


def stubborn(snapshot: SwapSnapshot) -> SwapPlan:
    """What is loaded stays: the first two models that were asked for, for ever."""
    return msgspec.structs.replace(
        plan_swaps(snapshot), actions=tuple(a for a in plan_swaps(snapshot).actions if isinstance(a, Load))
    )


def test_a_planner_that_over_commits_is_found_out() -> None:
    world = World(rig(pool("a", 20), pool("b", 20)), tasks((0, "a"), (100, "b")), planner=reckless)
    report = world.run()
    assert len(report.violations) == 1
    assert "out of memory on GPU-0" in report.violations[0]
    assert "at 100 ms" in report.violations[0]


def test_a_planner_that_spreads_what_fits_one_gpu_is_found_out() -> None:
    report = World(rig(pool("a", 6)), tasks((0, "a")), planner=spreading).run()
    assert report.violations == ["at 0 ms: a is on 2 devices though it fits GPU-0 or GPU-1"]


def test_a_planner_that_never_swaps_is_found_to_pass_over() -> None:
    wanted = [(n * 1000, "a") for n in range(900)]
    trace = tasks(*wanted[:5], (5_500, "b"), *wanted[6:])
    stuck = World(rig(pool("a", 20), pool("b", 20)), trace, planner=stubborn).run(until_s=900)
    assert stuck.passed_over_ms > 800_000
    served = World(rig(pool("a", 20), pool("b", 20)), trace).run()
    assert served.passed_over_ms <= 300_000
    assert served.completed == len(trace)


def test_the_checker_knows_masks_and_processes_that_were_not_gone() -> None:
    checker = MemoryChecker(rig(pool("a", 6, "GPU-1")), lambda: 0)
    checker.spread(pool("a", 6, "GPU-1"), ("GPU-0",))
    checker.took("a", "local", {"GPU-1": GIB})
    checker.took("a", "local", {"GPU-1": GIB})
    assert [v.partition(": ")[2] for v in checker.violations] == [
        "a is on GPU-0, outside of its mask",
        "a was started while its last process still held memory",
    ]
    checker.freed("a")
    assert checker.peak_bytes["GPU-1"] == GIB


# --- what the planner makes of machines ----------------------------------------------------------------------------------


def test_a_model_that_fits_no_single_gpu_is_spread_over_its_mask() -> None:
    report = World(rig(pool("a", 26)), tasks((0, "a"))).run()
    assert report.violations == []
    assert report.completed == 1
    assert set(report.busy_permille) == {"GPU-0", "GPU-1"}


def test_who_asks_for_a_model_that_fits_nowhere_is_told_and_keeps_nobody_else_waiting() -> None:
    report = World(rig(pool("a", 60), pool("b", 4)), tasks((0, "a"), (10, "b"), (60_000, "a"))).run()
    assert report.completed == 1
    assert report.failed + report.refused == 2
    assert report.refused >= 1
    assert "it needs 60.0 GiB" in report.unserved["model-a"]


def test_a_pinned_model_stays_whoever_waits() -> None:
    pinned = pool("a", 20, "GPU-0", pinned=True, preload=True)
    report = World(rig(pinned, pool("b", 20, "GPU-0")), tasks((0, "b"), (60_000, "a"))).run()
    assert report.completed == 1
    assert "pinned: a" in report.waits["model-b"]
    assert report.swaps == 0


def test_an_idle_model_leaves_when_its_keep_alive_has_passed() -> None:
    kept = pool("a", 4, keep_alive_ms=60_000)
    world = World(rig(kept, pool("b", 4)), tasks((0, "a"), (300_000, "b"), (600_000, "a")))
    report = world.run()
    assert report.loads == 3, "loaded again after it had left by itself"
    assert report.swaps == 0


def test_a_model_that_takes_more_than_was_predicted_is_planned_with_what_it_took() -> None:
    """The first load is a surprise that fits the reserve; every later plan knows."""
    greedy = pool("a", 11, "GPU-0", real_permille=1030)
    other = pool("b", 12, "GPU-0")
    trace = tasks((0, "a"), (60_000, "b"), (120_000, "a"), (500_000, "b"))
    report = World(rig(greedy, other), trace).run()
    assert report.violations == []
    assert report.completed == 4


def test_memory_that_others_take_is_not_planned_with() -> None:
    machine = rig(pool("a", 20, "GPU-0"), pool("b", 6, "GPU-0"))
    taken = msgspec.structs.replace(
        machine,
        devices=tuple(msgspec.structs.replace(d, foreign_bytes=6 * GIB) for d in machine.devices),
    )
    report = World(taken, tasks((0, "a"), (0, "b"))).run()
    assert report.violations == []
    assert report.completed == 1
    assert "model-a" in report.waits


# --- engines -------------------------------------------------------------------------------------------------------------


def test_rates_follow_from_the_cards_and_the_models() -> None:
    machine = reference_rig()
    small, large = machine.pool("gist"), machine.pool("large")
    assert machine.decode_mtok_s(small, ("GPU-0",)) > 2 * machine.decode_mtok_s(small, ("GPU-1",))
    assert machine.decode_mtok_s(small, ("GPU-0",)) > 4 * machine.decode_mtok_s(large, ("GPU-0",))
    assert machine.prefill_mtok_s(large, ("GPU-0",)) > 10 * machine.decode_mtok_s(large, ("GPU-0",))
    assert machine.load_ms(large) > machine.load_ms(small)


def test_neighbours_slow_each_other_down_less_than_one_after_the_other_would() -> None:
    trace = tasks((0, "a"), output_tokens=400)
    alone = World(rig(pool("a", 6)), trace).run().end.worst_ms
    pair = World(rig(pool("a", 6)), tasks((0, "a"), (0, "a"), output_tokens=400)).run().end.worst_ms
    load_ms = rig(pool("a", 6)).load_ms(pool("a", 6))
    assert alone < pair < 2 * alone - load_ms


@pytest.mark.parametrize("second", ["s", "t"])
def test_a_turn_of_the_same_session_finds_its_cache(second: str) -> None:
    first = TraceTask(n=0, model="model-a", prompt_tokens=1000, output_tokens=100, session="s")
    follows = TraceTask(
        n=1,
        after=0,
        delay_ms=1000,
        model="model-a",
        prompt_tokens=1400,
        output_tokens=100,
        session=second,
        shared_tokens=1100,
    )
    report = World(rig(pool("a", 6)), [first, follows]).run()
    assert report.cached_tokens == (1100 if second == "s" else 0)
    assert report.prompt_tokens == 2400


def test_a_task_that_is_refused_ends_and_those_after_it_come() -> None:
    trace = [
        TraceTask(n=0, model="nobody-serves-this"),
        TraceTask(n=1, after=0, delay_ms=1000, model="model-a"),
    ]
    report = World(rig(pool("a", 6)), trace).run()
    assert (report.refused, report.completed) == (1, 1)
