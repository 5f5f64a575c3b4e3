"""Reload, as the server sees it: what is decided, what hosts are told to run, and what tasks notice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llama_orch.core.errors import ConflictError, InvalidParamsError
from llama_orch.core.events.pool import (
    PoolDeclared,
    PoolDraining,
    PoolHandedOver,
    PoolReloaded,
    PoolReloadFailed,
    PoolReloading,
    PoolUnready,
)
from llama_orch.core.projections.pools import PoolState
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.reloading import handover_of
from llama_orch.pools.desired import DesiredPool
from llama_orch.pools.wanting import wanted_pools

from .hosted import HostedStage

LOCAL = Caller()


@pytest.fixture
def stage() -> Iterator[HostedStage]:
    stage = HostedStage()
    yield stage
    stage.end()


def wanted(stage: HostedStage) -> DesiredPool:
    """What the host is told to run."""
    (found,) = wanted_pools(stage.journal.head.pools.by_id, stage.settings, {"mock"})["local"]
    return found


def reload(stage: HostedStage, model: str = "new", **how: Any) -> str:
    told = stage.run(stage.services.reloading.reload("p", model, LOCAL, **how))
    stage.settle()
    return str(told)


def finish(stage: HostedStage, task: str) -> None:
    stage.attempt(task).end()
    stage.settle()


def test_new_first_keeps_the_old_engine_until_its_tasks_ended_and_is_never_unready(stage):
    old = stage.submit().task_id
    stage.attempt(old).start()
    assert reload(stage) == "new-first"
    told = wanted(stage)
    assert (told.model, told.next_model, told.handover) == ("m", "new", "new-first")
    waiting = stage.submit().task_id  # the old engine goes on to take tasks
    stage.attempt(waiting).start()
    finish(stage, waiting)

    stage.tell(stage.ready_event(2), PoolReloaded(pool_id="p", model_ref="new", generation=2))
    assert stage.pool.observed.generation == 2
    told = wanted(stage)
    assert (told.model, told.next_model, told.handover) == ("m", "new", "new-first"), "a task runs on the old engine"
    new = stage.submit().task_id
    stage.attempt(new).start()
    assert stage.state(new) == "running"
    assert stage.events(PoolHandedOver) == []

    finish(stage, old)
    assert len(stage.events(PoolHandedOver)) == 1, "though tasks run on the new one"
    told = wanted(stage)
    assert (told.model, told.next, told.handover) == ("new", None, "")
    finish(stage, new)
    assert [event for event in stage.events(PoolUnready) if event.cause != "unloaded"][1:] == []
    assert stage.pool.ready


def test_clients_keep_their_name_and_the_new_name_leads_to_the_pool_too(stage):
    running, waiting = stage.submit().task_id, [stage.submit().task_id for _ in range(3)]
    stage.attempt(running).start()
    reload(stage)
    stage.tell(stage.ready_event(2), PoolReloaded(pool_id="p", model_ref="new", generation=2))
    finish(stage, running)
    by_new_name = stage.submit(model_ref="new").task_id
    for task in [*waiting, by_new_name]:
        stage.attempt(task).start()
        finish(stage, task)
    assert {stage.state(task) for task in [running, *waiting, by_new_name]} == {"completed"}


def test_a_new_model_that_does_not_come_up_changes_nothing_but_what_is_said(stage):
    reload(stage)
    failed = PoolReloadFailed(pool_id="p", model_ref="new", cause="bad-model", detail="cut short", advice="fetch it")
    stage.tell(failed)
    assert stage.pool.ready
    assert (wanted(stage).model, wanted(stage).next) == ("m", None)
    assert stage.pool.reload_trouble == "bad-model: cut short"
    task = stage.submit().task_id
    stage.attempt(task).start()
    finish(stage, task)
    assert stage.state(task) == "completed"


def test_where_both_do_not_fit_the_old_one_is_emptied_and_goes_first(stage):
    task = stage.submit().task_id
    stage.attempt(task).start()
    reload(stage)
    short = PoolReloadFailed(pool_id="p", model_ref="new", cause="ram-short", detail="needs 9 MiB, 3 MiB are free")
    stage.tell(short)
    assert [event.handover for event in stage.events(PoolReloading)] == ["new-first", "drain"]
    assert stage.pool.draining
    assert wanted(stage).next is None, "its task runs on"
    later = stage.submit().task_id
    assert stage.state(later) == "queued"

    finish(stage, task)
    told = wanted(stage)
    assert (told.model, told.next_model, told.handover) == ("m", "new", "stop-first")
    stage.tell(PoolUnready(pool_id="p", cause="reloading"))
    stage.tell(stage.ready_event(2), PoolReloaded(pool_id="p", model_ref="new", generation=2))
    assert not stage.pool.draining
    assert (wanted(stage).model, wanted(stage).next) == ("new", None)
    stage.attempt(later).start()
    finish(stage, later)
    assert stage.state(later) == "completed"


def test_who_asked_for_new_first_gets_no_other_way(stage):
    reload(stage, handover="new-first")
    stage.tell(PoolReloadFailed(pool_id="p", model_ref="new", cause="vram-short"))
    assert [event.handover for event in stage.events(PoolReloading)] == ["new-first"]


def test_drain_with_a_deadline_gives_up_what_still_runs_and_rolls_back_when_the_new_one_fails(stage):
    task = stage.submit().task_id
    stage.attempt(task).start()
    reload(stage, handover="drain", deadline_ms=1_000)
    stage.advance(1.1)
    assert stage.state(task) == "queued"
    stage.attempt(task).free()
    stage.settle()
    assert wanted(stage).handover == "stop-first"
    stage.tell(PoolUnready(pool_id="p", cause="reloading"))
    stage.tell(PoolReloadFailed(pool_id="p", model_ref="new", cause="bad-model"))
    assert (wanted(stage).model, wanted(stage).next, stage.pool.draining) == ("m", None, False)
    stage.comes_up(3)
    stage.attempt(task).start()
    finish(stage, task)
    assert stage.state(task) == "completed"


def test_a_deadline_of_new_first_bounds_how_long_the_old_engine_stays(stage):
    task = stage.submit().task_id
    stage.attempt(task).start()
    reload(stage, deadline_ms=2_000)
    stage.advance(10)
    stage.tell(stage.ready_event(2), PoolReloaded(pool_id="p", model_ref="new", generation=2))
    first = stage.attempt(task)
    stage.advance(1.9)
    assert not first.cancelled
    stage.advance(0.2)
    assert first.cancelled
    first.free()
    stage.settle()
    assert len(stage.events(PoolHandedOver)) == 1
    assert stage.attempt(task) is not first, "it runs again, on the new engine"


def test_a_reload_goes_on_after_a_crash(stage):
    task = stage.submit().task_id
    stage.attempt(task).start()
    reload(stage, handover="drain")
    stage.restart()
    stage.settle()
    assert wanted(stage).handover == "stop-first", "its task waits: nothing runs on the old engine any more"
    stage.tell(stage.ready_event(2), PoolReloaded(pool_id="p", model_ref="new", generation=2))
    stage.restart()
    assert wanted(stage).model == "new", "it lasts until the configuration is another one"


def test_one_change_at_a_time(stage):
    reload(stage)
    with pytest.raises(ConflictError, match="reloaded already, to 'new'"):
        reload(stage, "other")
    stage.tell(PoolReloadFailed(pool_id="p", model_ref="new", cause="bad-model"))
    stage.run(stage.services.draining.drain("p", LOCAL))
    with pytest.raises(ConflictError, match="being drained"):
        reload(stage)
    with pytest.raises(InvalidParamsError):
        reload(stage, " ")


@pytest.mark.parametrize(
    "ready, fixed_port, way", [(True, False, "new-first"), (True, True, "drain"), (False, False, "drain")]
)
def test_two_engines_share_no_port_and_what_does_not_serve_is_not_kept(ready, fixed_port, way):
    state = PoolState(declared=PoolDeclared(pool_id="p", engine="e", model_ref="m"), ready=ready)
    assert handover_of(state, fixed_port=fixed_port) == way


def test_a_reload_is_drained_with_its_own_cause(stage):
    reload(stage, handover="drain")
    assert [event.cause for event in stage.events(PoolDraining)] == ["reload"]
