"""The one rule that makes cancel free of races: entries of an attempt that does not run are dropped (CAN-1)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llama_orch.core.entries import batch_of
from llama_orch.core.services.caller import Caller
from llama_orch.core.types import Entry

from ...support.stage import Stage, on_stage


def append(stage: Stage, task_id: str, attempt: int) -> bool:
    """Append behind the back of everything that may know better."""
    return stage.journal.append_entries(task_id, attempt, batch_of([Entry(text="late", ids=(1,))]))


def cancel(stage: Stage, task_id: str) -> None:
    stage.run(stage.services.cancel.cancel(task_id, Caller()))


def end(stage: Stage, task_id: str) -> None:
    stage.attempt(task_id).end()
    stage.settle()


def lose(stage: Stage, task_id: str) -> None:
    stage.attempt(task_id).fail()
    stage.settle()


@pytest.mark.parametrize("happens", [cancel, end, lose])
@pytest.mark.parametrize("committed", [False, True])
def test_nothing_is_appended_for_an_attempt_that_does_not_run(
    happens: Callable[[Stage, str], None], committed: bool
) -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        stage.attempt(task_id).start()
        stage.attempt(task_id).say("a")
        stage.settle()
        assert append(stage, task_id, 1)
        if committed:
            stage.settle()
        held = stage.attempt(task_id)
        happens(stage, task_id)
        assert not append(stage, task_id, 1)
        assert not append(stage, "no-such-task", 1)
        stage.settle()
        assert stage.said(task_id) == ["a", "late"]
        if not held.over:
            held.free()
