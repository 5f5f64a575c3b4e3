"""Services that are closed: nothing begins any more, and what engines still say is not taken."""

from __future__ import annotations

from llama_orch.core.events.task import TaskAttemptFailed, TaskPlaced

from ...support.stage import on_stage


def test_nothing_is_placed_once_the_services_are_closed() -> None:
    with on_stage(ready=False) as stage:
        stage.submit()
        stage.run(stage.services.close())
        stage.pool_ready("p")
        stage.settle()
        assert stage.payloads(TaskPlaced) == []


def test_engines_that_end_behind_their_attempts_cost_no_attempt() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        stage.attempt(task_id).start()
        stage.settle()
        stage.run(stage.services.close())
        assert stage.attempt(task_id).cancelled
        stage.attempt(task_id).late("gone")
        stage.settle()
        assert stage.payloads(TaskAttemptFailed) == []
        assert stage.state(task_id) == "running"
