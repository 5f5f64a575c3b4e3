"""What a commit or sync can come to, and what everybody is told of it (JRN-8)."""

from __future__ import annotations

import pytest

from llama_orch.core.errors import JournalUnavailableError
from llama_orch.core.events.lease import LeaseReleased
from llama_orch.core.events.server import ServerStarted
from llama_orch.core.events.task import TaskAdmitted, TaskEnded, TaskStarted, TaskTranscribed

from ...support.stage import Stage, on_stage, settings_for


def running(stage: Stage, **fields: object) -> str:
    """A task that runs."""
    task_id = stage.submit(**fields).task_id  # type: ignore[arg-type]
    stage.attempt(task_id).start()
    stage.settle()
    return task_id


# --- refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_was_refused_is_tried_again_and_nothing_is_lost(by_hand: bool) -> None:
    with on_stage(by_hand=by_hand) as stage:
        task_id = running(stage)
        reader = stage.reader(task_id)
        stage.disk.always = "refused"
        for text in "abc":
            stage.attempt(task_id).say(text)
            stage.settle()
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.journal.status == "refusing"
        assert reader.text == ""
        assert reader.connected
        stage.advance(3)
        assert reader.connected, "a stream pauses, it does not break"
        stage.disk.always = ""
        stage.advance(2)
        assert stage.journal.status == "ok"
        assert reader.text == "abc"
        assert reader.ended is not None
        assert stage.said(task_id) == ["a", "b", "c"]


def test_waiters_are_answered_late_but_rightly() -> None:
    with on_stage(by_hand=True) as stage:
        stage.disk.commits.extend(["refused"] * 4)
        waiting = stage.loop.create_task(stage.submitting())
        stage.settle()
        assert not waiting.done()
        stage.advance(2)
        assert waiting.result().task_id


def test_a_cancel_is_refused_while_the_journal_is() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        stage.disk.always = "refused"
        stage.attempt(task_id).say("a")
        stage.settle()
        with pytest.raises(JournalUnavailableError):
            stage.cancel(task_id)
        assert not stage.attempt(task_id).cancelled
        stage.disk.always = ""
        stage.advance(2)
        stage.cancel(task_id)
        assert stage.said(task_id) == ["a"]
        stage.attempt(task_id).free()


@pytest.mark.parametrize("by_hand", [False, True])
def test_engines_pause_when_too_much_waits_and_go_on_afterwards(by_hand: bool) -> None:
    with on_stage(by_hand=by_hand, pending_bytes=2_000) as stage:
        task_id = running(stage)
        attempt = stage.attempt(task_id)
        stage.disk.always = "refused"
        said = 0
        while not attempt.pressed:
            attempt.say("x")
            said += 1
            stage.settle()
            assert said < 100
        assert attempt.resumed == 0
        stage.disk.always = ""
        stage.advance(2)
        assert not attempt.pressed
        assert attempt.resumed >= 1, "the engine was told to go on"
        attempt.end()
        stage.settle()
        assert stage.ended(task_id).tokens_out == said


def test_engines_pause_also_when_commits_are_merely_slow() -> None:
    with on_stage(by_hand=True, pending_bytes=2_000) as stage:
        task_id = running(stage)
        attempt = stage.attempt(task_id)
        while not attempt.pressed:
            attempt.say("x")
            stage.turn()
        while not attempt.resumed:
            assert stage.commit(), "nothing is left to commit, but the engine still waits"
        assert not attempt.pressed


@pytest.mark.parametrize("by_hand", [False, True])
def test_closing_while_refused_tells_that_the_outcome_is_unknown(by_hand: bool) -> None:
    with on_stage(by_hand=by_hand) as stage:
        stage.disk.always = "refused"
        waiting = stage.loop.create_task(stage.submitting())
        stage.settle()
        stage.stop()
        with pytest.raises(JournalUnavailableError) as caught:
            waiting.result()
        assert caught.value.details["outcome_unknown"]
        assert stage.payloads(TaskAdmitted) == []
        assert stage.journal.status == "closed"
        stage.disk.always = ""
        stage.advance(5)
        assert stage.journal.status == "closed", "nothing comes to life behind the end"
        assert stage.payloads(TaskAdmitted) == []


def test_closing_waits_for_the_commit_that_is_under_way() -> None:
    with on_stage(by_hand=True) as stage:
        waiting = stage.loop.create_task(stage.submitting())
        stage.turn()
        closing = stage.loop.create_task(stage.journal.close())
        stage.turn()
        assert not closing.done()
        stage.settle()
        stage.up = False
        assert waiting.result().task_id
        assert closing.done()
        assert len(stage.payloads(TaskAdmitted)) == 1


def test_closing_needs_no_time_when_nothing_waits() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        stage.attempt(task_id).say("a")
        stage.attempt(task_id).end()
        stage.settle()
        before = stage.loop.time()
        stage.stop()
        assert stage.loop.time() - before <= 60, "the wait is only what the test gave"
        assert stage.journal.synced_seq == stage.journal.head.next_seq


# --- unknown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("outcome", ["written", "lost"])
def test_after_an_unknown_outcome_tasks_go_on_by_themselves(outcome: str, by_hand: bool) -> None:
    with on_stage(by_hand=by_hand) as stage:
        task_id = running(stage)
        reader = stage.reader(task_id)
        stage.attempt(task_id).say("a")
        stage.settle()
        assert reader.text == "a"
        first = stage.attempt(task_id)
        stage.disk.commits.append(outcome)
        first.say("b")
        stage.settle()
        assert isinstance(reader.error, JournalUnavailableError)
        assert reader.ended is None
        assert first.cancelled
        assert stage.journal.status == "ok"
        assert [e.cause for e in stage.payloads(ServerStarted)] == ["start", "reopen"]
        first.free()
        stage.settle()
        reader.connect()
        again = stage.attempt(task_id)
        assert again.job.attempt == 2
        again.start()
        again.say("ab", "c")
        again.end()
        stage.settle()
        assert reader.error is None
        assert reader.text == "abc"
        assert "".join(stage.said(task_id)) == "abc"
        assert stage.state(task_id) == "completed"


@pytest.mark.parametrize("outcome", ["written", "lost"])
def test_the_slot_of_a_void_attempt_is_given_away_only_when_it_is_seen_free(outcome: str) -> None:
    with on_stage() as stage:
        task_id = running(stage)
        first = stage.attempt(task_id)
        stage.disk.commits.append(outcome)
        first.say("a")
        stage.settle()
        assert stage.attempt(task_id) is first
        assert stage.journal.head.leases.count("p") == 1
        first.free()
        stage.settle()
        assert [r.cause for r in stage.payloads(LeaseReleased, task_id)] == ["slot-free"]
        assert stage.attempt(task_id).job.attempt == 2


@pytest.mark.parametrize("outcome", ["written", "lost"])
def test_an_end_whose_outcome_is_unknown_happens_once(outcome: str) -> None:
    with on_stage() as stage:
        task_id = running(stage)
        reader = stage.reader(task_id)
        stage.attempt(task_id).say("a")
        stage.settle()
        stage.disk.commits.append(outcome)
        stage.attempt(task_id).end()
        stage.settle()
        assert reader.ended is None
        if outcome == "lost":
            stage.attempt(task_id).free()
            stage.settle()
            stage.attempt(task_id).start()
            stage.attempt(task_id).say("a")
            stage.attempt(task_id).end()
            stage.settle()
        reader.connect()
        assert reader.text == "a"
        assert reader.ended is not None
        assert len(stage.payloads(TaskEnded)) == 1
        assert len(stage.payloads(TaskTranscribed)) == 1
        assert stage.journal.head.tasks.closing == {}


def test_a_transcript_whose_outcome_is_unknown_is_written_again() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        stage.attempt(task_id).say("a")
        stage.settle()
        stage.attempt(task_id).end()
        stage.loop.turn()
        stage.disk.commits.append("lost")
        stage.settle()
        assert stage.journal.epoch == 2
        assert stage.state(task_id) == "completed"
        assert stage.info(task_id).text == "a"
        assert len(stage.payloads(TaskTranscribed)) == 1
        assert stage.journal.head.tasks.closing == {}


def test_facts_whose_outcome_was_unknown_are_told_to_observers_once_they_are_seen() -> None:
    for outcome in ("written", "lost"):
        with on_stage() as stage:
            stage.disk.commits.append(outcome)
            waiting = stage.loop.create_task(stage.submitting())
            stage.settle()
            assert waiting.done()
            waiting.exception()
            told = [r.seq for r in stage.told]
            on_disk = [r.seq for r in stage.facts()]
            assert told == on_disk


def test_a_deadline_whose_cancel_was_lost_still_comes() -> None:
    with on_stage() as stage:
        task_id = running(stage, deadline_ms=1_000)
        stage.loop.advance(0.99)
        stage.disk.commits.append("lost")
        stage.advance(1)
        assert stage.ended(task_id).code == "DEADLINE_UNMET"
        for attempt in stage.engines["p"].attempts:
            attempt.free()


def test_service_returns_by_itself_once_the_database_can_be_opened() -> None:
    with on_stage() as stage:
        stage.disk.reopen_errors = 5
        stage.disk.commits.append("lost")
        waiting = stage.loop.create_task(stage.submitting())
        stage.settle()
        assert stage.journal.status == "reopening"
        assert not waiting.done(), "whether it arrived is not known before the database was looked at"
        with pytest.raises(JournalUnavailableError):
            stage.submit()
        stage.advance(5)
        assert stage.journal.status == "ok"
        with pytest.raises(JournalUnavailableError):
            waiting.result()
        stage.submit()


def test_what_waited_behind_the_unknown_commit_is_void_and_says_so() -> None:
    with on_stage(by_hand=True, slots={"p": 3}) as stage:
        stage.disk.commits.append("written")
        first = stage.loop.create_task(stage.submitting("one"))
        stage.turn()
        second = stage.loop.create_task(stage.submitting("two"))
        stage.turn()
        stage.settle()
        assert first.result().task_id
        with pytest.raises(JournalUnavailableError) as caught:
            second.result()
        assert caught.value.details["outcome_unknown"]
        assert len(stage.payloads(TaskAdmitted)) == 1


def test_an_engine_that_speaks_during_a_reopening_meets_no_error() -> None:
    with on_stage(settings=settings_for({"p": 3}), slots={"p": 3}) as stage:
        ids = [running(stage, prompt=str(n)) for n in range(3)]
        unstarted = stage.submit("four")
        stage.disk.reopen_errors = 3
        stage.disk.commits.append("lost")
        attempts = [stage.attempt(task_id) for task_id in ids]
        attempts[0].say("x")
        stage.settle()
        assert stage.journal.status == "reopening"
        attempts[0].say("y")
        attempts[1].end()
        attempts[2].fail()
        stage.advance(5)
        assert stage.journal.status == "ok"
        for attempt in attempts:
            attempt.free()
        stage.advance(5)
        for task_id in [*ids, unstarted.task_id]:
            assert stage.state(task_id) in ("placed", "queued")


def test_a_reader_that_slept_through_a_reopening_sees_nothing_that_was_voided() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        reader = stage.reader(task_id, stalled=True)
        stage.attempt(task_id).start()
        stage.settle()
        stage.disk.commits.append("lost")
        stage.attempt(task_id).say("void")
        stage.settle()
        stage.attempt(task_id).free()
        stage.settle()
        stage.attempt(task_id).start()
        stage.attempt(task_id).say("true")
        stage.settle()
        reader.go()
        assert "void" not in reader.text
        if not reader.connected:
            reader.connect()
        assert reader.text == "true"
        assert stage.said(task_id) == ["true"]


def test_a_reader_that_waited_for_a_voided_start_does_not_see_it() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        reader = stage.reader(task_id, stalled=True, heartbeat_ms=1_000)
        stage.advance(1.1)
        stage.disk.commits.append("lost")
        stage.attempt(task_id).start(prompt_tokens=99)
        stage.settle()
        stage.attempt(task_id).free()
        stage.settle()
        stage.attempt(task_id).start(prompt_tokens=7)
        stage.settle()
        reader.go()
        assert isinstance(reader.error, JournalUnavailableError)
        reader.connect()
        assert reader.beats == 1
        assert reader.started is not None
        assert reader.started.prompt_tokens == 7
        assert len(stage.payloads(TaskStarted)) == 1


# --- the disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_error_of_the_disk_tells_that_the_outcome_is_unknown(by_hand: bool) -> None:
    with on_stage(by_hand=by_hand) as stage:
        stage.disk.sync_errors = 1
        waiting = stage.loop.create_task(stage.submitting(key="k"))
        stage.settle()
        assert stage.journal.status == "ok"
        assert stage.disk.reopened == 1
        with pytest.raises(JournalUnavailableError) as caught:
            waiting.result()
        assert caught.value.details["outcome_unknown"]
        for attempt in stage.engines["p"].attempts:
            attempt.free()
        stage.settle()
        assert stage.submit(key="k").attached
        assert len(stage.payloads(TaskAdmitted)) == 1


def test_an_error_of_the_disk_never_reopens_during_a_commit() -> None:
    for refused in (False, True):
        with on_stage(by_hand=True) as stage:
            task_id = running(stage)
            stage.syncer.by_hand = True
            cancel = stage.loop.create_task(stage.services.cancel.cancel(task_id, _local()))
            stage.settle()
            assert stage.syncer.wanted
            if refused:
                stage.disk.commits.append("refused")
                other = stage.loop.create_task(stage.submitting("x"))
                stage.turn()
                stage.commit()
                stage.loop.advance(0.06)
            else:
                other = stage.loop.create_task(stage.submitting("x"))
                stage.turn()
            assert stage.committer is not None
            assert stage.committer.waiting, "a commit is under way"
            stage.disk.sync_errors = 1
            stage.syncer.run()
            stage.turn()
            assert stage.disk.reopened == 0
            stage.settle()
            stage.attempt(task_id).free()
            stage.syncer.by_hand = False
            stage.advance(2)
            assert stage.disk.reopened == 1
            # Reopening makes durable what it finds: who can be told that all is well is told so.
            assert cancel.exception() is None
            assert other.exception() is None


def _local():
    from llama_orch.core.services.caller import Caller

    return Caller()


def test_an_end_is_shown_only_once_it_is_durable() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        reader = stage.reader(task_id)
        stage.syncer.by_hand = True
        stage.attempt(task_id).say("a")
        stage.attempt(task_id).end()
        stage.settle()
        assert reader.text == "a"
        assert reader.ended is None
        asked = stage.loop.create_task(stage.services.tasks.get(task_id, _local()))
        late = stage.reader(task_id)
        stage.settle()
        assert not asked.done()
        assert late.ended is None
        stage.syncer.run()
        stage.settle()
        assert reader.ended is not None
        assert late.ended is not None
        assert asked.result().state == "completed"


@pytest.mark.parametrize("moment", ["running", "ended"])
def test_nobody_waits_for_the_disk_for_ever(moment: str) -> None:
    with on_stage() as stage:
        task_id = running(stage, key="k")
        stage.attempt(task_id).say("a")
        if moment == "ended":
            stage.attempt(task_id).end()
        assert stage.submit(key="k").attached, "behind entries that nobody syncs"
        stage.settle()
        stage.attempt(task_id).say("b")
        assert stage.submit(key="k").attached
        stage.cancel(task_id)
        stage.cancel(task_id)
        stage.attempt(task_id).free()


# --- fenced ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_writer_that_was_fenced_stops_and_says_so(by_hand: bool) -> None:
    with on_stage(by_hand=by_hand) as stage:
        task_id = running(stage)
        reader = stage.reader(task_id)
        stage.disk.commits.append("fenced")
        waiting = stage.loop.create_task(stage.submitting("x"))
        stage.settle()
        assert stage.journal.status == "fenced"
        assert len(stage.fatal) == 1
        with pytest.raises(JournalUnavailableError):
            waiting.result()
        assert isinstance(reader.error, JournalUnavailableError)
        with pytest.raises(JournalUnavailableError):
            stage.submit()
        stage.attempt(task_id).say("late")
        stage.attempt(task_id).end()
        stage.advance(1)
        assert stage.payloads(TaskEnded) == []
        stage.stop()


def test_a_fenced_server_comes_to_rest() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        stage.attempt(task_id).say("a")
        stage.settle()
        stage.disk.commits.extend(["ok", "fenced"])
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.journal.status == "fenced"
        stage.advance(3)
        stage.stop()
        stage.start()
        assert stage.info(task_id).text == "a"


def test_a_reopening_that_finds_another_writer_is_fatal() -> None:
    with on_stage() as stage:
        stage.disk.commits.append("lost")
        other = stage.loop.create_task(stage.submitting())
        stage.loop.hold_work = True
        stage.turn()
        stage.disk.held_by = None
        stage.loop.hold_work = False
        stage.loop.do_work()
        stage.settle()
        assert stage.journal.status == "fenced"
        assert len(stage.fatal) == 1
        assert isinstance(other.exception(), JournalUnavailableError)


def test_closing_during_a_reopening_waits_for_what_the_store_does() -> None:
    with on_stage() as stage:
        stage.disk.commits.append("lost")
        waiting = stage.loop.create_task(stage.submitting())
        stage.loop.hold_work = True
        stage.turn()
        assert len(stage.loop.work) == 1
        closing = stage.loop.create_task(stage.journal.close())
        stage.turn()
        assert not closing.done()
        stage.loop.hold_work = False
        stage.loop.do_work()
        stage.settle()
        assert closing.done()
        assert isinstance(waiting.exception(), JournalUnavailableError)
        stage.up = False
