"""A wall clock that somebody sets back: event time goes on, and what is due comes."""

from __future__ import annotations

from ...support.stage import on_stage

HOUR_MS = 3_600_000


def test_a_deadline_comes_though_the_clock_was_set_back() -> None:
    with on_stage() as stage:
        task_id = stage.submit(deadline_ms=5_000).task_id
        stage.attempt(task_id).start()
        stage.settle()
        stage.clock.set_back_ms(HOUR_MS)
        stage.advance(11)
        assert stage.ended(task_id).code == "DEADLINE_UNMET"
        stage.attempt(task_id).free()


def test_a_pool_is_trusted_again_though_the_clock_was_set_back() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        stage.clock.set_back_ms(HOUR_MS)
        stage.attempt(task_id).fail("cut")
        stage.attempt(task_id).free()
        stage.advance(1)
        assert stage.attempt(task_id).job.attempt == 2


def test_event_time_meets_the_clock_again() -> None:
    with on_stage() as stage:
        stage.clock.set_back_ms(2_000)
        times = []
        for _ in range(10):
            stage.advance(1)
            times.append(stage.journal.now_ns())
        assert times == sorted(set(times))
        assert times[-1] == stage.clock.now_ns()


def test_the_time_between_tokens_is_told_though_the_clock_was_set_back() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        stage.attempt(task_id).say("a")
        stage.settle()
        stage.clock.set_back_ms(HOUR_MS)
        stage.advance(2)
        stage.attempt(task_id).say("b")
        stage.settle()
        state = stage.journal.head.tasks.live[task_id]
        assert state.entry_ns - state.first_entry_ns == 1_000_000_000
        stage.attempt(task_id).end()
