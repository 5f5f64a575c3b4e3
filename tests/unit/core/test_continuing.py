"""Going on from what the journal holds, when repeating it said something else (RCV-1)."""

from __future__ import annotations

from typing import Any

import pytest

from ...support.stage import Stage, on_stage


def diverged(stage: Stage, said: tuple[str, ...], **fields: Any) -> str:
    """A task that said something before a restart, and something else behind it."""
    task_id = stage.submit(**fields).task_id
    stage.attempt(task_id).start()
    stage.attempt(task_id).say(*said)
    stage.settle()
    stage.restart()
    attempt = stage.attempt(task_id)
    attempt.start()
    attempt.say("otherwise")
    stage.settle()
    attempt.free()
    stage.settle()
    return task_id


def test_the_rest_of_the_tokens_is_asked_for() -> None:
    with on_stage() as stage:
        task_id = diverged(stage, ("a", "b"), max_tokens=5)
        attempt = stage.attempt(task_id)
        assert (attempt.job.prefix, attempt.job.max_tokens) == ("ab", 3)
        attempt.start()
        attempt.say("c")
        attempt.end()
        stage.settle()
        assert stage.info(task_id).text == "abc"
        assert stage.ended(task_id).recovery_used == "continue"


def test_a_task_that_had_all_its_tokens_asks_for_no_more() -> None:
    with on_stage() as stage:
        task_id = diverged(stage, ("a", "b", "c"), max_tokens=3)
        end = stage.ended(task_id)
        assert (end.outcome, end.finish_reason, end.tokens_out) == ("completed", "length", 3)
        assert end.recovery_used == "continue"
        assert stage.info(task_id).text == "abc"
        assert stage.journal.head.leases.by_id == {}
        assert len(stage.engines["p"].attempts) == 2


@pytest.mark.parametrize("bound", [{"grammar": 'root ::= "x"'}, {"json_schema": {"type": "object"}}])
def test_what_has_to_fit_a_grammar_as_a_whole_is_not_continued_in_its_middle(bound: dict[str, Any]) -> None:
    with on_stage() as stage:
        task_id = diverged(stage, ('{"a": ',), **bound)
        end = stage.ended(task_id)
        assert (end.outcome, end.code, end.retriable) == ("failed", "INTERRUPTED", True)
        assert stage.journal.head.leases.by_id == {}
        assert len(stage.engines["p"].attempts) == 2
