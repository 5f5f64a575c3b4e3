"""Streams: late, many, slow and returning readers (STR-1 to STR-3, STR-6, JRN-4)."""

from __future__ import annotations

import pytest

from llama_orch.core.entries import batch_of
from llama_orch.core.errors import InvalidParamsError, NotFoundError, ResumeLostError
from llama_orch.core.events.task import TaskCancelled, TaskEnded
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.streams import Cursor, check_cursor, parse_cursor
from llama_orch.core.types import Entry

from ...support.stage import Stage, on_stage


def running(stage: Stage, **fields: object) -> str:
    """A task that runs."""
    task_id = stage.submit(**fields).task_id  # type: ignore[arg-type]
    stage.attempt(task_id).start()
    stage.settle()
    return task_id


def spoken(stage: Stage, count: int, **fields: object) -> str:
    """A task that said ``0 1 2 …`` in frames of one entry."""
    task_id = running(stage, **fields)
    for n in range(count):
        stage.attempt(task_id).say(f"{n} ")
        stage.settle()
    return task_id


TEXT = "".join(f"{n} " for n in range(20))


@pytest.mark.parametrize("moment", ["running", "ended", "transcribed", "restarted", "compacted"])
def test_resume_from_every_id_has_no_gap_and_no_duplicate(moment: str) -> None:
    with on_stage() as stage:
        stage.services.transcripts.compact_from = 1
        stage.services.transcripts.rest_s = 0
        task_id = spoken(stage, 20)
        reader = stage.reader(task_id)
        if moment != "running":
            if moment == "ended":
                stage.syncer.by_hand = True
            stage.attempt(task_id).end()
            stage.settle()
            stage.syncer.run()
            stage.syncer.by_hand = False
            stage.settle()
            if moment == "compacted":
                other = running(stage)
                stage.attempt(other).end()
                stage.settle()
                assert stage.said(task_id) == []
            if moment == "restarted":
                stage.restart()
        elif moment == "running":
            assert len(reader.ids) == 21
        ids = reader.ids
        for n, last in enumerate([None, *ids]):
            late = stage.reader(task_id, after=last)
            assert late.error is None
            assert late.ids == ids[n:]
            assert late.text == TEXT[len("".join(reader.texts[: max(0, n - 1)])) :]
            late.cut()


@pytest.mark.parametrize("ended", [False, True])
def test_resume_from_within_what_arrived_together_goes_on_at_the_next_token(ended: bool) -> None:
    with on_stage() as stage:
        task_id = running(stage)
        stage.attempt(task_id).say("a", "b", "c", "d")
        stage.settle()
        stage.attempt(task_id).say("e", "f")
        stage.settle()
        if ended:
            stage.attempt(task_id).end()
            stage.settle()
        ids = stage.reader(task_id).ids
        assert len(ids) == 7 + ended
        for n, last in enumerate(ids[:7]):
            late = stage.reader(task_id, after=last)
            assert (late.ids, late.text) == (ids[n + 1 :], "abcdef"[n:])
            late.cut()


def test_many_readers_see_the_same() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        readers = []
        for n in range(30):
            readers.append(stage.reader(task_id))
            stage.attempt(task_id).say(f"{n} ", "x")
            stage.settle()
        stage.attempt(task_id).end()
        stage.settle()
        assert len({(r.text, tuple(r.ids), r.ended is None) for r in readers}) == 1


def test_a_reader_with_room_takes_segments_right_from_the_commit_and_sees_the_same() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        fast, plain = stage.reader(task_id, fast=True), stage.reader(task_id)
        for n in range(20):
            stage.attempt(task_id).say(f"{n} ", "x")
            stage.settle()
        stage.attempt(task_id).end()
        stage.settle()
        assert fast.taken_fast >= 18
        assert (fast.ids, fast.texts, fast.ended) == (plain.ids, plain.texts, plain.ended)


def test_a_reader_that_has_room_again_misses_nothing() -> None:
    with on_stage(buffer_bytes=4_096) as stage:
        task_id = running(stage)
        reader = stage.reader(task_id, fast=True, stalled=True)
        for n in range(60):
            stage.attempt(task_id).say(f"{n} ")
            stage.settle()
            if n == 40:
                reader.go()
        stage.attempt(task_id).end()
        stage.settle()
        assert reader.texts == [f"{n} " for n in range(60)]
        assert reader.taken_fast > 0
        assert reader.ended is not None


def test_a_stalled_reader_takes_no_memory_and_misses_nothing() -> None:
    with on_stage(buffer_bytes=4_096) as stage:
        task_id = running(stage)
        stalled = stage.reader(task_id, stalled=True)
        quick = stage.reader(task_id)
        stream = stage.journal.streams[task_id]
        for n in range(200):
            stage.attempt(task_id).say(*(f"{n}.{m} " for m in range(10)))
            stage.settle()
            assert stream.bytes <= 4_096 + 400 + 160 * 10
        assert stream.base > 1
        assert len(quick.texts) == 2_000
        assert stalled.texts == []
        stage.attempt(task_id).end()
        stage.settle()
        stalled.go()
        assert stalled.texts == quick.texts
        assert stalled.ids == quick.ids
        assert stalled.tokens == quick.tokens


def test_a_stalled_reader_goes_on_from_the_transcript_when_the_frames_were_compacted() -> None:
    with on_stage(buffer_bytes=4_096) as stage:
        stage.services.transcripts.compact_from = 1
        stage.services.transcripts.rest_s = 0
        task_id = running(stage)
        stalled = stage.reader(task_id, stalled=True)
        for n in range(100):
            stage.attempt(task_id).say(*(f"{n}.{m} " for m in range(10)))
            stage.settle()
        stage.attempt(task_id).end()
        stage.settle()
        other = running(stage)
        stage.attempt(other).end()
        stage.settle()
        assert stage.said(task_id) == []
        stalled.go()
        assert len(stalled.texts) == 1_000
        assert stalled.ended is not None


def test_a_reader_that_takes_one_list_at_a_time_reads_everything() -> None:
    with on_stage(buffer_bytes=4_096) as stage:
        task_id = running(stage)
        slow = stage.reader(task_id, stalled=True)
        for n in range(120):
            stage.attempt(task_id).say(f"{n} ")
            stage.settle()
            if n % 7 == 0:
                slow.take()
        stage.attempt(task_id).end()
        stage.settle()
        for _ in range(300):
            slow.take()
        assert slow.texts == [f"{n} " for n in range(120)]
        assert slow.ended is not None


def test_a_late_reader_of_a_running_task_starts_at_the_start() -> None:
    with on_stage(by_hand=True, buffer_bytes=4_096) as stage:
        task_id = spoken(stage, 60)
        stage.attempt(task_id).say("pending")
        stage.turn()
        late = stage.reader(task_id)
        stage.turn()
        assert late.texts == [f"{n} " for n in range(60)]
        stage.settle()
        assert late.texts[-1] == "pending"


def test_a_reader_comes_before_the_task_starts() -> None:
    with on_stage() as stage:
        first = stage.submit().task_id
        second = stage.submit().task_id
        reader = stage.reader(second)
        assert reader.connected
        assert reader.ids == []
        stage.attempt(first).start()
        stage.attempt(first).end()
        stage.settle()
        stage.attempt(second).start()
        stage.settle()
        assert reader.started is not None
        assert reader.ids == ["1.0"]


def test_queue_progress_and_heartbeats() -> None:
    with on_stage() as stage:
        ids = [stage.submit().task_id for _ in range(4)]
        reader = stage.reader(ids[3], progress=True, heartbeat_ms=1_000)
        assert reader.positions == [2]
        for n in range(3):
            stage.attempt(ids[n]).start()
            stage.attempt(ids[n]).end()
            stage.settle()
            stage.advance(1.1)
        assert reader.positions == [2, 1, 0]
        assert reader.beats >= 3
        stage.attempt(ids[3]).start()
        stage.settle()
        before = reader.beats
        for _ in range(30):
            stage.attempt(ids[3]).say("x")
            stage.advance(0.5)
        assert reader.beats <= before + 1, "who hears something needs no heartbeat"
        stage.advance(3.5)
        assert reader.beats >= before + 3


def test_a_task_that_ended_without_a_start_has_an_end_alone() -> None:
    with on_stage() as stage:
        running_id = stage.submit().task_id
        queued = stage.submit().task_id
        reader = stage.reader(queued)
        stage.cancel(queued)
        stage.settle()
        assert (reader.started, reader.ids) == (None, ["1.1"])
        assert reader.ended is not None
        late = stage.reader(queued)
        assert late.ids == ["1.1"]
        again = stage.reader(queued, after="1.1")
        assert (again.ids, again.error, again.connected) == ([], None, False)
        stage.cancel(running_id)
        stage.attempt(running_id).free()


@pytest.mark.parametrize("after, held", [("1.9", "1.3"), ("2.1", "1.1"), ("1.40", "1.3"), ("7.0", "1.0"), ("0.1", "")])
@pytest.mark.parametrize("ended", [False, True])
def test_an_id_that_the_journal_does_not_hold_is_told_with_the_last_before_it_that_it_does(
    after: str, held: str, ended: bool
) -> None:
    with on_stage() as stage:
        task_id = spoken(stage, 3)
        if ended:
            stage.attempt(task_id).end()
            stage.settle()
        reader = stage.reader(task_id, after=after)
        assert isinstance(reader.error, ResumeLostError)
        assert reader.error.details["last_id_held"] == held


def test_what_took_the_place_of_a_lost_tail_is_nothing_that_its_reader_has_seen() -> None:
    """The reader saw 1.1 to 1.5; the journal kept 1.1 and 1.2, and has gone on in epoch 2 since."""
    with pytest.raises(ResumeLostError) as lost:
        check_cursor(Cursor(6, 1), 1, [(1, 1), (2, 3)], 4, None)
    assert lost.value.details["last_id_held"] == "1.2"
    with pytest.raises(ResumeLostError) as all_lost:
        check_cursor(Cursor(6, 1), 2, [(2, 1)], 9, (2, 10))
    assert all_lost.value.details["last_id_held"] == ""


def test_an_id_from_before_the_start_is_lost_when_nothing_is_held() -> None:
    with on_stage() as stage:
        stage.submit()
        queued = stage.submit().task_id
        reader = stage.reader(queued, after="1.3")
        assert isinstance(reader.error, ResumeLostError)
        assert reader.error.details["last_id_held"] == ""


@pytest.mark.parametrize("raw", ["x", "1", "1.", ".1", "-1.2", "1.2.3", "1.x", "१.२", "1.1" + "0" * 50, " 1.2"])
def test_what_is_no_id_is_refused_by_name(raw: str) -> None:
    with pytest.raises(InvalidParamsError) as caught:
        parse_cursor(raw)
    assert caught.value.field == "Last-Event-ID"


def test_cursors() -> None:
    assert parse_cursor(None) == parse_cursor("") == Cursor(0, 0)
    assert parse_cursor("3.7") == Cursor(8, 3)
    check_cursor(Cursor(0, 0), 0, [], 0, None)
    check_cursor(Cursor(6, 2), 1, [(1, 1), (2, 4)], 5, (2, 6))
    check_cursor(Cursor(4, 1), 1, [(1, 1), (2, 4)], 5, (2, 6))


def test_strangers_see_nothing() -> None:
    with on_stage() as stage:
        task_id = spoken(stage, 1, owner="a")
        for _ in range(2):
            reader = stage.reader(task_id, owner="b")
            assert isinstance(reader.error, NotFoundError)
            assert stage.reader(task_id, owner="a").error is None
            stage.attempt(task_id).end()
            stage.settle()
        assert isinstance(stage.reader("00000000-0000-0000-0000-0000000000ff").error, NotFoundError)


def test_a_reader_that_was_there_is_forgotten_when_it_leaves() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        readers = [stage.reader(task_id) for _ in range(5)]
        stream = stage.journal.streams[task_id]
        assert len(stream.listeners) == 5
        for reader in readers:
            reader.cut()
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.journal.streams == {}


# --- the last reader's leaving (STR-6) ---------------------------------------------------------------------------


def test_the_last_readers_leaving_cancels_the_task_where_that_is_wanted() -> None:
    with on_stage() as stage:
        task_id = spoken(stage, 3, cancel_on_disconnect=True)
        first, second = stage.reader(task_id, attached=True), stage.reader(task_id, attached=True)
        first.leave()
        stage.settle()
        assert stage.state(task_id) == "running"
        second.leave()
        stage.settle()
        assert stage.state(task_id) == "cancelled"
        assert [c.reason for c in stage.payloads(TaskCancelled)] == ["disconnect"]
        assert stage.attempt(task_id).cancelled
        stage.attempt(task_id).free()


@pytest.mark.parametrize("api, cancels", [("tasks", False), ("openai.chat", True)])
def test_whether_leaving_cancels_is_a_setting_of_the_route(api: str, cancels: bool) -> None:
    with on_stage() as stage:
        task_id = spoken(stage, 1, api=api)
        stage.reader(task_id, attached=True).leave()
        stage.settle()
        assert (stage.state(task_id) == "cancelled") == cancels
        stage.attempt(task_id).free()


def test_a_reader_that_saw_the_end_cancels_nothing() -> None:
    with on_stage() as stage:
        task_id = spoken(stage, 1, cancel_on_disconnect=True)
        reader = stage.reader(task_id, attached=True)
        stage.attempt(task_id).end()
        stage.settle()
        reader.leave()
        assert not reader.connected
        assert stage.state(task_id) == "completed"
        assert stage.services.readers.open == 0


def test_leaving_while_the_journal_is_refused_leaves_the_task_running() -> None:
    with on_stage() as stage:
        task_id = spoken(stage, 1, cancel_on_disconnect=True)
        reader = stage.reader(task_id, attached=True)
        stage.disk.always = "refused"
        stage.attempt(task_id).say("x")
        stage.settle()
        reader.leave()
        stage.disk.always = ""
        stage.advance(2)
        assert stage.state(task_id) == "running"
        assert len(stage.payloads(TaskEnded)) == 0
        assert stage.services.readers.open == 0


def test_leaving_without_having_come_is_harmless() -> None:
    with on_stage() as stage:
        task_id = spoken(stage, 1)
        with stage.loop.inside():
            stage.services.readers.detach(task_id, Caller(), gone=True)
            stage.services.readers.detach("nothing", Caller(), gone=True)
        assert stage.state(task_id) == "running"


# --- waiting and paging ------------------------------------------------------------------------------------------


def test_waiting_answers_with_the_end_or_after_its_time() -> None:
    with on_stage() as stage:
        task_id = spoken(stage, 2)
        waiting = stage.loop.create_task(stage.services.tasks.wait(task_id, Caller(), 5_000))
        impatient = stage.loop.create_task(stage.services.tasks.wait(task_id, Caller(), 100))
        stage.advance(1)
        assert impatient.result().state == "running"
        assert not waiting.done()
        stage.attempt(task_id).end()
        stage.settle()
        assert (waiting.result().state, waiting.result().text) == ("completed", "0 1 ")
        assert stage.run(stage.services.tasks.wait(task_id, Caller(), 0)).text == "0 1 "
        with pytest.raises(NotFoundError):
            stage.run(stage.services.tasks.wait(task_id, Caller(owner="b"), 0))


def test_pages_hold_every_task_once() -> None:
    with on_stage(slots={"p": 2}) as stage:
        ids = []
        for n in range(12):
            ids.append(stage.submit(str(n)).task_id)
            if n % 3 == 0:
                attempt = stage.engines["p"].last
                attempt.start()
                attempt.end()
                stage.settle()
        stage.submit("other", owner="b")
        seen, before = [], ""
        while True:
            page, before = stage.run(stage.services.tasks.page(Caller(), before=before, limit=5))
            seen += [info.task_id for info in page]
            if not before:
                break
        assert seen == ids[::-1]
        done, _ = stage.run(stage.services.tasks.page(Caller(), state="completed"))
        queued, _ = stage.run(stage.services.tasks.page(Caller(), state="queued"))
        placed, _ = stage.run(stage.services.tasks.page(Caller(), state="placed"))
        assert len(done) + len(queued) + len(placed) == 12
        assert len(done) == 4


def test_pages_hold_tasks_whose_transcript_is_on_its_way() -> None:
    with on_stage(by_hand=True) as stage:
        ids = [stage.submit(str(n)).task_id for n in range(3)]
        stage.attempt(ids[0]).start()
        stage.attempt(ids[0]).end()
        for _ in range(4):
            page = stage.loop.create_task(stage.services.tasks.page(Caller()))
            stage.turn()
            stage.commit()
            stage.settle()
            assert [i.task_id for i in page.result()[0]] == ids[::-1]


def test_an_answer_tells_nothing_that_could_still_be_lost() -> None:
    with on_stage(by_hand=True) as stage:
        task_id = spoken(stage, 1)
        stage.attempt(task_id).end()
        stage.turn()
        asked = stage.loop.create_task(stage.services.tasks.get(task_id, Caller()))
        stage.turn()
        assert not asked.done()
        stage.settle()
        assert asked.result().state == "completed"


def test_the_queue_is_told_by_group() -> None:
    with on_stage() as stage:
        for n in range(4):
            stage.submit(str(n), priority="batch" if n % 2 else "interactive")
        (group,) = stage.services.tasks.queue()
        assert group["depth"] == {"interactive": 1, "batch": 2}
        assert [t["position"] for t in group["tasks"]] == [0, 1, 2]
        assert [t["priority"] for t in group["tasks"]] == ["interactive", "batch", "batch"]


def test_choices_and_channels_reach_the_reader_but_not_the_text() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        entries = [
            Entry(text="think", channel="reasoning", ids=(1, 2), tokens=2),
            Entry(text="say", logprob="-0.25"),
            Entry(text="second", choice=1, ids=(3,), ids_complete=False),
        ]
        stage.attempt(task_id).say_batch(batch_of(entries))
        reader = stage.reader(task_id)
        stage.attempt(task_id).end()
        stage.settle()
        late = stage.reader(task_id)
        for one in (reader, late):
            assert [e for batch in one.batches for e in batch.entries()] == entries
        assert stage.info(task_id).text == "say"
        assert stage.ended(task_id).tokens_out == 4
