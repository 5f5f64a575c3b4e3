"""Steps of sessions_and_eviction.feature alone."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from llama_orch.client import NewSession, NotFoundError, Session, Started

from ..e2e.conftest import wait_until
from .conftest import ENDLESS, World, pool

scenarios("sessions_and_eviction.feature")


@given("a server with 2 slots that keeps what it holds of 1 idle session")
def a_server(world: World) -> None:
    world.serve({"pools": [pool(2)], "sessions": {"kv_per_pool": 1}})


def open_session(world: World, name: str, **fields: Any) -> None:
    world.notes[name] = world.client.open_session(NewSession(**fields)).session_id


@given(parsers.parse("a session that may have {turns:d} turns"))
def a_session(world: World, turns: int) -> None:
    open_session(world, "session", turn_limit=turns)


@given(parsers.parse("another session that may have {turns:d} turns"))
def another_session(world: World, turns: int) -> None:
    open_session(world, "other", turn_limit=turns)


@given(parsers.parse("a session that may stay idle for {ttl_ms:d} ms"))
def a_short_session(world: World, ttl_ms: int) -> None:
    open_session(world, "session", ttl_ms=ttl_ms, turn_limit=50)


def turn(world: World, session: str = "session") -> None:
    name = f"turn {len(world.tasks)}"
    world.submit(name, "Once upon a time [[mock tokens=5]]", session_id=world.notes[session])
    world.wait(name)


@when(parsers.re(r"it takes (?P<turns>\d+) turns?$"))
@when(parsers.re(r"the first takes (?P<turns>\d+) turns?$"))
def takes_turns(world: World, turns: str) -> None:
    for _ in range(int(turns)):
        turn(world)


@when(parsers.re(r"the other takes (?P<turns>\d+) turns?$"))
def other_takes_turns(world: World, turns: str) -> None:
    for _ in range(int(turns)):
        turn(world, "other")


@when("the client asks for one more turn")
def one_more(world: World) -> None:
    world.submit("one more", "x [[mock tokens=1]]", session_id=world.notes["session"])


@then("no task of it waits")
def none_waits(world: World) -> None:
    found = world.client.tasks(session_id=world.notes["session"]).tasks
    assert found
    assert [task.state for task in found if task.state != "completed"] == []


@when("it has been idle for longer than that")
def idle(world: World) -> None:
    wait_until(lambda: world.notes["session"] not in open_sessions(world), "the session's end")


def open_sessions(world: World) -> dict[str, Session]:
    return {session.session_id: session for session in world.client.sessions()}


@when("a task of it runs for longer than that")
def runs_long(world: World) -> None:
    world.submit("long", ENDLESS, session_id=world.notes["session"], max_tokens=1_000_000)
    world.until("long", lambda task: time.time() * 1000 - (task.started_ms or time.time() * 1000) > 600, "it runs long")


@then("it is open as long as the task runs, and over some time after that")
def open_meanwhile(world: World) -> None:
    session = open_sessions(world)[world.notes["session"]]
    assert session.active_tasks == 1
    assert not world.accepted("long").get().ended
    world.tasks["long"].cancel()
    idle(world)


@then(parsers.parse("it has {turns:d} turns, and {left:d} is left"))
def has_turns(world: World, turns: int, left: int) -> None:
    session = world.client.session(world.notes["session"])
    assert (session.turns, session.turns_remaining) == (turns, left)


@then("its last turn found its conversation in the engine")
def found_it(world: World) -> None:
    *_, last = world.tasks.values()
    with last.stream() as stream:
        (started,) = [event for event in stream if isinstance(event, Started)]
    assert started.kv_warmth is True
    assert last.get().usage.cached_tokens > 0


@then("the engine holds the other, and nothing of the first")
def holds_the_other(world: World) -> None:
    def held() -> list[tuple[bool, bool]]:
        sessions = open_sessions(world)
        found = [sessions[world.notes[name]] for name in ("session", "other")]
        return [(session.kv_warmth, session.kv_tokens > 0) for session in found]

    wait_until(lambda: held() == [(False, False), (True, True)], "one session's cache is given up")


@then("the first can take another turn all the same")
def goes_on(world: World) -> None:
    turn(world)
    assert world.client.session(world.notes["session"]).turns == 2


@when("the client deletes the session")
def deletes(world: World) -> None:
    world.client.end_session(world.notes["session"])


@then("the session is not open any more")
def is_gone(world: World) -> None:
    assert world.notes["session"] not in open_sessions(world)
    with pytest.raises(NotFoundError):
        world.client.session(world.notes["session"])
