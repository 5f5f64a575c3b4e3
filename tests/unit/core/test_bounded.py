"""What a server keeps in memory is bounded by what lives, not by what ever happened."""

from __future__ import annotations

from llama_orch.core.events.session import SessionOpened
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.projection import Recorded
from llama_orch.core.projections.sessions import REMEMBER_NS
from llama_orch.core.settings import BudgetCapSettings

from ...support.stage import LOCAL, on_stage


def test_tasks_that_end_while_they_wait_leave_nothing_with_their_session() -> None:
    with on_stage(ready=False) as stage:
        task_id = stage.submit(session_id="00000000-0000-4000-8000-00000000000a").task_id
        stage.cancel(task_id)
        assert [s["tasks"] for s in stage.journal.head.sessions.dump()["sessions"]] == [[]]


def test_deadlines_of_ended_tasks_are_forgotten_before_they_pass() -> None:
    with on_stage() as stage:
        for _ in range(1_100):
            task_id = stage.submit(deadline_ms=31_536_000_000).task_id
            stage.attempt(task_id).end()
            stage.settle()
            stage.engines["p"].attempts.clear()
        stage.advance(0.1)
        assert len(stage.services.watchdog._deadlines) <= 1_030


def test_a_deadline_holds_after_others_were_forgotten() -> None:
    with on_stage() as stage:
        for _ in range(1_100):
            task_id = stage.submit(deadline_ms=31_536_000_000).task_id
            stage.attempt(task_id).end()
            stage.settle()
            stage.engines["p"].attempts.clear()
        last = stage.submit(deadline_ms=5_000).task_id
        stage.advance(5.1)
        assert stage.ended(last).code == "DEADLINE_UNMET"
        stage.attempt(last).free()


def test_positions_of_a_session_are_forgotten_with_it() -> None:
    with on_stage() as stage:
        session_id = "00000000-0000-4000-8000-00000000000a"
        task_id = stage.submit(session_id=session_id).task_id
        stage.attempt(task_id).end()
        stage.clock.advance_ms(86_400_000)
        stage.advance(1)
        assert stage.journal.head.sessions.by_id == {}, "sessions that nobody asks for again are closed"
        assert f"session:{session_id}" not in stage.journal.head.positions


def test_sessions_that_were_closed_leave_no_looks_and_others_still_expire() -> None:
    with on_stage() as stage:
        sessions = stage.services.sessions
        for _ in range(1_100):
            name = stage.run(sessions.create(LOCAL, ttl_ms=86_400_000)).state.session_id
            stage.run(sessions.delete(name, LOCAL))
        kept = stage.run(sessions.create(LOCAL, ttl_ms=5_000)).state.session_id
        assert len(stage.journal.head.sessions._looks) <= 1_030
        stage.advance(5.1)
        assert kept in stage.journal.head.sessions.expired


def test_a_budget_that_is_set_again_and_again_leaves_no_ends_and_its_window_still_ends() -> None:
    with on_stage() as stage:
        for n in range(1_100):
            caps = BudgetCapSettings(window="day", tokens=n)
            stage.run(stage.services.budgets.put("key", "local", caps, LOCAL))
        budgets = stage.journal.head.budgets
        assert len(budgets._ends) <= 1_030
        before = budgets.accounts["key/local/day"].window_end_ns
        stage.clock.advance_ms(86_400_000)
        stage.advance(0.1)
        assert budgets.accounts["key/local/day"].window_end_ns > before


def test_of_expired_sessions_the_oldest_are_forgotten_when_they_are_too_many_or_a_day_has_passed() -> None:
    def at(time_ns: int, session_id: str) -> Recorded:
        opened = SessionOpened(session_id=session_id, owner="local", ttl_ms=1, turn_limit=1)
        return Recorded(1, 1, 1, f"session:{session_id}", 0, "session.opened", time_ns, "", "", opened)

    head = Head()
    head.sessions.load({"sessions": [], "expired": [[str(n), "local", 1, n] for n in range(100_005)]})
    head.fold(at(200_000, "a"))
    assert list(head.sessions.expired)[::99_999] == ["5", "100004"]
    head.fold(at(REMEMBER_NS + 70_000, "b"))
    assert list(head.sessions.expired)[::30_003] == ["70001", "100004"]
    head.fold(at(REMEMBER_NS + 200_000, "c"))
    assert not head.sessions.expired
