"""Draining: nothing new is placed, what runs may end until the deadline, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llama_orch.core.errors import ConflictError, NotFoundError
from llama_orch.core.events.pool import PoolDeclared, PoolLoading, PoolUnloading, PoolUnready
from llama_orch.core.projections.pools import PoolState
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.draining import DrainPlan, plan_drains

from .hosted import HostedStage

LOCAL = Caller()


@pytest.fixture
def stage() -> Iterator[HostedStage]:
    """One pool with two slots, whose engine is started and ended for it."""
    stage = HostedStage()
    yield stage
    stage.end()


def drain(stage: HostedStage, deadline_ms: int | None = None) -> None:
    stage.run(stage.services.draining.drain("p", LOCAL, deadline_ms=deadline_ms))


def test_an_idle_pool_is_unloaded_and_stays_so_though_tasks_wait_until_it_is_undrained(stage):
    assert stage.pool.ready
    drain(stage)
    assert stage.events(PoolUnloading)[-1].cause == "drain"
    assert not stage.pool.wanted
    stage.tell(PoolUnready(pool_id="p", cause="unloaded"))
    task = stage.submit().task_id
    stage.advance(3600)
    assert stage.state(task) == "queued"
    assert len(stage.events(PoolLoading)) == 1, "it was loaded once, before it was drained"
    stage.run(stage.services.draining.undrain("p", LOCAL))
    stage.settle()
    assert stage.pool.wanted
    stage.comes_up(2)
    stage.attempt(task).start()
    stage.attempt(task).end()
    assert stage.state(task) == "completed"


def test_a_running_task_that_ends_in_time_ends_on_its_engine(stage):
    task = stage.submit().task_id
    stage.attempt(task).start()
    drain(stage, 10_000)
    later = stage.submit().task_id
    assert stage.state(later) == "queued", "nothing new is placed"
    assert stage.events(PoolUnloading) == []
    stage.advance(9)
    stage.attempt(task).say("done")
    stage.attempt(task).end()
    assert stage.state(task) == "completed"
    assert [event.cause for event in stage.events(PoolUnloading)] == ["drain"]
    assert stage.state(later) == "queued"


def test_what_still_runs_at_the_deadline_is_given_up_for_another_attempt_and_keeps_its_place_and_text(stage):
    task = stage.submit("one").task_id
    reader = stage.reader(task)
    stage.attempt(task).start()
    stage.attempt(task).say("a", "b")
    drain(stage, 5_000)
    later = stage.submit("two").task_id
    stage.advance(5.1)
    first = stage.attempt(task)
    assert first.cancelled
    assert stage.state(task) == "queued"
    first.free()
    stage.settle()
    assert [event.cause for event in stage.events(PoolUnloading)] == ["drain"]
    stage.tell(PoolUnready(pool_id="p", cause="unloaded"))
    stage.run(stage.services.draining.undrain("p", LOCAL))
    stage.comes_up(2)
    assert stage.journal.head.tasks.live[task].failures == 0, "it is no fault of the task"
    second = stage.attempt(task)
    assert second is not first
    second.start()
    second.say("a", "b", "c")
    second.end()
    stage.settle()
    assert reader.text == "abc"
    assert stage.state(task) == "completed"
    assert stage.state(later) != "failed"


def test_a_task_that_wants_no_recovery_is_ended_as_interrupted_and_may_be_sent_again(stage):
    task = stage.submit(recovery="none").task_id
    stage.attempt(task).start()
    stage.attempt(task).say("a")
    drain(stage, 1_000)
    stage.advance(1.1)
    info = stage.info(task)
    assert info.state == "failed"
    assert info.error.code == "INTERRUPTED"
    assert info.error.retriable


def test_an_engine_that_never_frees_its_slots_is_ended_after_a_grace(stage):
    task = stage.submit().task_id
    stage.attempt(task).start()
    drain(stage, 1_000)
    stage.advance(1.1)
    assert stage.state(task) == "queued"
    assert stage.events(PoolUnloading) == []
    stage.advance(5)
    assert [event.cause for event in stage.events(PoolUnloading)] == ["drain"]


def test_a_drain_goes_on_after_a_crash(stage):
    task = stage.submit().task_id
    stage.attempt(task).start()
    drain(stage, 60_000)
    stage.restart()
    assert stage.pool.draining
    stage.settle()
    assert stage.state(task) == "queued"
    assert [event.cause for event in stage.events(PoolUnloading)] == ["drain"]


def test_a_drain_can_be_asked_for_again_with_another_deadline(stage):
    task = stage.submit().task_id
    stage.attempt(task).start()
    drain(stage)
    stage.advance(200)
    assert stage.state(task) == "running", "without a deadline it may end by itself"
    drain(stage, 0)
    stage.advance(0.1)
    assert stage.state(task) == "queued"


def test_an_unknown_pool_and_one_that_is_being_reloaded_are_refused(stage):
    with pytest.raises(NotFoundError):
        stage.run(stage.services.draining.drain("q", LOCAL))
    stage.run(stage.services.reloading.reload("p", "other", LOCAL))
    with pytest.raises(ConflictError, match="is being reloaded"):
        drain(stage)


def drained(cause: str = "operator", *, until_ns: int = 0, wanted: bool = True) -> PoolState:
    declared = PoolDeclared(pool_id="p", engine="e", model_ref="m")
    return PoolState(declared=declared, draining=True, drain_cause=cause, drain_until_ns=until_ns, wanted=wanted)


@pytest.mark.parametrize(
    "state, leases, due",
    [
        (drained(), 0, DrainPlan(unload=("p",))),
        (drained(), 1, DrainPlan()),
        (drained(until_ns=50), 0, DrainPlan(unload=("p",))),
        (drained(wanted=False), 0, DrainPlan()),
        (drained("swap"), 0, DrainPlan()),  # whoever makes room unloads it
        (drained(until_ns=200), 1, DrainPlan(next_look_ns=200)),
        (drained("swap", until_ns=50), 1, DrainPlan(give_up=("p",), next_look_ns=5_000_000_050)),
    ],
)
def test_what_is_due_follows_from_head(state, leases, due):
    assert plan_drains([state], {"p": leases}, 100, managed=lambda _: True) == due


def test_a_pool_whose_engine_is_somebody_elses_is_only_kept_free():
    assert plan_drains([drained()], {}, 100, managed=lambda _: False) == DrainPlan()


def test_a_pool_that_failed_is_tried_at_once_when_somebody_says_that_it_is_mended(stage):
    stage.tell(PoolUnready(pool_id="p", cause="bad-model", permanent=True, retry_ms=600_000))
    before = stage.pool.attempts
    stage.run(stage.services.draining.undrain("p", LOCAL))
    assert stage.pool.attempts == before + 1
    stage.comes_up(2)
    stage.run(stage.services.draining.undrain("p", LOCAL))
    assert stage.pool.attempts == before + 1, "there is nothing to try"
