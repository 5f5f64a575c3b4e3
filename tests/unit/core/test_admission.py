"""Admission: repetitions, full queues, priorities, deadlines, contexts, sessions."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from llama_orch.core.errors import (
    BackpressureError,
    ConflictError,
    ContextExceededError,
    DeadlineUnmetError,
    InvalidParamsError,
    JournalUnavailableError,
    ModelNotFoundError,
    PoolUnreadyError,
    SessionExpiredError,
    SessionTurnsExceededError,
)
from llama_orch.core.events.session import SessionClosed, SessionOpened
from llama_orch.core.events.task import TaskAdmitted, TaskCancelled, TaskRejected
from llama_orch.core.types import PlacementRequest

from ...support.stage import Stage, on_stage, settings_for


def finish(stage: Stage, task_id: str, *said: str) -> None:
    """The task runs to its end."""
    attempt = stage.attempt(task_id)
    attempt.start()
    if said:
        attempt.say(*said)
    attempt.end()
    stage.settle()


# --- repetitions (ADM-6) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("how", ["key", "id"])
@pytest.mark.parametrize("prompt", ["short", "long " * 20_000])
def test_fifty_racing_duplicates_make_one_engine_call(how: str, by_hand: bool, prompt: str) -> None:
    with on_stage(by_hand=by_hand, ctx=1_000_000) as stage:
        task_id = str(uuid.UUID(int=7_000))
        one: dict[str, Any] = {"key": "k"} if how == "key" else {"task_id": task_id}
        tasks = [stage.loop.create_task(stage.submitting(prompt, **one)) for _ in range(50)]
        stage.settle()
        answers = [task.result() for task in tasks]
        assert len({answer.task_id for answer in answers}) == 1
        assert [answer.attached for answer in answers].count(False) == 1
        assert len(stage.engines["p"].attempts) == 1
        assert len(stage.payloads(TaskAdmitted)) == 1


def test_a_duplicate_that_comes_before_the_first_commit_waits_for_it() -> None:
    with on_stage(by_hand=True) as stage:
        first = stage.loop.create_task(stage.submitting(key="k"))
        stage.turn()
        second = stage.loop.create_task(stage.submitting(key="k"))
        stage.turn()
        assert not first.done()
        assert not second.done()
        stage.settle()
        assert first.result().task_id == second.result().task_id


@pytest.mark.parametrize("moment", ["queued", "running", "ended", "transcribed", "crashed", "ended and crashed"])
@pytest.mark.parametrize("how", ["key", "id"])
def test_a_repetition_attaches_at_any_moment(moment: str, how: str) -> None:
    with on_stage() as stage:
        one = {"key": "k"} if how == "key" else {"task_id": str(uuid.UUID(int=7_000))}
        if moment == "queued":
            stage.submit("before")
        task_id = stage.submit(**one).task_id
        if moment in ("running", "crashed"):
            stage.attempt(task_id).start()
            stage.attempt(task_id).say("a")
            stage.settle()
        if "ended" in moment or moment == "transcribed":
            finish(stage, task_id, "a")
        if "crashed" in moment:
            stage.restart()
        calls = len(stage.engines["p"].attempts)
        again = stage.submit(**one)
        assert (again.task_id, again.attached) == (task_id, True)
        assert len(stage.engines["p"].attempts) == calls


def test_a_repetition_attaches_while_the_transcript_is_on_its_way() -> None:
    with on_stage(by_hand=True) as stage:
        task_id = str(uuid.UUID(int=7_000))
        stage.submit(task_id=task_id)
        stage.attempt(task_id).start()
        stage.attempt(task_id).end()
        seen = set()
        for _ in range(6):
            seen.add(bool(stage.journal.leaving))
            again = stage.loop.create_task(stage.submitting(task_id=task_id, durable=False))
            stage.turn()
            info = stage.loop.create_task(stage.services.tasks.get(task_id, _local()))
            stage.turn()
            stage.commit()
            assert again.result().task_id == task_id
            if info.done():
                assert info.result().task_id == task_id
        stage.settle()
        assert seen == {False, True}
        assert len(stage.payloads(TaskAdmitted)) == 1


def _local():
    from llama_orch.core.services.caller import Caller

    return Caller()


def test_the_same_key_for_another_request_is_a_conflict() -> None:
    with on_stage() as stage:
        stage.submit("one", key="k")
        with pytest.raises(ConflictError) as caught:
            stage.submit("two", key="k")
        assert caught.value.field == "Idempotency-Key"
        assert [r.code for r in stage.payloads(TaskRejected)] == ["CONFLICT"]


def test_the_same_id_for_another_request_is_a_conflict_also_after_the_end() -> None:
    with on_stage() as stage:
        task_id = str(uuid.UUID(int=7_000))
        stage.submit("one", task_id=task_id)
        for _ in range(2):
            with pytest.raises(ConflictError) as caught:
                stage.submit("two", task_id=task_id)
            assert caught.value.field == "task_id"
            stage.restart()
        finish(stage, task_id)
        with pytest.raises(ConflictError):
            stage.submit("two", task_id=task_id)
        with pytest.raises(ConflictError):
            stage.submit("one", task_id=task_id, owner="somebody else")


def test_keys_belong_to_their_owner() -> None:
    with on_stage() as stage:
        ids = {stage.submit("one", key="k", owner=owner).task_id for owner in ("a", "b", "a")}
        assert len(ids) == 2


def test_an_id_in_capitals_is_the_same_id() -> None:
    with on_stage() as stage:
        task_id = str(uuid.UUID(int=0xABCDEF))
        assert stage.submit(task_id=task_id.upper()).task_id == task_id
        assert stage.submit(task_id=task_id).attached
        finish(stage, task_id)
        assert stage.submit(task_id=task_id.upper()).attached


def test_a_key_is_forgotten_after_its_time() -> None:
    with on_stage(settings=settings_for({"p": 9}, idempotency_ms=1_000), slots={"p": 9}) as stage:
        first = stage.submit(key="k").task_id
        stage.advance(0.9)
        assert stage.submit(key="k").task_id == first
        stage.advance(0.2)
        assert stage.submit(key="k").task_id != first


@pytest.mark.parametrize("restart", [False, True])
def test_a_task_that_failed_retriably_runs_again_under_its_key(restart: bool) -> None:
    with on_stage(settings=settings_for({"p": 1}, max_attempts=1)) as stage:
        first = stage.submit(key="k").task_id
        stage.attempt(first).fail()
        stage.attempt(first).free()
        stage.settle()
        assert stage.state(first) == "failed"
        if restart:
            stage.restart()
        with pytest.raises(ConflictError):
            stage.submit("another body", key="k")
        second = stage.submit(key="k")
        assert (second.task_id != first, second.attached) == (True, False)
        assert stage.submit(key="k").task_id == second.task_id


def test_a_cancelled_task_does_not_run_again_under_its_key() -> None:
    with on_stage() as stage:
        first = stage.submit(key="k").task_id
        stage.cancel(first)
        assert stage.submit(key="k").task_id == first
        stage.attempt(first).free()


def test_a_caller_that_leaves_while_its_id_is_looked_up_does_not_lock_the_id() -> None:
    with on_stage() as stage:
        task_id = str(uuid.UUID(int=7_000))
        stage.loop.hold_work = True
        first = stage.loop.create_task(stage.submitting(task_id=task_id))
        stage.turn()
        waiting = stage.loop.create_task(stage.submitting(task_id=task_id))
        leaving = stage.loop.create_task(stage.submitting(task_id=task_id))
        stage.turn()
        leaving.cancel()
        first.cancel()
        stage.turn()
        stage.loop.hold_work = False
        stage.loop.do_work()
        stage.settle()
        assert first.cancelled()
        assert waiting.result().task_id == task_id


def test_rejections_leave_nothing_in_head() -> None:
    with on_stage() as stage:
        before = len(stage.journal.head.positions)
        for _ in range(20):
            with pytest.raises(ModelNotFoundError):
                stage.submit(model_ref="nope")
        assert len(stage.payloads(TaskRejected)) == 20
        assert len(stage.journal.head.positions) <= before + 1


# --- the queue (ADM-3, ADM-4) ------------------------------------------------------------------------------------


def test_a_full_queue_rejects_with_what_to_do() -> None:
    with on_stage(settings=settings_for({"p": 1}, capacity=2)) as stage:
        running = stage.submit().task_id
        queued = [stage.submit().task_id for _ in range(2)]
        with pytest.raises(BackpressureError) as caught:
            stage.submit()
        assert caught.value.code == "ADMISSION_REJECT"
        assert (caught.value.retry_after_ms or 0) >= 100
        assert caught.value.details["policy_label"] == "reject"
        stage.cancel(queued[0])
        stage.submit()
        stage.cancel(running)
        stage.attempt(running).free()


def test_drop_lru_drops_the_oldest_batch_task_that_waits() -> None:
    with on_stage(settings=settings_for({"p": 1}, capacity=3, full_policy="drop-lru")) as stage:
        running = stage.submit(priority="batch").task_id
        old = stage.submit(priority="batch").task_id
        new = stage.submit(priority="batch").task_id
        stage.submit()
        late = stage.submit().task_id
        assert stage.ended(old).code == "QUEUE_FULL_DROP_LRU"
        assert [c.reason for c in stage.payloads(TaskCancelled)] == ["drop-lru"]
        stage.submit(priority="batch")
        assert stage.ended(new).code == "QUEUE_FULL_DROP_LRU"
        assert stage.state(running) == "placed"
        assert stage.state(late) == "queued"


def test_drop_lru_with_nothing_to_drop_rejects() -> None:
    with on_stage(settings=settings_for({"p": 1}, capacity=1, full_policy="drop-lru")) as stage:
        stage.submit()
        stage.submit()
        with pytest.raises(BackpressureError) as caught:
            stage.submit()
        assert (caught.value.code, caught.value.details["policy_label"]) == ("ADMISSION_REJECT", "drop-lru")


def test_a_queue_of_no_places_takes_what_can_start_at_once() -> None:
    with on_stage(settings=settings_for({"p": 2}, capacity=0), slots={"p": 2}) as stage:
        stage.submit()
        stage.submit()
        with pytest.raises(BackpressureError):
            stage.submit()


def test_interactive_tasks_go_first_and_each_class_in_its_order() -> None:
    with on_stage() as stage:
        order = []
        first = stage.submit().task_id
        waiting = [
            stage.submit(priority=p).task_id for p in ("batch", "interactive", "batch", "interactive", "interactive")
        ]
        positions = [stage.info(task_id).queue_position for task_id in waiting]
        assert positions == [3, 0, 4, 1, 2]
        current = first
        for _ in range(5):
            finish(stage, current)
            current = stage.engines["p"].last.job.task_id
            order.append(current)
        assert order == [waiting[n] for n in (1, 3, 4, 0, 2)]


def test_a_batch_task_waits_behind_interactive_ones_only_so_long() -> None:
    with on_stage() as stage:
        running = stage.submit().task_id
        batch = stage.submit(priority="batch").task_id
        stage.submit()
        stage.advance(59)
        stage.submit()
        stage.advance(1)
        finish(stage, running)
        assert stage.engines["p"].last.job.task_id == batch


def test_a_long_batch_queue_does_not_go_before_interactive_tasks_as_a_whole() -> None:
    with on_stage() as stage:
        running = stage.submit().task_id
        batch = [stage.submit(priority="batch").task_id for _ in range(3)]
        stage.advance(61)
        interactive = [stage.submit().task_id for _ in range(3)]
        order = []
        for _ in range(6):
            finish(stage, running)
            running = stage.engines["p"].last.job.task_id
            order.append(running)
        assert order == [batch[0], *interactive, *batch[1:]]
        finish(stage, running)


def test_the_answer_tells_position_and_estimate() -> None:
    with on_stage() as stage:
        assert stage.submit().queue_position == 0
        answers = [stage.submit() for _ in range(3)]
        assert [a.queue_position for a in answers] == [0, 1, 2]
        starts = [a.predicted_start_ms for a in answers]
        assert starts == sorted(starts)
        assert all(a.predicted_start_ms_p10 <= a.predicted_start_ms <= a.predicted_start_ms_p90 for a in answers)


# --- what is checked before the queue (ADM-2) --------------------------------------------------------------------


def test_an_unknown_model_is_told_with_the_nearest_name() -> None:
    with on_stage() as stage:
        with pytest.raises(ModelNotFoundError) as caught:
            stage.submit(model_ref="mm")
        assert caught.value.details["nearest"] == "m"


def test_a_prompt_beyond_the_context_is_refused_before_the_queue() -> None:
    with on_stage(ctx=100) as stage:
        with pytest.raises(ContextExceededError) as caught:
            stage.submit("word " * 200)
        assert (caught.value.field, caught.value.details["n_ctx"]) == ("prompt", 100)
        with pytest.raises(ContextExceededError) as caught:
            stage.submit(ctx=101)
        assert caught.value.field == "ctx"
        assert stage.submit("letters" * 50).task_id, "few tokens of many bytes are counted, and fit"
        assert len(stage.payloads(TaskRejected)) == 2


def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    with on_stage() as stage:
        for _ in range(20):
            stage.submit()
        with pytest.raises(DeadlineUnmetError) as caught:
            stage.submit(deadline_ms=1)
        assert caught.value.field == "deadline_ms"


def test_strict_determinism_needs_a_pool_that_can_guarantee_it() -> None:
    with on_stage(slots={"p": 2}) as stage:
        with pytest.raises(InvalidParamsError) as caught:
            stage.submit(determinism="strict")
        assert caught.value.field == "determinism"
    with on_stage() as stage:
        stage.submit(determinism="strict")
        assert not stage.engines["p"].last.job.cache_prompt


@pytest.mark.parametrize(
    "placement, field",
    [
        (PlacementRequest(mode="pin"), "placement.pin_pool_id"),
        (PlacementRequest(mode="pin", pin_pool_id="x"), "placement.pin_pool_id"),
        (PlacementRequest(mode="prefer", prefer_pools=["x"]), "placement.prefer_pools"),
        (PlacementRequest(avoid_pools=["x"]), "placement.avoid_pools"),
    ],
)
def test_overrides_that_name_no_pool_are_refused(placement: PlacementRequest, field: str) -> None:
    with on_stage() as stage:
        with pytest.raises(InvalidParamsError) as caught:
            stage.submit(placement=placement)
        assert caught.value.field == field


def test_a_pin_to_a_pool_that_is_not_ready_is_refused() -> None:
    with on_stage(ready=False) as stage:
        with pytest.raises(PoolUnreadyError):
            stage.submit(placement=PlacementRequest(mode="pin", pin_pool_id="p"))
        waiting = stage.submit().task_id
        assert stage.state(waiting) == "queued"
        stage.pool_ready("p")
        stage.settle()
        assert stage.state(waiting) == "placed"


# --- sessions (SES-1) --------------------------------------------------------------------------------------------


def test_a_session_has_turns_and_a_time() -> None:
    with on_stage(slots={"p": 20}) as stage:
        session_id = str(uuid.UUID(int=5))
        for _ in range(8):
            stage.submit(session_id=session_id)
        with pytest.raises(SessionTurnsExceededError):
            stage.submit(session_id=session_id)
        for attempt in stage.engines["p"].attempts:
            attempt.start()
            attempt.end()
        stage.advance(601)
        assert [e.cause for e in stage.payloads(SessionClosed)] == ["expired"]
        for _ in range(2):
            with pytest.raises(SessionExpiredError):
                stage.submit(session_id=session_id)
        stage.clock.advance_ms(86_400_000)
        stage.submit(session_id=session_id)
        assert len(stage.payloads(SessionOpened)) == 2


def test_a_session_belongs_to_its_owner() -> None:
    with on_stage() as stage:
        session_id = str(uuid.UUID(int=5))
        stage.submit(session_id=session_id)
        with pytest.raises(ConflictError):
            stage.submit(session_id=session_id, owner="another")


def test_a_refused_turn_opens_no_session() -> None:
    with on_stage(settings=settings_for({"p": 1}, capacity=0)) as stage:
        stage.submit()
        with pytest.raises(BackpressureError):
            stage.submit(session_id=str(uuid.UUID(int=5)))
        assert stage.journal.head.sessions.by_id == {}


# --- the journal's states ----------------------------------------------------------------------------------------


def test_nothing_is_admitted_while_the_journal_cannot_be_written() -> None:
    with on_stage() as stage:
        stage.disk.always = "refused"
        first = stage.loop.create_task(stage.submitting("one"))
        stage.settle()
        with pytest.raises(JournalUnavailableError) as caught:
            stage.submit("two")
        assert caught.value.retry_after_ms
        assert not first.done()
        stage.disk.always = ""
        stage.advance(2)
        assert first.result().task_id
        assert [a.job.prompt for a in stage.engines["p"].attempts] == ["one"]


def test_an_admission_whose_outcome_is_unknown_says_so_and_can_be_repeated_with_its_key() -> None:
    for outcome in ("written", "lost"):
        with on_stage() as stage:
            stage.disk.commits.append(outcome)
            first = stage.loop.create_task(stage.submitting(key="k"))
            stage.settle()
            again = stage.submit(key="k")
            if outcome == "lost":
                with pytest.raises(JournalUnavailableError) as caught:
                    first.result()
                assert caught.value.details["outcome_unknown"]
                assert not again.attached
            else:
                assert first.result().task_id == again.task_id
                assert again.attached
            assert len(stage.payloads(TaskAdmitted)) == 1
            assert len(stage.engines["p"].attempts) == 1


def test_answers_come_in_any_order_of_asking() -> None:
    with on_stage(slots={"p": 3}) as stage:

        async def all_at_once() -> list[str]:
            answers = await asyncio.gather(*(stage.submitting(f"{n}") for n in range(3)))
            return [a.task_id for a in answers]

        ids = stage.run(all_at_once())
        assert [a.job.task_id for a in stage.engines["p"].attempts] == ids


def test_a_client_is_told_to_hold_back_before_the_queue_is_full() -> None:
    with on_stage(settings=settings_for({"p": 1}, capacity=8)) as stage:
        told = [stage.submit(max_tokens=100).backoff_ms for _ in range(9)]
        # One runs; up to three wait in less than half of the queue; behind them the pause grows, and is bounded.
        assert told[:4] == [0, 0, 0, 0]
        assert all(100 <= pause <= 60_000 for pause in told[4:])
        assert told[4:] == sorted(told[4:])
        with pytest.raises(BackpressureError):
            stage.submit(max_tokens=100)


def test_who_keeps_to_the_pauses_is_never_refused() -> None:
    with on_stage(settings=settings_for({"p": 1}, capacity=8)) as stage:
        pause_s, work_s, waits = 0.0, 2.0, []
        for _ in range(600):
            stage.advance(0.05)
            pause_s -= 0.05
            work_s -= 0.05
            while pause_s <= 0:
                pause_s = stage.submit(max_tokens=100).backoff_ms / 1000 or 0.01
            if work_s <= 0:
                work_s = 2.0
                running = stage.engines["p"].last
                running.start()
                running.say("x")
                running.end(decode_us=1_900_000)
                stage.settle()
            queue = stage.journal.head.queue.groups.get("m")
            waits.append(len(queue) if queue is not None else 0)
        assert max(waits) >= 4, "it was never held back"
        assert max(waits) < 8, "a refusal was near"
