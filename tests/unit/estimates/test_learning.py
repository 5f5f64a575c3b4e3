"""What is learnt from events: rates, lengths, loads, and sums of what waits."""

from __future__ import annotations

import msgspec
import pytest

from llama_orch.core.events.pool import PoolDeclared, PoolDraining, PoolLoading, PoolReady, PoolUnready
from llama_orch.core.events.task import TaskAttemptFailed
from llama_orch.core.projections.estimates import MOST_KINDS, MOST_LENGTHS, Estimates
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.measures import Average, Line

from .conftest import Fold


def rates(fold: Fold) -> Estimates:
    return fold.head.of(Estimates)


def test_a_token_costs_what_it_did_with_so_many_neighbours(fold: Fold) -> None:
    fold.pool()
    fold.run("alone", tokens=101, token_ms=20)
    for task in ("one", "two"):
        fold.admit(task)
    for slot, task in enumerate(("one", "two")):
        fold.place(task, slot=slot)
        fold.start(task)
    fold.later(3000)
    for task in ("one", "two"):
        fold.end(task, tokens_out=101, decode_ms=3000)
    learnt = rates(fold).pools["p"].token_ns
    assert learnt[1].mean == 20_000_000
    assert learnt[2].mean == 30_000_000


def test_a_neighbour_for_half_of_the_time_is_half_a_neighbour(fold: Fold) -> None:
    fold.pool(slots=4)
    fold.admit("long")
    fold.place("long")
    fold.start("long")
    for n in range(3):
        fold.admit(f"short{n}")
        fold.place(f"short{n}", slot=n + 1)
        fold.start(f"short{n}")
    fold.later(1000)
    for n in range(3):
        fold.end(f"short{n}", tokens_out=11, decode_ms=1000)
    fold.later(2000)
    fold.end("long", tokens_out=101, decode_ms=3000)
    # Four streams for a second, one for two: two on average.
    assert list(rates(fold).pools["p"].token_ns) == [4, 2]


def test_lengths_are_kept_per_caller_and_for_all(fold: Fold) -> None:
    fold.pool()
    fold.run("a", tokens=50, owner="ann")
    fold.run("b", tokens=400, owner="bob")
    fold.run("c", tokens=100, owner="bob", finish_reason="length")
    learnt = rates(fold).lengths
    assert learnt["ann", "m", 0].seen == 1
    assert learnt["bob", "m", 0].seen == 2
    assert len(learnt["bob", "m", 0].cuts) == 1
    assert learnt["", "m", 0].seen == learnt["", "", 0].seen == 3


def test_a_failed_task_says_nothing_of_lengths(fold: Fold) -> None:
    fold.pool()
    fold.run("a", tokens=50, outcome="failed")
    assert rates(fold).lengths == {}


def test_callers_that_were_not_seen_for_longest_are_forgotten(fold: Fold) -> None:
    fold.pool()
    for n in range(MOST_LENGTHS + 20):
        fold.run(f"t{n}", tokens=5, owner=f"o{n}")
    learnt = rates(fold).lengths
    assert len(learnt) == MOST_LENGTHS
    assert ("o0", "m", 0) not in learnt
    assert (f"o{MOST_LENGTHS + 19}", "m", 0) in learnt
    assert learnt["", "m", 0].seen == MOST_LENGTHS + 20


def test_a_lane_tells_a_bounded_number_of_kinds_apart(fold: Fold) -> None:
    fold.pool()
    for n in range(3 * MOST_KINDS):
        fold.admit(f"t{n}", owner=f"o{n}")
    lane = rates(fold).lanes["m", "interactive"]
    assert lane.tasks == 3 * MOST_KINDS == sum(lane.kinds.values())
    assert len(lane.kinds) == MOST_KINDS + 1
    for n in range(3 * MOST_KINDS):
        fold.end(f"t{n}", outcome="cancelled", finish_reason="cancelled")
    assert (lane.tasks, lane.kinds, lane.prompt_tokens) == (0, {}, 0)


def test_what_waits_is_counted_until_it_leaves_and_again_when_it_comes_back(fold: Fold) -> None:
    fold.pool()
    fold.admit("t", prompt_tokens=70)
    lane = rates(fold).lanes["m", "interactive"]
    assert (lane.tasks, lane.prompt_tokens) == (1, 70)
    fold.place("t")
    assert (lane.tasks, lane.prompt_tokens) == (0, 0)
    fold(TaskAttemptFailed(task_id="t", attempt=1, pool_id="p", code="cut", message=""))
    assert (lane.tasks, lane.prompt_tokens) == (1, 70)
    fold.end("t", outcome="cancelled", finish_reason="cancelled")
    assert (lane.tasks, lane.prompt_tokens) == (0, 0)


def test_a_load_is_timed_from_the_decision(fold: Fold) -> None:
    fold(PoolDeclared(pool_id="p", engine="mock", model_ref="m"))
    for took in (4000, 6000):
        fold(PoolLoading(pool_id="p", devices=["cpu"]))
        fold.later(took)
        fold(PoolReady(pool_id="p", replica_id="r0", generation=1, engine_version="1", slots=1, ctx=1, load_ms=17))
    assert rates(fold).pools["p"].load_ms.mean == 5000
    assert rates(fold).pools["p"].loading_since_ns == 0


def test_a_load_that_failed_is_none(fold: Fold) -> None:
    fold(PoolDeclared(pool_id="p", engine="mock", model_ref="m"))
    fold(PoolLoading(pool_id="p", devices=["cpu"]))
    fold.later(1000)
    fold(PoolUnready(pool_id="p", cause="bad-model"))
    assert rates(fold).pools["p"].loading_since_ns == 0
    assert rates(fold).pools["p"].load_ms.seen == 0


def test_how_long_a_group_waits_for_a_pool_is_learnt_by_how_many_others_want_memory(fold: Fold) -> None:
    for name, group in (("p", "m"), ("q", "n")):
        fold(PoolDeclared(pool_id=name, engine="mock", model_ref=group))
    fold.admit("a", group="m")
    fold.later(100)
    fold.admit("b", group="n")
    fold.later(900)
    fold(PoolReady(pool_id="p", replica_id="r0", generation=1, engine_version="1", slots=1, ctx=1))
    fold.later(4000)
    fold(PoolReady(pool_id="q", replica_id="r0", generation=1, engine_version="1", slots=1, ctx=1))
    wakes = rates(fold).wakes
    assert list(wakes["m"].took_ms) == [0]
    # The other one came while the first waited: that is "others at work" and one that waits.
    assert list(wakes["n"].took_ms) == [2]
    assert wakes["m"].since_ns == wakes["n"].since_ns == 0


def test_a_pool_that_drains_leaves_its_group_waiting(fold: Fold) -> None:
    fold.pool()
    fold.admit("a")
    assert rates(fold).wakes["m"].since_ns == 0
    fold(PoolDraining(pool_id="p", deadline_ms=0, cause="swap"))
    assert rates(fold).wakes["m"].since_ns == fold.now_ns


def test_another_model_of_a_pool_is_measured_anew(fold: Fold) -> None:
    fold.pool()
    fold.run("a", tokens=50)
    fold(PoolDeclared(pool_id="p", engine="mock", model_ref="other"))
    assert rates(fold).pools["p"].token_ns == {}
    assert rates(fold).pools["p"].group == "other"


def test_the_state_survives_a_snapshot(fold: Fold) -> None:
    fold.pool()
    for n in range(20):
        fold.run(f"t{n}", tokens=10 + n, owner=f"o{n % 3}", prompt_tokens=n)
    fold.admit("waits", expected_tokens=100, max_tokens=300)
    again = Head()
    again.load(msgspec.json.decode(msgspec.json.encode(fold.head.dump())))
    assert again.digest() == fold.head.digest()
    assert again.dump() == fold.head.dump()


def test_an_average_fades_and_is_exact_at_first() -> None:
    average = Average()
    for number in (10, 20, 30):
        average.add(number)
    assert average.mean == 20
    for _ in range(200):
        average.add(100)
    assert average.mean in (99, 100) or average.mean == pytest.approx(100, abs=16)


def test_a_line_finds_what_grows_with_the_prompt() -> None:
    line = Line()
    for x in [10, 50, 100, 400, 900, 30, 70, 250] * 8:
        line.add(x, 3000 + 40 * x)
    assert line.at(0) == pytest.approx(3000, rel=0.05)
    assert line.at(1000) == pytest.approx(43_000, rel=0.02)


def test_a_line_does_not_fall() -> None:
    line = Line()
    for x in range(1, 40):
        line.add(x, 1000 - 20 * x)
    assert line.at(1000) == line.at(0) > 0
