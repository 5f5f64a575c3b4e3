"""Predictions of a server: made at admission, journaled with their outcome, shown, and used for deadlines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from llama_orch.core.errors import DeadlineUnmetError
from llama_orch.core.events.task import TaskAdmitted, TaskStarted
from llama_orch.core.projections.calibration import Calibration
from llama_orch.core.services.estimates import Estimator

from ...support.stage import Stage
from .conftest import Fold


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage(slots={"p": 1})
    yield made
    made.check()
    made.end()


def whole_task(stage: Stage, tokens: int, *, seconds: float = 1.0, **fields: Any) -> str:
    admission = stage.submit(**fields)
    attempt = stage.attempt(admission.task_id)
    attempt.start()
    stage.settle()
    for _ in range(tokens):
        attempt.say("x")
    stage.advance(seconds)
    attempt.say("x")
    stage.settle()
    attempt.end(decode_us=int(seconds * 1e6))
    stage.settle()
    return admission.task_id


def test_prediction_and_outcome_are_journaled(stage: Stage) -> None:
    first = stage.submit()
    second = stage.submit()
    attempt = stage.attempt(first.task_id)
    attempt.start()
    stage.advance(3)
    attempt.end()
    stage.settle()
    stage.attempt(second.task_id).start()
    stage.settle()
    (admitted,) = stage.payloads(TaskAdmitted, second.task_id)
    (started,) = stage.payloads(TaskStarted, second.task_id)
    assert admitted.load_band == "next"
    assert admitted.modelled_start_ms[0] <= admitted.modelled_start_ms[1] <= admitted.modelled_start_ms[2]
    assert admitted.predicted_start_ms_p10 <= admitted.predicted_start_ms <= admitted.predicted_start_ms_p90
    assert admitted.predicted_start_ms == second.predicted_start_ms
    assert started.queue_time_ms == 3000
    assert stage.journal.head.of(Calibration).bands["m", "next"].score.n == 1
    stage.run(stage.services.cancel.cancel(second.task_id, _caller()))


def _caller() -> Any:
    from llama_orch.core.services.caller import Caller

    return Caller()


def test_the_view_tells_scores_rates_and_only_the_callers_own_lengths(stage: Stage) -> None:
    whole_task(stage, 20)
    whole_task(stage, 20, owner="ann")
    view = stage.services.estimates.view("ann")
    (group,) = [g for g in view.groups if g.group == "m"]
    assert [(b.band, b.n) for b in group.bands] == [("free", 2)]
    assert {one.owner for one in view.lengths} == {"", "ann"}
    assert [one.n for one in view.lengths] == [2, 1]
    (pool,) = view.pools
    assert pool.pool_id == "p"
    assert 1 in pool.decode_mtok_s


def test_what_a_caller_usually_gets_decides_whether_a_deadline_can_be_met(stage: Stage) -> None:
    for _ in range(40):
        whole_task(stage, 200, seconds=20.0)
    with pytest.raises(DeadlineUnmetError) as refused:
        stage.submit(deadline_ms=2_000)
    assert "hardly any was short enough" in refused.value.message
    assert refused.value.field == "deadline_ms"
    # Whoever asks for few tokens can be served in time, and of another caller nothing is known.
    short = stage.submit(deadline_ms=2_000, max_tokens=5)
    stage.cancel(short.task_id)
    stage.attempt(short.task_id).free()
    stage.settle()
    other = stage.submit(deadline_ms=2_000, owner="ann")
    stage.cancel(other.task_id, "ann")


def test_nobody_is_turned_away_for_a_guess_about_a_load() -> None:
    stage = Stage(slots={"p": 1}, ready=False)
    stage.settle()
    admission = stage.submit(deadline_ms=400)
    assert admission.predicted_start_ms > 0
    stage.cancel(admission.task_id)
    stage.end()


def test_the_chance_to_end_in_time_falls_as_time_passes(stage: Stage) -> None:
    for _ in range(5):
        whole_task(stage, 100, seconds=5.0)
    admission = stage.submit(deadline_ms=20_000)
    stage.attempt(admission.task_id).start()
    stage.settle()
    head, estimator = stage.journal.head, Estimator()
    state = head.tasks.live[admission.task_id]
    chances = []
    for _ in range(4):
        found = estimator.on_time_permille(head, state, stage.journal.now_ns())
        assert found is not None
        chances.append(found)
        stage.advance(4.5)
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > 700
    assert estimator.on_time_permille(head, state, state.admitted.deadline_ns) == 0
    stage.cancel(admission.task_id)


def test_a_task_without_a_deadline_has_no_chance_to_tell(stage: Stage) -> None:
    admission = stage.submit()
    head = stage.journal.head
    assert Estimator().on_time_permille(head, head.tasks.live[admission.task_id], stage.journal.now_ns()) is None
    stage.cancel(admission.task_id)


def calls(work: Callable[[], object]) -> int:
    """Python functions that run."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_a_prediction_costs_the_same_whatever_waits(fold: Fold) -> None:
    fold.pool(slots=2)
    fold.run("before", tokens=50)
    for slot in range(2):
        fold.admit(f"runs{slot}")
        fold.place(f"runs{slot}", slot=slot)
        fold.start(f"runs{slot}")
    costs = []
    for depth in (100, 10_000):
        while len(fold.head.queue.groups.get("m", ())) < depth:
            n = len(fold.head.queue.groups.get("m", ()))
            fold.admit(f"w{n}", max_tokens=(0, 64, 512)[n % 3])
        estimator = Estimator()
        costs.append(calls(lambda e=estimator, d=depth: e.start(fold.head, "m", d, fold.now_ns)))  # type: ignore[misc]
    assert costs[1] <= 1.2 * costs[0]


def test_the_same_state_gives_the_same_prediction_whoever_asked_before(fold: Fold) -> None:
    fold.pool()
    busy = Estimator()
    for n in range(30):
        fold.run(f"t{n}", tokens=20 + 7 * n, owner="ab"[n % 2])
        fold.admit(f"w{n}")
        busy.start(fold.head, "m", n, fold.now_ns)
        fold.end(f"w{n}", outcome="cancelled", finish_reason="cancelled")
    fold.admit("runs")
    fold.place("runs")
    fold.start("runs")
    assert busy.start(fold.head, "m", 9, fold.now_ns) == Estimator().start(fold.head, "m", 9, fold.now_ns)


def test_starts_of_a_whole_queue_are_those_of_its_places(fold: Fold) -> None:
    fold.pool(slots=1)
    fold.run("before", tokens=50)
    fold.admit("runs")
    fold.place("runs")
    fold.start("runs")
    priorities = ["interactive"] * 30 + ["batch"] * 10
    for n, priority in enumerate(priorities):
        fold.admit(f"w{n}", priority=priority)
    estimator = Estimator()
    starts = estimator.starts_ms(fold.head, "m", priorities, fold.now_ns)
    assert len(starts) == 40
    for place in (0, 1, 29, 30, 39):
        assert starts[place] == estimator.start(fold.head, "m", place, fold.now_ns, priority=priorities[place]).start_ms
    for place in range(30):
        exact = estimator.start(fold.head, "m", place, fold.now_ns).start_ms
        assert starts[place] == pytest.approx(exact, rel=0.15)
    assert calls(lambda: estimator.starts_ms(fold.head, "m", priorities[:30], fold.now_ns)) < 12 * calls(
        lambda: estimator.start(fold.head, "m", 20, fold.now_ns)
    )
    assert estimator.starts_ms(fold.head, "m", [], fold.now_ns) == []
