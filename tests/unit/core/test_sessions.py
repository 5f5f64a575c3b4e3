"""Sessions: turns, idle time, what engines keep of them, and when that is given up (SES-1, SES-2)."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest

from llama_orch.core.errors import (
    ConflictError,
    InvalidParamsError,
    NotFoundError,
    SessionExpiredError,
    SessionTurnsExceededError,
)
from llama_orch.core.events.budget import BudgetRemoved
from llama_orch.core.events.pool import PoolSized
from llama_orch.core.events.session import SessionClosed, SessionEvicted, SessionOpened
from llama_orch.core.events.task import TaskStarted
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.sessions import SessionView
from llama_orch.core.settings import BudgetCapSettings, SessionSettings, Settings

from ...support.stage import LOCAL, Stage, on_stage, settings_for

ONE, TWO, THREE = (str(uuid.UUID(int=n)) for n in (1001, 1002, 1003))


def kept(slots: dict[str, int], **sessions: Any) -> Settings:
    return msgspec.structs.replace(settings_for(slots), sessions=SessionSettings(**sessions))


def turn(stage: Stage, session_id: str, *, words: int = 3, prompt_tokens: int = 10, **fields: Any) -> str:
    """A turn from its submission to its end."""
    task_id: str = stage.submit(session_id=session_id, **fields).task_id
    attempt = stage.attempt(task_id)
    attempt.start(prompt_tokens)
    attempt.say(*["w"] * words)
    attempt.end()
    stage.settle()
    return task_id


def view(stage: Stage, session_id: str, caller: Caller = LOCAL) -> SessionView:
    return stage.services.sessions.get(session_id, caller)


def delete(stage: Stage, session_id: str, caller: Caller = LOCAL) -> None:
    stage.run(stage.services.sessions.delete(session_id, caller))


# --- turns and time ------------------------------------------------------------------------------------------------


def test_a_session_may_ask_for_turns_and_time_within_the_bounds() -> None:
    with on_stage(settings=kept({"p": 1}, max_ttl_ms=5_000, max_turn_limit=2)) as stage:
        turn(stage, ONE, session_ttl_ms=5_000, session_turn_limit=2)
        turn(stage, ONE)
        with pytest.raises(SessionTurnsExceededError):
            stage.submit(session_id=ONE)
        state = view(stage, ONE).state
        assert (state.turns, state.turn_limit, state.ttl_ms) == (2, 2, 5_000)
        stage.advance(5.1)
        with pytest.raises(SessionExpiredError):
            stage.submit(session_id=ONE)


@pytest.mark.parametrize("field, got", [("session_ttl_ms", 5_001), ("session_turn_limit", 3)])
def test_beyond_the_bounds_the_field_is_refused(field: str, got: int) -> None:
    task: dict[str, Any] = {field: got}
    one: dict[str, Any] = {field: 1}
    session: dict[str, Any] = {field.removeprefix("session_"): got}
    with on_stage(settings=kept({"p": 1}, max_ttl_ms=5_000, max_turn_limit=2)) as stage:
        with pytest.raises(InvalidParamsError) as caught:
            stage.submit(session_id=ONE, **task)
        assert (caught.value.field, caught.value.got) == (field, got)
        with pytest.raises(InvalidParamsError) as caught:
            stage.submit(**one)
        assert caught.value.field == field
        with pytest.raises(InvalidParamsError) as caught:
            stage.run(stage.services.sessions.create(LOCAL, **session))
        assert caught.value.field == field.removeprefix("session_")
        assert not stage.payloads(SessionOpened)


def test_a_task_that_waits_or_runs_keeps_its_session() -> None:
    with on_stage(settings=kept({"p": 1}, ttl_ms=1_000)) as stage:
        running = stage.submit(session_id=ONE).task_id
        stage.submit(session_id=TWO)
        stage.attempt(running).start()
        stage.advance(5)
        assert view(stage, ONE).ttl_ms_remaining == 1_000
        assert view(stage, TWO).state.live == 1
        stage.attempt(running).end()
        stage.settle()
        stage.advance(0.9)
        assert 0 < view(stage, ONE).ttl_ms_remaining <= 100
        stage.advance(0.2)
        assert [(e.session_id, e.cause) for e in stage.payloads(SessionClosed)] == [(ONE, "expired")]
        with pytest.raises(NotFoundError):
            view(stage, ONE)


def test_a_session_expires_at_its_time_also_when_no_server_ran() -> None:
    with on_stage(settings=kept({"p": 1}, ttl_ms=1_000)) as stage:
        turn(stage, ONE)
        stage.crash()
        stage.clock.advance_ms(2_000)
        stage.start()
        with pytest.raises(SessionExpiredError):
            stage.submit(session_id=ONE)
        stage.advance(0.1)
        assert len(stage.payloads(SessionClosed)) == 1


def test_a_late_turn_is_told_so_for_a_day_and_after_a_restart() -> None:
    with on_stage(slots={"p": 2}, settings=kept({"p": 2}, ttl_ms=1_000)) as stage:
        turn(stage, ONE)
        stage.advance(1.1)
        stage.restart()
        for _ in range(2):
            stage.clock.advance_ms(40_000_000)
            with pytest.raises(SessionExpiredError):
                stage.submit(session_id=ONE)
        stage.submit(session_id=ONE, owner="somebody")
        stage.clock.advance_ms(10_000_000)
        turn(stage, TWO)
        assert ONE not in stage.journal.head.sessions.expired


# --- by name -------------------------------------------------------------------------------------------------------


def test_a_session_is_opened_by_name_with_budgets_that_go_with_it() -> None:
    with on_stage(settings=kept({"p": 1})) as stage:
        made = stage.run(
            stage.services.sessions.create(LOCAL, ttl_ms=9_000, turn_limit=3, budgets=[BudgetCapSettings(tokens=50)])
        )
        session_id = made.state.session_id
        assert (made.state.ttl_ms, made.state.turn_limit, made.state.turns) == (9_000, 3, 0)
        assert made.remaining.tokens == 50
        turn(stage, session_id)
        left = view(stage, session_id).remaining
        assert left is not None
        assert left.tokens == 50 - 6
        delete(stage, session_id)
        assert [e.account for e in stage.payloads(BudgetRemoved)] == [f"session/{session_id}/none"]
        assert not stage.journal.head.budgets.accounts


def test_two_budgets_of_one_window_are_refused_and_nothing_is_opened() -> None:
    with on_stage(settings=kept({"p": 1})) as stage:
        with pytest.raises(InvalidParamsError) as caught:
            stage.run(stage.services.sessions.create(LOCAL, budgets=[BudgetCapSettings(tokens=n) for n in (1, 2)]))
        assert caught.value.field == "budgets"
        assert not stage.payloads(SessionOpened)


def test_a_session_of_another_key_is_refused_with_what_to_do() -> None:
    with on_stage(settings=kept({"p": 1})) as stage:
        stage.run(stage.services.sessions.create(LOCAL, session_id=ONE))
        with pytest.raises(ConflictError) as refused:
            stage.submit(session_id=ONE, owner="somebody")
        assert (refused.value.field, refused.value.got) == ("session_id", ONE)
        assert refused.value.what_to_do.startswith("Take a session_id of your own")


def test_what_is_open_or_has_expired_is_not_opened_again() -> None:
    with on_stage(settings=kept({"p": 1}, ttl_ms=1_000)) as stage:
        stage.run(stage.services.sessions.create(LOCAL, session_id=ONE))
        with pytest.raises(ConflictError):
            stage.run(stage.services.sessions.create(LOCAL, session_id=ONE))
        stage.clock.advance_ms(1_100)
        with pytest.raises(SessionExpiredError):
            stage.run(stage.services.sessions.create(LOCAL, session_id=ONE))


def test_sessions_are_their_owners_and_an_admins() -> None:
    ann, bob = (Caller(owner=name, scopes=("inference",)) for name in ("ann", "bob"))
    with on_stage(settings=kept({"p": 1})) as stage:
        turn(stage, ONE, owner="ann")
        assert [v.state.session_id for v in stage.services.sessions.views(ann)] == [ONE]
        assert stage.services.sessions.views(bob) == []
        assert len(stage.services.sessions.views(LOCAL)) == 1
        with pytest.raises(NotFoundError):
            view(stage, ONE, bob)
        delete(stage, ONE, bob)
        assert not stage.payloads(SessionClosed)


# --- KV caches -----------------------------------------------------------------------------------------------------


def test_what_an_engine_holds_is_told_with_its_size() -> None:
    with on_stage(slots={"p": 2}, settings=kept({"p": 2})) as stage:
        with stage.loop.running():
            stage.journal.append(
                [
                    PoolSized(
                        pool_id="p",
                        weights_bytes=1,
                        kv_bytes=8_192_000,
                        compute_bytes=0,
                        overhead_bytes=0,
                        ctx=4096,
                        slots=2,
                    )
                ],
                actor="test",
                correlation="",
            )
        turn(stage, ONE, prompt_tokens=97)
        told = view(stage, ONE)
        assert told.kv_warmth
        assert told.state.kv is not None
        assert told.state.kv.tokens == 3 + 3  # the engine's count at the end of the turn is the last word
        assert told.kv_bytes == 6 * 8_192_000 // 8192


def test_what_an_engine_held_is_gone_with_its_process() -> None:
    with on_stage(settings=kept({"p": 1})) as stage:
        turn(stage, ONE)
        assert view(stage, ONE).kv_warmth
        with stage.loop.running():
            stage.host.unready("p", "exited")
        stage.settle()
        assert not view(stage, ONE).kv_warmth
        with stage.loop.running():
            stage.host.ready("p", stage.engines["p"].own_properties(), generation=9)
        stage.settle()
        told = view(stage, ONE)
        assert (told.kv_warmth, told.kv_bytes) == (False, 0)
        assert not stage.journal.head.leases.by_id


def test_deleting_an_idle_session_frees_its_slot() -> None:
    with on_stage(slots={"p": 2}, settings=kept({"p": 2})) as stage:
        turn(stage, ONE)
        delete(stage, ONE)
        assert stage.engines["p"].forgotten == [0]
        assert [e.cause for e in stage.payloads(SessionEvicted)] == ["closed"]
        assert [e.cause for e in stage.payloads(SessionClosed)] == ["deleted"]
        delete(stage, ONE)  # it is gone: nothing happens
        assert len(stage.payloads(SessionClosed)) == 1


def test_deleting_a_session_with_a_task_frees_its_slot_when_the_task_ends() -> None:
    with on_stage(slots={"p": 2}, settings=kept({"p": 2})) as stage:
        task_id = stage.submit(session_id=ONE).task_id
        attempt = stage.attempt(task_id)
        attempt.start()
        delete(stage, ONE)
        assert stage.engines["p"].forgotten == []
        attempt.say("w")
        attempt.end()
        stage.settle()
        assert stage.state(task_id) == "completed"
        assert stage.engines["p"].forgotten == [0]


def test_a_slot_that_is_seen_free_late_is_freed_all_the_same() -> None:
    with on_stage(slots={"p": 2}, settings=kept({"p": 2})) as stage:
        task_id = stage.submit(session_id=ONE).task_id
        attempt = stage.attempt(task_id)
        attempt.start()
        delete(stage, ONE)
        stage.cancel(task_id)
        stage.advance(5)
        assert stage.journal.task(task_id) is None
        assert stage.engines["p"].forgotten == []
        attempt.free()
        stage.settle()
        assert stage.engines["p"].forgotten == [0]


def test_a_task_of_a_deleted_session_leaves_nothing_behind() -> None:
    with on_stage(settings=kept({"p": 1})) as stage:
        running, waiting = stage.submit(session_id=TWO).task_id, stage.submit(session_id=ONE).task_id
        delete(stage, ONE)
        for task_id in (running, waiting):
            stage.attempt(task_id).start()
            stage.attempt(task_id).end()
            stage.settle()
        assert stage.state(waiting) == "completed"
        assert stage.engines["p"].forgotten == [0]


def test_a_slot_that_is_given_to_others_takes_the_longest_idle_session_with_it() -> None:
    with on_stage(slots={"p": 2}, settings=kept({"p": 2})) as stage:
        turn(stage, ONE)
        turn(stage, TWO)
        third = turn(stage, THREE)
        (evicted,) = stage.payloads(SessionEvicted)
        assert (evicted.session_id, evicted.cause, evicted.task_id, evicted.kv_tokens) == (ONE, "slot-needed", third, 6)
        assert not view(stage, ONE).kv_warmth
        assert view(stage, TWO).kv_warmth
        assert view(stage, THREE).kv_warmth


def test_a_pool_keeps_no_more_sessions_than_it_may() -> None:
    with on_stage(slots={"p": 4}, settings=kept({"p": 4}, kv_per_pool=2)) as stage:
        for session_id in (ONE, TWO, THREE):
            turn(stage, session_id)
        (evicted,) = stage.payloads(SessionEvicted)
        assert (evicted.session_id, evicted.cause) == (ONE, "bound")
        assert stage.engines["p"].forgotten == [evicted.slot]
        turn(stage, ONE)
        assert [e.session_id for e in stage.payloads(SessionEvicted)] == [ONE, TWO]


def test_a_turn_says_whether_it_found_its_kv_cache() -> None:
    with on_stage(slots={"p": 2}, settings=kept({"p": 2})) as stage:
        first, second = turn(stage, ONE), turn(stage, ONE)
        started = {t: stage.payloads(TaskStarted, t)[0] for t in (first, second)}
        assert (started[first].kv_warmth, started[first].kv_lost) == (False, False)
        assert (started[second].kv_warmth, started[second].kv_lost) == (True, False)


def test_a_failover_says_that_the_kv_cache_is_lost() -> None:
    with on_stage(slots={"a": 1, "b": 1}, settings=kept({"a": 1, "b": 1})) as stage:
        turn(stage, ONE)
        here = view(stage, ONE).state.pool_id
        task_id = stage.submit(session_id=ONE).task_id
        stage.attempt(task_id).fail("unreachable")
        with stage.loop.running():
            stage.host.unready(here, "exited")
        stage.settle()
        stage.advance(1)
        attempt = stage.attempt(task_id)
        attempt.start()
        stage.settle()
        (started,) = stage.payloads(TaskStarted, task_id)
        assert started.pool_id != here
        assert (started.kv_warmth, started.kv_lost) == (False, True)
        reader = stage.reader(task_id)
        assert reader.started == started
