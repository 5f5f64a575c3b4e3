"""Crashes: what is taken up again, regenerated, continued or given up (RCV-1, RCV-2)."""

from __future__ import annotations

import pytest

from llama_orch.core.entries import EntryBatch, batch_of
from llama_orch.core.events.task import TaskAttemptFailed, TaskEnded, TaskStarted, TaskTranscribed
from llama_orch.core.types import Entry

from ...support.engine import ScriptedAttempt
from ...support.stage import Stage, on_stage


def running(stage: Stage, *said: str, **fields: object) -> str:
    """A task that runs and has said something."""
    task_id = stage.submit(**fields).task_id  # type: ignore[arg-type]
    stage.attempt(task_id).start()
    for text in said:
        stage.attempt(task_id).say(text)
        stage.settle()
    stage.settle()
    return task_id


def again(stage: Stage, task_id: str) -> ScriptedAttempt:
    """The task's next attempt, started."""
    stage.advance(1)
    attempt = stage.attempt(task_id)
    attempt.start()
    stage.settle()
    return attempt


@pytest.mark.parametrize("recovery", ["strict", "continue"])
@pytest.mark.parametrize(
    "pieces",
    [
        ("one ", "two ", "three", " four"),
        ("one two three four",),
        tuple("one two three four"),
        ("o", "ne two thr", "ee four"),
    ],
)
def test_a_regenerated_text_may_be_cut_differently(pieces: tuple[str, ...], recovery: str) -> None:
    with on_stage() as stage:
        task_id = running(stage, "one ", "two ", "th", recovery=recovery)
        reader = stage.reader(task_id)
        stage.restart()
        reader.connect()
        attempt = again(stage, task_id)
        assert attempt.job.prefix == ""
        for piece in pieces:
            attempt.say(piece)
            stage.settle()
        attempt.end()
        stage.settle()
        assert reader.text == "one two three four"
        assert stage.info(task_id).text == "one two three four"
        assert stage.ended(task_id).recovery_used == "regenerate"
        first, second = stage.payloads(TaskStarted, task_id)
        assert (first.resumed_at, second.resumed_at) == (0, 3)
        assert second.seed == first.seed


@pytest.mark.parametrize("pieces", [("one ", "two ", "three"), ("one two three",), tuple("one two three")])
def test_tokens_that_were_journaled_are_not_counted_again(pieces: tuple[str, ...]) -> None:
    with on_stage() as stage:
        task_id = running(stage, *"one tw")
        stage.restart()
        attempt = again(stage, task_id)
        tokens = {1: [13], 3: [4, 4, 5], 13: [1] * 13}[len(pieces)]
        for piece, count in zip(pieces, tokens, strict=True):
            attempt.say_batch(batch_of([Entry(text=piece, tokens=count)]))
        attempt.end()
        stage.settle()
        assert stage.info(task_id).text == "one two three"
        assert stage.ended(task_id).tokens_out == 13


def test_tokens_without_text_are_not_counted_again() -> None:
    with on_stage() as stage:
        task_id = running(stage, "a", "", "")
        stage.restart()
        attempt = again(stage, task_id)
        attempt.say("a", "", "", "", "é")
        attempt.end()
        stage.settle()
        assert stage.said(task_id) == ["a", "", "", "", "é"]
        assert stage.ended(task_id).tokens_out == 5


def test_several_pieces_in_one_batch_are_compared_one_by_one() -> None:
    with on_stage() as stage:
        task_id = running(stage, "ab", "cd")
        stage.restart()
        attempt = again(stage, task_id)
        attempt.say_batch(EntryBatch(dts_us=[0] * 4, texts=["a", "bc", "de", "f"], ids=[1, 2, 3, 4]))
        attempt.end()
        stage.settle()
        assert stage.said(task_id) == ["ab", "cd", "e", "f"]


@pytest.mark.parametrize("said", ["other", "on", "one tvo three", "two"])
def test_a_strict_task_that_comes_out_differently_is_interrupted(said: str) -> None:
    with on_stage() as stage:
        task_id = running(stage, "one ", "two ", recovery="strict")
        reader = stage.reader(task_id)
        stage.restart()
        reader.connect()
        attempt = again(stage, task_id)
        attempt.say(said)
        attempt.end()
        attempt.free()
        stage.settle()
        end = stage.ended(task_id)
        assert (end.outcome, end.code, end.retriable) == ("failed", "INTERRUPTED", True)
        assert reader.text == "one two "
        assert reader.ended is not None


@pytest.mark.parametrize("said", ["other", "on", "one tvo three", "two"])
def test_a_task_that_comes_out_differently_goes_on_from_what_was_said(said: str) -> None:
    with on_stage() as stage:
        task_id = running(stage, "one ", "two ", max_tokens=10)
        reader = stage.reader(task_id)
        stage.restart()
        reader.connect()
        attempt = again(stage, task_id)
        attempt.say(said)
        attempt.end()
        stage.settle()
        attempt.free()
        stage.settle()
        third = again(stage, task_id)
        assert third is not attempt
        assert (third.job.prefix, third.job.max_tokens) == ("one two ", 8)
        third.say("three")
        third.end()
        stage.settle()
        assert reader.text == "one two three"
        assert stage.ended(task_id).recovery_used == "continue"
        assert [f.code for f in stage.payloads(TaskAttemptFailed)] == ["restart", "diverged"]


@pytest.mark.parametrize("said", [(), ("one",)])
def test_without_recovery_only_a_task_that_said_nothing_goes_on(said: tuple[str, ...]) -> None:
    with on_stage() as stage:
        task_id = running(stage, *said, recovery="none")
        stage.restart()
        if said:
            assert stage.ended(task_id).code == "INTERRUPTED"
            assert stage.journal.head.leases.by_id == {}
        else:
            again(stage, task_id).end()
            stage.settle()
            assert stage.state(task_id) == "completed"


def test_without_recovery_an_attempt_that_broke_off_ends_the_task() -> None:
    with on_stage() as stage:
        task_id = running(stage, "one", recovery="none")
        stage.attempt(task_id).fail("cut")
        stage.attempt(task_id).free()
        stage.settle()
        assert stage.ended(task_id).code == "INTERRUPTED"


def test_an_engine_that_dies_amid_a_task_is_replaced_and_the_text_is_checked() -> None:
    with on_stage(slots={"a": 1, "b": 1}) as stage:
        task_id = running(stage, "one ")
        reader = stage.reader(task_id)
        stage.attempt(task_id).fail("cut")
        stage.attempt(task_id).free("engine-gone")
        stage.settle()
        attempt = again(stage, task_id)
        attempt.say("one ", "two")
        attempt.end()
        stage.settle()
        assert reader.text == "one two"
        pools = [s.pool_id for s in stage.payloads(TaskStarted)]
        assert sorted(pools) == ["a", "b"]


def test_queued_tasks_keep_their_order_over_a_restart() -> None:
    with on_stage() as stage:
        ids = [stage.submit(str(n)).task_id for n in range(6)]
        stage.attempt(ids[0]).start()
        stage.settle()
        for _ in range(3):
            stage.restart()
            assert [stage.info(task_id).queue_position for task_id in ids] == [-1, 0, 1, 2, 3, 4]
        order = []
        for _ in ids:
            attempt = stage.engines["p"].last
            order.append(attempt.job.task_id)
            attempt.start()
            attempt.end()
            stage.settle()
        assert order == ids


def test_an_end_without_a_transcript_gets_it_at_the_next_start() -> None:
    for moment in ("before its commit", "after the end"):
        with on_stage(by_hand=True) as stage:
            task_id = running(stage, "one ", "two")
            stage.attempt(task_id).end()
            stage.turn()
            if moment == "after the end":
                stage.commit()
                assert len(stage.payloads(TaskEnded)) == 1
                assert stage.payloads(TaskTranscribed) == []
            stage.restart()
            if moment == "before its commit":
                attempt = again(stage, task_id)
                attempt.say("one two")
                attempt.end()
                stage.settle()
            assert stage.info(task_id).text == "one two"
            assert len(stage.payloads(TaskTranscribed)) == 1
            reader = stage.reader(task_id)
            assert reader.text == "one two"
            assert reader.ended is not None


def test_a_reader_between_the_start_and_the_late_transcript_is_not_left_waiting() -> None:
    with on_stage(by_hand=True) as stage:
        task_id = running(stage, "one ", "two")
        stage.attempt(task_id).end()
        stage.turn()
        stage.commit()
        stage.crash()
        stage.loop.hold_work = False
        stage.start()
        reader = stage.reader(task_id)
        stage.settle()
        assert reader.text == "one two"
        assert reader.ended is not None


def test_late_words_of_an_attempt_that_was_given_up_are_dropped() -> None:
    with on_stage() as stage:
        task_id = running(stage, "one ")
        first = stage.attempt(task_id)
        first.fail("cut")
        first.free()
        stage.settle()
        second = again(stage, task_id)
        assert second is not first
        first.late("ghost")
        first.late_end()
        second.say("one ", "two")
        first.late("ghost")
        second.end()
        first.late("ghost")
        first.late_end()
        stage.settle()
        assert stage.info(task_id).text == "one two"
        assert len(stage.payloads(TaskEnded)) == 1


def test_a_crash_while_continuing_is_survived_too() -> None:
    with on_stage() as stage:
        task_id = running(stage, "one ")
        stage.restart()
        attempt = again(stage, task_id)
        attempt.say("other")
        attempt.free()
        stage.settle()
        third = again(stage, task_id)
        third.say("two ")
        stage.settle()
        stage.restart()
        fourth = again(stage, task_id)
        assert fourth.job.prefix == ""
        fourth.say("one two three")
        fourth.end()
        stage.settle()
        assert stage.info(task_id).text == "one two three"
        assert stage.ended(task_id).attempts == 4


def test_power_loss_takes_only_what_was_not_promised() -> None:
    with on_stage() as stage:
        first = running(stage, "one ")
        second = stage.submit("b").task_id
        stage.syncer.by_hand = True
        reader = stage.reader(first)
        stage.attempt(first).say("two ")
        stage.settle()
        unsure = stage.loop.create_task(stage.submitting("c"))
        stage.settle()
        assert reader.text == "one two "
        assert not unsure.done()
        stage.restart(power=True)
        assert set(stage.journal.head.tasks.live) == {first, second}
        reader.connect()
        assert reader.error is not None
        assert reader.error.code == "RESUME_LOST"
        assert reader.error.details["last_id_held"] == "1.1"


def test_ids_of_a_lost_tail_are_never_used_for_other_content() -> None:
    with on_stage() as stage:
        task_id = running(stage, "one ")
        stage.submit("durable")
        stage.syncer.by_hand = True
        reader = stage.reader(task_id)
        stage.attempt(task_id).say("two ")
        stage.settle()
        lost = reader.last_id
        stage.restart(power=True)
        attempt = again(stage, task_id)
        attempt.say("one ", "TWO ", "three")
        stage.settle()
        reader.connect()
        assert reader.error is not None
        assert reader.error.code == "RESUME_LOST"
        whole = stage.reader(task_id)
        assert lost not in whole.ids
        assert whole.text == "one TWO three"


def test_bodies_are_read_back_after_a_restart() -> None:
    with on_stage() as stage:
        task_id = stage.submit("p" * 600_000, max_tokens=5, stop=["x"]).task_id
        stage.restart()
        job = stage.attempt(task_id).job
        assert (len(job.prompt), job.max_tokens, job.stop) == (600_000, 5, ("x",))


def test_a_task_whose_prompt_is_damaged_fails_by_name() -> None:
    with on_stage() as stage:
        task_id = stage.submit("p").task_id
        stage.crash()
        stage.disk.bodies.clear()
        stage.start()
        stage.settle()
        assert stage.ended(task_id).outcome == "failed"
        assert "missing" in stage.ended(task_id).message
        assert stage.journal.head.leases.by_id == {}


def test_a_schema_keeps_the_order_in_which_it_was_sent_also_after_a_restart() -> None:
    """A grammar follows its schema, and a template shows a tool as it is written: another order is another text."""
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}
    with on_stage() as stage:
        task_id = running(stage, "o", json_schema=schema)
        before = str(stage.attempt(task_id).job.json_schema)
        stage.restart()
        after = str(again(stage, task_id).job.json_schema)
        assert after == before == str(schema)
