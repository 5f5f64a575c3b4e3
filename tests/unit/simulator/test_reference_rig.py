"""The reference rig: 24 + 12 GB, eight models of 4 to 20 GB, two hours of each committed trace (PLC-5)."""

from __future__ import annotations

import functools

import pytest

from llama_orch.core.scheduling.swaps import plan_swaps
from llama_orch.simulator.baseline import first_come_first_served
from llama_orch.simulator.report import Report
from llama_orch.simulator.rig import GIB, reference_rig
from llama_orch.simulator.trace import built_in, read_trace
from llama_orch.simulator.world import World

pytestmark = pytest.mark.slow

BOUND_MS = 300_000
TRACES = sorted(built_in())


@functools.cache
def simulated(trace: str, planner: str) -> Report:
    planners = {"ours": plan_swaps, "fcfs": first_come_first_served}
    return World(reference_rig(), read_trace(built_in()[trace]), planner=planners[planner]).run()


def test_the_rig_is_the_one_that_the_bar_names() -> None:
    rig = reference_rig()
    assert [d.total_bytes // GIB for d in rig.devices] == [24, 12]
    sizes = sorted(p.need_bytes / GIB for p in rig.pools)
    assert len(sizes) == 8
    assert 4 <= sizes[0] < 5.5
    assert 19 < sizes[-1] <= 20.1
    assert not any(p.pinned for p in rig.pools)


@pytest.mark.parametrize("trace", TRACES)
def test_every_task_is_done_and_memory_is_never_over_committed(trace: str) -> None:
    report = simulated(trace, "ours")
    assert report.violations == []
    assert (report.completed, report.failed, report.refused) == (report.tasks, 0, 0)
    assert report.waits == {}


@pytest.mark.parametrize("trace", TRACES)
def test_no_task_is_passed_over_for_more_than_five_minutes(trace: str) -> None:
    """Not even when the time counts in which its own model was served and it stood behind its own kind."""
    report = simulated(trace, "ours")
    assert report.passed_over_ms <= report.passed_over_in_all_ms <= BOUND_MS


@pytest.mark.parametrize("trace", TRACES)
def test_swaps_are_at_most_half_of_first_come_first_served(trace: str) -> None:
    ours, baseline = simulated(trace, "ours"), simulated(trace, "fcfs")
    assert baseline.violations == []
    assert baseline.completed == baseline.tasks == ours.tasks
    assert baseline.passed_over_in_all_ms <= BOUND_MS, "it keeps the same bound"
    assert 2 * ours.swaps <= baseline.swaps
    assert 2 * ours.loads <= baseline.loads
    assert ours.tokens_out == baseline.tokens_out, "the same work was done"


@pytest.mark.parametrize("trace", ["agents", "bursts"])
def test_where_swaps_are_what_costs_time_tasks_wait_less_in_all(trace: str) -> None:
    assert simulated(trace, "ours").start.total_ms < simulated(trace, "fcfs").start.total_ms


def test_the_same_simulation_writes_the_same_journal() -> None:
    again = World(reference_rig(), read_trace(built_in()["abcabc"])).run()
    assert again == simulated("abcabc", "ours")
    assert again.digest != simulated("abcabc", "fcfs").digest


def test_agents_sessions_find_their_cache_more_often_than_when_models_come_and_go() -> None:
    ours, baseline = simulated("agents", "ours"), simulated("agents", "fcfs")
    assert ours.cached_tokens > 3 * baseline.cached_tokens
