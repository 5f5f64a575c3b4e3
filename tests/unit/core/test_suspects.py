"""Pools of which attempts just broke off are passed over for a moment; who, and until when, follows from the journal."""

from __future__ import annotations

from llama_orch.core.journal.replay import replay

from ...support.stage import Stage, on_stage, settings_for
from ...support.store import MemoryStore


def break_off(stage: Stage, task_id: str, times: int) -> None:
    """The task's attempts break off in a row."""
    for _ in range(times):
        attempt = stage.attempt(task_id)
        attempt.start()
        attempt.fail("cut")
        attempt.free()
        stage.settle()
        if _ < times - 1:
            stage.advance(10)


def test_how_long_a_pool_is_passed_over_doubles_and_follows_from_the_journal() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        pool = stage.journal.head.pools.by_id["p"]
        pauses = []
        for _ in range(3):
            break_off(stage, task_id, 1)
            pauses.append(pool.suspect_until_ns - stage.journal.now_ns())
            stage.advance(10)
        assert pauses == [50_000_000, 100_000_000, 200_000_000]
        again = replay(MemoryStore(stage.disk)).head.pools.by_id["p"]
        assert (again.failures, again.suspect_until_ns) == (3, pool.suspect_until_ns)
        attempt = stage.attempt(task_id)
        attempt.start()
        attempt.end()
        stage.settle()
        assert stage.journal.head.pools.by_id["p"].failures == 0


def test_a_pool_is_passed_over_also_by_the_next_server_and_then_looked_at_again() -> None:
    with on_stage(settings=settings_for({"p": 1}, max_attempts=20)) as stage:
        task_id = stage.submit().task_id
        break_off(stage, task_id, 7)
        assert stage.state(task_id) == "queued"
        stage.restart()
        assert stage.state(task_id) == "queued", "its pool is not trusted yet"
        stage.advance(4)
        assert stage.state(task_id) == "placed"


def test_a_pool_that_ends_tasks_with_its_failures_is_not_given_all_the_others_at_once() -> None:
    with on_stage(settings=settings_for({"p": 1}, max_attempts=1)) as stage:
        first, second = stage.submit().task_id, stage.submit("next").task_id
        break_off(stage, first, 1)
        assert stage.ended(first).code == "WORKER_RESET"
        assert stage.state(second) == "queued"
        stage.advance(0.1)
        assert stage.state(second) == "placed"
