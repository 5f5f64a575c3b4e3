"""A task that waits for a certain pool does not hold up those that other pools can take; among equals, order holds."""

from __future__ import annotations

import random

from llama_orch.core.projections.rank import RankSet
from llama_orch.core.types import PlacementRequest

from ...support.stage import Stage, on_stage

PINNED = PlacementRequest(mode="pin", pin_pool_id="a")


def lose(stage: Stage, name: str) -> None:
    """The pool's engine is gone."""
    with stage.loop.running():
        stage.host.unready(name)
    stage.settle()


def test_tasks_go_past_one_that_is_pinned_to_a_pool_that_is_gone() -> None:
    with on_stage(slots={"a": 1, "b": 1}) as stage:
        full = [stage.submit(f"fill {n}").task_id for n in range(2)]
        pinned = stage.submit(placement=PINNED).task_id
        second = stage.submit("also", placement=PINNED).task_id
        plain = [stage.submit(f"plain {n}").task_id for n in range(2)]
        (on_a,) = [t for t in full if stage.attempt(t) in stage.engines["a"].attempts]
        lose(stage, "a")
        stage.cancel(on_a)
        stage.attempt(on_a).free("engine-gone")
        (on_b,) = [t for t in full if t != on_a]
        for before, after in ((on_b, plain[0]), (plain[0], plain[1])):
            attempt = stage.attempt(before)
            attempt.start()
            attempt.end()
            stage.settle()
            assert stage.state(after) == "placed"
        assert stage.state(pinned) == stage.state(second) == "queued"
        stage.pool_ready("a")
        stage.settle()
        assert stage.state(pinned) == "placed"
        assert stage.state(second) == "queued"
        stage.attempt(plain[1]).start()
        stage.attempt(plain[1]).end()


def test_nobody_goes_past_a_task_that_only_waits_for_a_slot() -> None:
    with on_stage(slots={"a": 1, "b": 1}) as stage:
        for n in range(2):
            stage.submit(f"fill {n}")
        first, second = stage.submit("first").task_id, stage.submit("second", priority="batch").task_id
        attempt = stage.engines["a"].last
        attempt.start()
        attempt.end()
        stage.settle()
        assert (stage.state(first), stage.state(second)) == ("placed", "queued")


def test_the_next_of_a_set_is_found() -> None:
    source = random.Random(7)
    numbers = sorted(source.sample(range(3_000_000), 500))
    ranks = RankSet()
    for number in numbers:
        ranks.add(number)
    found, number = [], ranks.first()
    while number is not None:
        found.append(number)
        number = ranks.after(number)
    assert found == numbers
    assert ranks.after(numbers[0] - 1) == numbers[0]
