"""Sessions in all orders of turns, time, deletes, failures and crashes: a model counts along (SES-1)."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from llama_orch.core.errors import ConflictError, OrchError, SessionExpiredError, SessionTurnsExceededError
from llama_orch.core.events.session import SessionClosed, SessionEvicted, SessionOpened
from llama_orch.core.events.task import TaskAdmitted
from llama_orch.core.services.caller import Caller
from llama_orch.core.settings import SessionSettings

from ..support.engine import ScriptedAttempt
from ..support.examples import search
from ..support.stage import Stage, settings_for

IDS = [str(uuid.UUID(int=n)) for n in range(1, 5)]
TTL_MS, TURNS = 10_000, 3
DAY_MS = 86_400_000
_index = st.integers(0, 50)


class Talks(RuleBasedStateMachine):
    """Four sessions, fewer slots."""

    @initialize(slots=st.sampled_from([{"p": 1}, {"p": 3}, {"a": 1, "b": 2}]), kept=st.sampled_from([0, 1, 2]))
    def begin(self, slots: dict[str, int], kept: int) -> None:
        settings = msgspec.structs.replace(
            settings_for(slots, max_attempts=3),
            sessions=SessionSettings(ttl_ms=TTL_MS, turn_limit=TURNS, kv_per_pool=kept),
        )
        self.kept = kept
        self.stage = Stage(slots=slots, settings=settings)
        self.owners: dict[str, str] = {}
        self.look()

    def state(self, session_id: str) -> Any:
        """What head knows of a session."""
        return self.stage.journal.head.sessions.by_id.get(session_id)

    def now_ns(self) -> int:
        return self.stage.journal.now_ns()

    @rule(session_id=st.sampled_from(IDS), owner=st.sampled_from(["ann", "ann", "ann", "bob"]))
    def turn(self, session_id: str, owner: str) -> None:
        """A client asks for a turn; whether it gets one follows from what was said so far."""
        before, now_ns = self.state(session_id), self.now_ns()
        gone = self.stage.journal.head.sessions.expired.get(session_id)
        work = self.stage.loop.create_task(self.stage.submitting(session_id=session_id, owner=owner))
        self.stage.settle()
        error = work.exception()
        if before is not None and before.owner != owner:
            assert isinstance(error, ConflictError)
        elif (before is not None and not before.live and now_ns > before.due_ns) or (
            before is None and gone is not None and gone.owner == owner and now_ns - gone.closed_ns < DAY_MS * 10**6
        ):
            assert isinstance(error, SessionExpiredError)
        elif before is not None and error is not None:
            assert isinstance(error, SessionTurnsExceededError)
            assert before.turns == TURNS
        else:
            assert error is None
            assert self.state(session_id).turns <= TURNS
        self.look()

    @rule(session_id=st.sampled_from(IDS), owner=st.sampled_from(["ann", "bob"]))
    def delete(self, session_id: str, owner: str) -> None:
        """It is closed if it is the caller's, and never an error."""
        before = self.state(session_id)
        caller = Caller(owner=owner, scopes=("inference",))
        self.stage.run(self.stage.services.sessions.delete(session_id, caller))
        if before is not None and before.owner == owner:
            assert self.state(session_id) is None
        else:
            assert self.state(session_id) is before
        self.look()

    @rule(session_id=st.sampled_from(IDS))
    def create(self, session_id: str) -> None:
        """It is opened by name."""
        work: asyncio.Task[Any] = self.stage.loop.create_task(
            self.stage.services.sessions.create(Caller(owner="ann"), session_id=session_id)
        )
        self.stage.settle()
        error = work.exception()
        assert error is None or isinstance(error, OrchError)
        self.look()

    def attempts(self) -> list[ScriptedAttempt]:
        """All attempts."""
        return [a for name in sorted(self.stage.engines) for a in self.stage.engines[name].attempts]

    def running(self) -> list[ScriptedAttempt]:
        """Those that can still do something."""
        return [a for a in self.attempts() if not a.cancelled and not a.over]

    @precondition(lambda self: self.running())
    @rule(n=_index, fails=st.sampled_from([False, False, True]))
    def end(self, n: int, fails: bool) -> None:
        """An engine finishes, or breaks off."""
        attempt = self.running()[n % len(self.running())]
        if fails:
            attempt.fail()
            attempt.free()
        else:
            attempt.start()
            attempt.say("w")
            attempt.end()
        self.look()

    @rule(ms=st.sampled_from([1, 5_000, TTL_MS, TTL_MS + 1, DAY_MS + 1]), looks=st.booleans())
    def time(self, ms: int, looks: bool) -> None:
        """Time passes."""
        self.stage.clock.advance_ms(ms)
        if looks:
            self.stage.loop.advance(0.06)
            self.stage.settle()
            now_ns = self.now_ns()
            assert not any(s.due(now_ns) for s in self.stage.journal.head.sessions.by_id.values())
        self.look()

    @rule()
    def crash(self) -> None:
        """The process dies and starts again."""
        self.stage.restart()
        self.look()

    def look(self) -> None:
        """What must hold at any moment."""
        self.stage.settle()
        head = self.stage.journal.head
        live: dict[str, int] = {}
        for task in head.tasks.live.values():
            live[task.admitted.session_id] = live.get(task.admitted.session_id, 0) + 1
        places = [(s.kv.pool_id, s.kv.slot) for s in head.sessions.by_id.values() if s.kv is not None]
        assert len(places) == len(set(places)), "two sessions in one slot"
        used = [s.used_ns for s in head.sessions.by_id.values()]
        assert used == sorted(used)
        for session_id, session in head.sessions.by_id.items():
            assert session.live <= live.get(session_id, 0)
            assert session_id not in head.sessions.expired
        if self.kept:
            for pool_id, slots in self.stage.slots.items():
                idle = [s for s in head.sessions.by_id.values() if s.kv and s.kv.pool_id == pool_id and not s.live]
                assert len(idle) <= max(self.kept, slots)

    @rule()
    def check(self) -> None:
        """All ways to the state agree; each session's events are in order."""
        self.stage.check()
        if len(self.stage.snapshots) < 3:
            self.stage.snapshot()
        open_now: set[str] = set()
        for record in self.stage.facts(SessionOpened, SessionClosed, SessionEvicted, TaskAdmitted):
            event = record.payload
            if isinstance(event, SessionOpened):
                assert event.session_id not in open_now
                open_now.add(event.session_id)
            elif isinstance(event, SessionClosed):
                open_now.remove(event.session_id)
            else:
                assert event.session_id in open_now
        assert open_now == set(self.stage.journal.head.sessions.by_id)

    def teardown(self) -> None:
        """Everything ends, and every session with it."""
        if not hasattr(self, "stage"):
            return
        try:
            for _ in range(100):
                for attempt in self.attempts():
                    if attempt.cancelled or attempt.over:
                        attempt.free()
                for attempt in self.running():
                    attempt.start()
                    attempt.end()
                self.stage.advance(3)
                if not self.stage.journal.head.tasks.live:
                    break
            assert not self.stage.journal.head.tasks.live
            self.look()
            self.stage.clock.advance_ms(TTL_MS + 1)
            self.stage.advance(0.1)
            assert not self.stage.journal.head.sessions.by_id
            self.stage.check()
        finally:
            self.stage.end()


Talks.TestCase.settings = search(40, steps=40)
TestTalks = Talks.TestCase
