"""A large prompt is written ahead in pieces, so that no commit and no turn of the loop is long."""

from __future__ import annotations

import pytest

from llama_orch.core.errors import JournalUnavailableError
from llama_orch.core.events.task import TaskAdmitted
from llama_orch.core.services.bodies import PIECE_BYTES
from llama_orch.core.types import ChatMessage

from ...support.stage import on_stage

LARGE = "word " * PIECE_BYTES


def test_a_large_prompt_is_not_in_the_commit_of_its_admission() -> None:
    with on_stage(ctx=10_000_000) as stage:
        task_id = stage.submit(LARGE).task_id
        (admitted,) = stage.payloads(TaskAdmitted, task_id)
        kept = stage.disk.bodies[("local", admitted.body_id)]
        assert len(kept) > 4
        assert all(len(piece.data) <= PIECE_BYTES for piece in kept.values())
        assert not any(unit.bodies for unit in stage.disk.units)
        assert stage.attempt(task_id).job.prompt == LARGE
        stage.attempt(task_id).end()


def test_a_small_prompt_goes_with_its_admission() -> None:
    with on_stage() as stage:
        stage.attempt(stage.submit("hello").task_id).end()
        assert sum(len(unit.bodies) for unit in stage.disk.units) == 1


def test_a_large_prompt_that_the_store_refuses_is_not_accepted() -> None:
    with on_stage(ctx=10_000_000) as stage:
        stage.disk.always = "refused"
        with pytest.raises(JournalUnavailableError, match="cannot be written"):
            stage.submit(LARGE)
        stage.disk.always = ""
        stage.advance(2)
        assert not stage.payloads(TaskAdmitted)
        stage.attempt(stage.submit(LARGE).task_id).end()


def test_a_large_rendered_prompt_is_written_ahead_too() -> None:
    with on_stage(ctx=10_000_000) as stage:
        task_id = stage.submit(workload="chat", messages=[ChatMessage(role="user", content=LARGE)]).task_id
        attempt = stage.attempt(task_id)
        attempt.start()
        stage.settle()
        assert not any(unit.bodies for unit in stage.disk.units)
        assert ("local", stage.journal.head.tasks.live[task_id].started.rendered_id) in stage.disk.bodies  # type: ignore[union-attr]
        attempt.end()
