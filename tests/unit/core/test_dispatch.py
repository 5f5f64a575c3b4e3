"""Dispatch: placements, attempts, slots, and engines that misbehave."""

from __future__ import annotations

import msgspec
import pytest

from llama_orch.core.entries import EntryBatch, batch_of
from llama_orch.core.events.lease import LeaseReleased
from llama_orch.core.events.task import TaskAttemptFailed, TaskEnded, TaskPlaced, TaskStarted
from llama_orch.core.services.container import Services
from llama_orch.core.settings import PoolSettings, TimeoutSettings
from llama_orch.core.types import Entry

from ...support.stage import Stage, on_stage, settings_for


def started(stage: Stage, **fields: object) -> str:
    """A task that runs."""
    task_id = stage.submit(**fields).task_id  # type: ignore[arg-type]
    stage.attempt(task_id).start()
    stage.settle()
    return task_id


def test_a_task_goes_from_admission_to_its_transcript() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        stage.attempt(task_id).say("one ", "two")
        stage.attempt(task_id).end()
        stage.settle()
        info = stage.info(task_id)
        assert (info.state, info.text, info.finish_reason) == ("completed", "one two", "stop")
        assert (info.usage.completion_tokens, info.usage.prompt_tokens) == (2, 3)
        assert stage.journal.head.leases.by_id == {}
        assert stage.services.transcripts.written == 1


def test_an_engine_is_called_only_once_the_placement_is_committed() -> None:
    with on_stage(by_hand=True) as stage:
        stage.loop.create_task(stage.submitting())
        stage.turn()
        assert stage.journal.head.leases.by_id != {}
        assert stage.engines["p"].attempts == []
        assert stage.commit()
        while stage.commit():
            pass
        assert len(stage.engines["p"].attempts) == 1


def test_what_an_engine_says_before_it_started_starts_the_task() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        stage.attempt(task_id).say("early")
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.info(task_id).text == "early"
        assert len(stage.payloads(TaskStarted)) == 1


def test_an_end_without_a_start_starts_the_task() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        reader = stage.reader(task_id)
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.state(task_id) == "completed"
        assert reader.started is not None
        assert reader.ended is not None


def test_a_second_start_is_ignored() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        stage.attempt(task_id).start()
        stage.settle()
        stage.attempt(task_id).say("on")
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.info(task_id).text == "on"
        assert len(stage.payloads(TaskStarted)) == 1


def test_an_empty_batch_is_nothing() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        stage.attempt(task_id).say_batch(EntryBatch(dts_us=[], texts=[]))
        stage.attempt(task_id).say("x")
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.ended(task_id).entries == 1


def test_times_that_an_engine_gives_are_not_believed() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        stage.attempt(task_id).say_batch(EntryBatch(dts_us=[7, 8, 9], texts=["a", "b", "c"], ids=[1, 2, 3]))
        stage.attempt(task_id).say_batch(EntryBatch(dts_us=[5, 5], texts=["d", "e"], ids=[4, 5]))
        stage.settle()
        stage.check()


@pytest.mark.parametrize("size", [60_000, 60_001, 130_000])
def test_a_batch_larger_than_a_chunk_is_cut(size: int) -> None:
    with on_stage() as stage:
        task_id = started(stage)
        reader = stage.reader(task_id)
        stage.attempt(task_id).say_batch(batch_of([Entry(text=str(n % 10), ids=(n,)) for n in range(size)]))
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.ended(task_id).entries == size
        assert reader.text == "".join(str(n % 10) for n in range(size))


def test_lone_surrogates_from_an_engine_do_not_stop_the_journal() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        reader = stage.reader(task_id)
        stage.attempt(task_id).say("a\ud800b")
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.info(task_id).text == "a?b"
        assert reader.text == "a?b"


def test_lone_surrogates_in_an_engines_message_do_not_stop_the_task() -> None:
    with on_stage(settings=settings_for({"p": 1}, max_attempts=1)) as stage:
        task_id = started(stage)
        stage.attempt(task_id).fail("garbage", message="bad \udc00")
        stage.attempt(task_id).free()
        stage.settle()
        assert stage.ended(task_id).code == "WORKER_RESET"


def test_an_engine_that_raises_fails_the_attempt_alone() -> None:
    with on_stage(settings=settings_for({"p": 1}, max_attempts=2)) as stage:
        stage.engines["p"].breaks = RuntimeError("a bug in a plugin")
        task_id = stage.submit().task_id
        stage.advance(1)
        end = stage.ended(task_id)
        assert end.code == "WORKER_RESET"
        assert "a bug in a plugin" in end.message
        stage.engines["p"].breaks = None
        stage.advance(10)
        other = started(stage)
        stage.attempt(other).end()
        stage.settle()
        assert stage.state(other) == "completed"


def test_a_chat_that_cannot_be_rendered_fails_the_attempt() -> None:
    with on_stage(settings=settings_for({"p": 1}, max_attempts=1)) as stage:
        stage.engines["p"].renders = False
        task_id = stage.submit(messages=[_message("hi")], workload="chat").task_id
        stage.settle()
        assert stage.ended(task_id).code == "WORKER_RESET"
        assert stage.journal.head.leases.by_id == {}


def _message(text: str):
    from llama_orch.core.types import ChatMessage

    return ChatMessage(role="user", content=text)


def test_a_rendered_chat_is_stored_with_the_start() -> None:
    with on_stage() as stage:
        task_id = stage.submit(messages=[_message("hi")], workload="chat").task_id
        attempt = stage.attempt(task_id)
        assert attempt.job.prompt == "<user>hi"
        attempt.start()
        attempt.end()
        stage.settle()
        (start,) = stage.payloads(TaskStarted, task_id)
        assert stage.store.body("local", start.rendered_id) == b"<user>hi"


def test_a_lease_is_held_until_the_slot_is_seen_free_after_a_cancel() -> None:
    with on_stage() as stage:
        first = started(stage)
        second = stage.submit("next").task_id
        stage.cancel(first)
        assert stage.attempt(first).cancelled
        assert stage.state(first) == "cancelled"
        assert stage.state(second) == "queued"
        assert stage.journal.head.leases.count("p") == 1
        stage.attempt(first).free()
        stage.settle()
        assert stage.state(second) == "placed"


def test_a_lease_is_held_until_the_slot_is_seen_free_after_a_stream_that_was_cut() -> None:
    with on_stage() as stage:
        first = started(stage)
        second = stage.submit("next").task_id
        stage.attempt(first).say("a")
        stage.attempt(first).fail("cut")
        stage.advance(5)
        assert stage.journal.head.leases.count("p") == 1
        assert len(stage.engines["p"].attempts) == 1
        stage.attempt(first).free("engine-gone")
        stage.settle()
        assert [r.cause for r in stage.payloads(LeaseReleased, first)] == ["engine-gone"]
        assert stage.attempt(first).job.attempt == 2, "the task went back to its old place, before the second"
        assert stage.state(second) == "queued"


def test_a_slot_that_cannot_be_watched_counts_as_gone() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        stage.attempt(task_id).break_watch(RuntimeError("a bug in a plugin"))
        stage.cancel(task_id)
        stage.settle()
        assert [r.cause for r in stage.payloads(LeaseReleased, task_id)] == ["engine-gone"]


def test_attempts_are_bounded() -> None:
    with on_stage(settings=settings_for({"p": 1}, max_attempts=3)) as stage:
        task_id = stage.submit().task_id
        for number in (1, 2, 3):
            stage.advance(10)
            attempt = stage.attempt(task_id)
            assert attempt.job.attempt == number
            attempt.start()
            attempt.fail("cut")
            attempt.free()
            stage.settle()
        stage.advance(10)
        assert stage.ended(task_id).code == "WORKER_RESET"
        assert stage.ended(task_id).attempts == 3
        assert len(stage.payloads(TaskAttemptFailed)) == 2


def test_restarts_do_not_count_as_attempts() -> None:
    with on_stage(settings=settings_for({"p": 1}, max_attempts=2)) as stage:
        task_id = started(stage)
        for _ in range(4):
            stage.restart()
            stage.attempt(task_id).start()
            stage.settle()
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.state(task_id) == "completed"
        assert stage.ended(task_id).attempts == 5


def test_a_failure_that_another_attempt_cannot_mend_ends_the_task() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        stage.attempt(task_id).fail("context", retriable=False)
        stage.attempt(task_id).free()
        stage.settle()
        end = stage.ended(task_id)
        assert (end.code, end.retriable, end.attempts) == ("CONTEXT_EXCEEDED", False, 1)


def test_a_pool_whose_attempt_broke_off_is_passed_over_for_a_moment() -> None:
    with on_stage(slots={"a": 1, "b": 1}) as stage:
        task_id = stage.submit().task_id
        first = stage.attempt(task_id)
        name = next(n for n, e in stage.engines.items() if first in e.attempts)
        first.start()
        first.fail("cut")
        first.free()
        stage.settle()
        second = stage.attempt(task_id)
        assert second.job.attempt == 2
        assert second not in stage.engines[name].attempts


def test_a_cancel_before_the_launch_never_reaches_the_engine() -> None:
    with on_stage(by_hand=True) as stage:
        task = stage.loop.create_task(stage.submitting())
        stage.turn()
        (task_id,) = stage.journal.head.tasks.live
        cancel = stage.loop.create_task(stage.services.cancel.cancel(task_id, _caller()))
        stage.settle()
        assert task.done()
        assert cancel.done()
        assert stage.engines["p"].attempts == []
        assert [r.cause for r in stage.payloads(LeaseReleased, task_id)] == ["never-sent"]


def _caller():
    from llama_orch.core.services.caller import Caller

    return Caller()


def test_the_decision_of_each_attempt_is_kept() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        stage.attempt(task_id).fail()
        stage.attempt(task_id).free()
        stage.advance(1)
        stage.attempt(task_id).start()
        stage.attempt(task_id).end()
        stage.settle()
        answer = stage.run(stage.services.tasks.decision(task_id, _caller()))
        assert [d["attempt"] for d in answer["decisions"]] == [1, 2]
        assert all(d["selected_pool_id"] == "p" for d in answer["decisions"])
        assert len(stage.payloads(TaskPlaced)) == 2


def test_an_idle_engine_is_ended_by_the_watchdog() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        stage.attempt(task_id).say("a")
        stage.settle()
        stage.advance(299)
        assert stage.state(task_id) == "running"
        stage.advance(2)
        assert stage.ended(task_id).code == "DECODE_TIMEOUT"
        assert stage.attempt(task_id).cancelled
        stage.attempt(task_id).free()


def test_an_attempt_that_runs_too_long_is_ended_by_the_watchdog_though_it_speaks() -> None:
    pool = PoolSettings(id="p", engine="mock", model="m", slots=1, timeouts=TimeoutSettings(wall_ms=10_000))
    settings = msgspec.structs.replace(settings_for({"p": 1}), pools=[pool])
    with on_stage(settings=settings) as stage:
        task_id = started(stage)
        for _ in range(9):
            stage.attempt(task_id).say("a")
            stage.advance(1)
        assert stage.state(task_id) == "running"
        stage.advance(2)
        ended = stage.ended(task_id)
        assert ended.code == "DECODE_TIMEOUT"
        assert "timeouts.wall_ms" in ended.message
        assert stage.attempt(task_id).cancelled
        stage.attempt(task_id).free()


def test_an_engine_that_falls_silent_while_it_repeats_is_ended_too() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        stage.attempt(task_id).say("a", "b", "c")
        stage.settle()
        stage.restart()
        stage.attempt(task_id).start()
        stage.settle()
        for text in ("a", "b"):
            stage.advance(200)
            assert stage.state(task_id) == "running"
            stage.attempt(task_id).say(text)
        stage.advance(301)
        assert stage.ended(task_id).code == "DECODE_TIMEOUT"
        stage.attempt(task_id).free()


def test_a_deadline_ends_queued_and_running_tasks() -> None:
    with on_stage() as stage:
        running = stage.submit(deadline_ms=5_000).task_id
        queued = stage.submit(deadline_ms=20_000).task_id
        stage.attempt(running).start()
        stage.settle()
        stage.advance(6)
        assert stage.ended(running).code == "DEADLINE_UNMET"
        assert stage.state(queued) == "queued"
        stage.advance(15)
        assert stage.ended(queued).code == "DEADLINE_UNMET"
        stage.attempt(running).free()


def test_a_deadline_that_passed_while_the_server_was_down_ends_the_task_at_the_start() -> None:
    with on_stage() as stage:
        task_id = started(stage, deadline_ms=5_000)
        stage.crash()
        stage.clock.advance_ms(10_000)
        stage.start()
        stage.advance(0.1)
        assert stage.ended(task_id).code == "DEADLINE_UNMET"


def test_services_can_be_closed_and_started_again() -> None:
    with on_stage() as stage:
        task_id = started(stage)
        stage.attempt(task_id).say("a")
        stage.settle()
        stage.stop()
        assert isinstance(stage.services, Services)
        stage.start()
        stage.attempt(task_id).start()
        stage.attempt(task_id).say("ab")
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.info(task_id).text == "ab"
        assert len(stage.payloads(TaskEnded)) == 1
