"""What those who only ask are told, and when: nothing that the journal could still lose (JRN-4)."""

from __future__ import annotations

from typing import Any

import pytest

from llama_orch.core.errors import JournalUnavailableError
from llama_orch.core.services.caller import Caller

from ...support.stage import Stage, on_stage

LOCAL = Caller()


def running(stage: Stage, **fields: Any) -> str:
    """A task that runs."""
    task_id = stage.submit(**fields).task_id
    stage.attempt(task_id).start()
    stage.settle()
    return task_id


@pytest.mark.parametrize("ask", ["get", "page"])
def test_an_end_is_told_only_once_it_is_durable(ask: str) -> None:
    with on_stage(by_hand=True) as stage:
        task_id = running(stage)
        stage.syncer.by_hand = True
        stage.attempt(task_id).say("all of it")
        stage.attempt(task_id).end()
        stage.turn()
        queries = stage.services.tasks
        asked = stage.loop.create_task(queries.get(task_id, LOCAL) if ask == "get" else queries.page(LOCAL))
        stage.turn()
        assert not asked.done(), "neither committed nor synced"
        while stage.commit():
            pass
        assert not asked.done(), "committed, not synced"
        stage.syncer.run()
        stage.settle()
        told: Any = asked.result()
        info = told if ask == "get" else told[0][0]
        assert info.state == "completed"
        if ask == "get":
            assert info.text == "all of it"


def test_an_acceptance_is_told_to_others_only_once_it_is_committed() -> None:
    with on_stage(by_hand=True) as stage:
        stage.loop.create_task(stage.submitting(task_id="00000000-0000-4000-8000-000000000001"))
        stage.turn()
        (task_id,) = stage.journal.head.tasks.live
        asked = stage.loop.create_task(stage.services.tasks.get(task_id, LOCAL))
        stage.turn()
        assert not asked.done()
        stage.commit()
        stage.settle()
        assert asked.done()


@pytest.mark.parametrize("ask", ["get", "page"])
def test_who_asks_for_what_cannot_be_written_is_told_so(ask: str) -> None:
    with on_stage() as stage:
        task_id = running(stage)
        stage.disk.always = "refused"
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.journal.status == "refusing"
        queries = stage.services.tasks
        asked = stage.loop.create_task(queries.get(task_id, LOCAL) if ask == "get" else queries.page(LOCAL))
        stage.settle()
        assert isinstance(asked.exception(), JournalUnavailableError)
        stage.disk.always = ""
        stage.advance(2)
        assert stage.state(task_id) == "completed"


def test_who_asks_for_a_running_task_is_answered_while_the_disk_is_full() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        stage.disk.always = "refused"
        stage.attempt(task_id).say("a")
        stage.settle()
        assert stage.journal.status == "refusing"
        assert stage.state(task_id) == "running"
        stage.disk.always = ""
        stage.advance(2)


def test_a_reader_that_comes_during_a_reopening_gets_the_rest() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        stage.attempt(task_id).say("one ")
        stage.settle()
        stage.loop.hold_work = True
        stage.disk.commits.append("lost")
        stage.attempt(task_id).say("lost")
        stage.settle()
        assert stage.journal.status == "reopening"
        reader = stage.reader(task_id)
        stage.loop.hold_work = False
        stage.loop.do_work()
        stage.settle()
        stage.attempt(task_id).free()
        stage.settle()
        if not reader.connected:
            reader.connect()
        stage.attempt(task_id).start()
        stage.attempt(task_id).say("one ", "two")
        stage.attempt(task_id).end()
        stage.settle()
        assert reader.text == "one two"
        assert reader.ended is not None


def test_a_caller_that_waits_since_a_reopening_hears_of_the_end() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        stage.loop.hold_work = True
        stage.disk.commits.append("lost")
        stage.attempt(task_id).say("lost")
        stage.settle()
        asked = stage.loop.create_task(stage.services.tasks.wait(task_id, LOCAL, 60_000))
        stage.settle()
        stage.loop.hold_work = False
        stage.loop.do_work()
        stage.settle()
        stage.attempt(task_id).free()
        stage.settle()
        stage.attempt(task_id).start()
        stage.attempt(task_id).end()
        stage.settle()
        assert asked.done()


def test_a_reader_that_waited_for_an_admission_of_unknown_outcome_follows_the_task() -> None:
    with on_stage(by_hand=True) as stage:
        stage.disk.commits.append("written")
        stage.loop.create_task(stage.submitting(task_id="00000000-0000-4000-8000-000000000001"))
        stage.turn()
        (task_id,) = stage.journal.head.tasks.live
        reader = stage.reader(task_id)
        stage.settle()
        assert stage.journal.epoch == 2
        if not reader.connected:
            reader.connect()
        stage.attempt(task_id).start()
        stage.attempt(task_id).say("a")
        stage.attempt(task_id).end()
        stage.settle()
        assert reader.text == "a"
        assert reader.ended is not None
