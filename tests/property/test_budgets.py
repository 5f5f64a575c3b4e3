"""Budgets in all orders of submissions, words, cancels, disconnects, failures, crashes, windows and changes of caps (BUD-1).

After every step the books that the server keeps are those that follow from its journal, added up by code of the tests' own.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from llama_orch.core.entries import batch_of
from llama_orch.core.errors import BudgetExhaustedError, OrchError
from llama_orch.core.journal.listing import events_in
from llama_orch.core.services.caller import Caller
from llama_orch.core.settings import BudgetCapSettings, PriceSettings
from llama_orch.core.types import Entry

from ..support.books import NAMES, Books
from ..support.engine import ScriptedAttempt
from ..support.examples import search
from ..support.reader import Reader
from ..support.stage import LOCAL, Stage, settings_for

OWNERS = ("ann", "bob")
SESSIONS = (str(uuid.UUID(int=101)), str(uuid.UUID(int=102)))
PRICES = {"*": PriceSettings(input="0.5", cached="0.05", output="1.000001", second="0.002")}
DAY_MS = 86_400_000
_index = st.integers(0, 50)
_cap = st.one_of(st.none(), st.integers(1, 40), st.integers(30, 2000))
_window = st.sampled_from(["none", "none", "day", "month"])
_zone = st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Auckland"])


def caps(window: str, zone: str, tokens: int | None, seconds: int | None, cost: int | None) -> BudgetCapSettings:
    return BudgetCapSettings(
        window=window,  # type: ignore[arg-type]
        timezone=zone,
        tokens=tokens,
        decode_ms=None if seconds is None else seconds * 20,
        cost=None if cost is None else f"0.{cost:06}",
    )


class Money(RuleBasedStateMachine):
    """One disk, many lives, four accounts of three kinds."""

    @initialize(
        slots=st.sampled_from([{"p": 1}, {"p": 4}, {"a": 2, "b": 2}]),
        by_hand=st.booleans(),
        tokens=_cap,
        seconds=_cap,
        cost=_cap,
        window=_window,
        zone=_zone,
        default=st.booleans(),
    )
    def begin(
        self,
        slots: dict[str, int],
        by_hand: bool,
        tokens: int | None,
        seconds: int | None,
        cost: int | None,
        window: str,
        zone: str,
        default: bool,
    ) -> None:
        first = caps(window, zone, tokens, seconds, cost)
        plain = settings_for(slots, max_attempts=4)
        budgets = msgspec.structs.replace(plain.budgets, keys=[first] if default else [])
        settings = msgspec.structs.replace(plain, prices=PRICES, budgets=budgets)
        self.stage = Stage(slots=slots, settings=settings, by_hand=by_hand)
        self.submissions: list[asyncio.Task[Any]] = []
        self.works: list[asyncio.Task[Any]] = []
        self.readers: list[Reader] = []
        if not default:
            self.do(self.stage.services.budgets.put("key", "ann", first, LOCAL))
        for owner in OWNERS:
            self.submit(owner, None, 4, "interactive", leaves=True)

    def do(self, work: Any) -> None:
        """Something that takes its time."""
        self.works.append(self.stage.loop.create_task(work))
        self.look()

    # --- clients ---------------------------------------------------------------------------------------------------

    @rule(
        owner=st.sampled_from(OWNERS),
        session=st.sampled_from([None, None, *SESSIONS]),
        words=st.integers(1, 40),
        priority=st.sampled_from(["interactive", "batch"]),
        leaves=st.booleans(),
        max_tokens=st.sampled_from([None, 1, 5, 100_000]),
        recovery=st.sampled_from(["continue", "strict", "none"]),
    )
    def submit(
        self,
        owner: str,
        session: str | None,
        words: int,
        priority: str,
        leaves: bool,
        max_tokens: int | None = None,
        recovery: str = "continue",
    ) -> None:
        """A client submits a task."""
        fields: dict[str, Any] = {"session_id": session, "max_tokens": max_tokens, "recovery": recovery}
        work = self.stage.submitting(
            " ".join(["word"] * words), owner=owner, priority=priority, cancel_on_disconnect=leaves, **fields
        )
        self.submissions.append(self.stage.loop.create_task(work))
        self.look()

    @precondition(lambda self: self.live())
    @rule(n=_index)
    def cancel(self, n: int) -> None:
        """A client cancels a task."""
        state = self.live()[n % len(self.live())]
        owner = Caller(owner=state.admitted.owner)
        self.do(self.stage.services.cancel.cancel(state.task_id, owner))

    @precondition(lambda self: self.live() and len(self.readers) < 4)
    @rule(n=_index)
    def read(self, n: int) -> None:
        """A reader comes."""
        state = self.live()[n % len(self.live())]
        if state.admitted.owner == "ann":
            self.readers.append(self.stage.reader(state.task_id, attached=True, owner="ann"))
        self.look()

    @precondition(lambda self: any(r.connected for r in self.readers))
    @rule(n=_index)
    def leave(self, n: int) -> None:
        """A reader's connection breaks: its task may be cancelled with it."""
        found = [r for r in self.readers if r.connected]
        found[n % len(found)].leave()
        self.look()

    @rule(owner=st.sampled_from(OWNERS), window=_window, zone=_zone, tokens=_cap, seconds=_cap, cost=_cap)
    def set_caps(
        self, owner: str, window: str, zone: str, tokens: int | None, seconds: int | None, cost: int | None
    ) -> None:
        """An administrator sets a budget: a new one, a higher or a lower one."""
        self.do(self.stage.services.budgets.put("key", owner, caps(window, zone, tokens, seconds, cost), LOCAL))

    @rule(session=st.sampled_from(SESSIONS), tokens=_cap)
    def set_session(self, session: str, tokens: int | None) -> None:
        """A session gets a budget."""
        if session in self.stage.journal.head.sessions.by_id:
            self.do(self.stage.services.budgets.put("session", session, BudgetCapSettings(tokens=tokens), LOCAL))

    @rule(owner=st.sampled_from(OWNERS), window=st.sampled_from([None, "none", "day"]))
    def remove(self, owner: str, window: str | None) -> None:
        """An administrator removes budgets; a task may be counted on them."""
        self.do(self.stage.services.budgets.remove("key", owner, window, LOCAL))

    @precondition(lambda self: self.stage.journal.head.sessions.by_id)
    @rule(session=st.sampled_from(SESSIONS))
    def delete_session(self, session: str) -> None:
        """A session is closed, and its budgets go with it."""
        self.do(self.stage.services.sessions.delete(session, LOCAL))

    # --- engines ---------------------------------------------------------------------------------------------------

    def live(self) -> list[Any]:
        """Tasks that have not ended."""
        return list(self.stage.journal.head.tasks.live.values())

    def attempts(self) -> list[ScriptedAttempt]:
        """All attempts."""
        return [a for name in sorted(self.stage.engines) for a in self.stage.engines[name].attempts]

    def running(self) -> list[ScriptedAttempt]:
        """Attempts that can still do something."""
        return [a for a in self.attempts() if not a.cancelled and not a.over]

    @precondition(lambda self: self.running())
    @rule(
        n=_index,
        prompt_tokens=st.sampled_from([0, 3, 3, 60, 500]),
        cached=st.sampled_from([0, 2]),
        sizes=st.lists(st.integers(0, 4), max_size=6),
        more=st.lists(st.integers(0, 4), max_size=6),
        wait_ms=st.sampled_from([0, 1, 30, 700]),
    )
    def say(self, n: int, prompt_tokens: int, cached: int, sizes: list[int], more: list[int], wait_ms: int) -> None:
        """An engine says some pieces of some tokens each, and more of them after a while."""
        found = self.running()
        attempt = found[n % len(found)]
        attempt.start(prompt_tokens, cached)
        for pieces in (sizes, more):
            if pieces:
                attempt.say_batch(batch_of([Entry(text="x" * size or "y", tokens=size) for size in pieces]))
            self.stage.clock.advance_ms(wait_ms)
        self.stage.commit()
        self.look()

    @precondition(lambda self: self.running())
    @rule(n=_index, size=st.integers(1, 90))
    def say_much(self, n: int, size: int) -> None:
        """An engine says many tokens, some milliseconds after the last."""
        found = self.running()
        attempt = found[n % len(found)]
        attempt.start()
        for _ in range(2):
            self.stage.clock.advance_ms(20)
            attempt.say(*["x"] * size)
        self.look()

    @precondition(lambda self: self.running())
    @rule(n=_index)
    def end(self, n: int) -> None:
        """An engine finishes."""
        found = self.running()
        found[n % len(found)].end()
        self.look()

    @precondition(lambda self: self.running())
    @rule(n=_index, retriable=st.sampled_from([True, True, False]))
    def fail(self, n: int, retriable: bool) -> None:
        """An engine breaks off."""
        found = self.running()
        found[n % len(found)].fail("cut", retriable=retriable)
        self.look()

    @precondition(lambda self: any((a.cancelled or a.over) and not a.slot_is_free for a in self.attempts()))
    @rule(n=_index)
    def free(self, n: int) -> None:
        """A slot is seen free."""
        found = [a for a in self.attempts() if (a.cancelled or a.over) and not a.slot_is_free]
        found[n % len(found)].free()
        self.look()

    # --- the world -------------------------------------------------------------------------------------------------

    @rule(ms=st.sampled_from([1, 60, 5_000, DAY_MS // 2, DAY_MS, 20 * DAY_MS]), looks=st.booleans())
    def time(self, ms: int, looks: bool) -> None:
        """Time passes; windows begin anew, when the watchdog looks or when somebody else asks first."""
        self.stage.clock.advance_ms(ms)
        if looks:
            self.stage.loop.advance(0.06)
        self.look()

    @rule(outcomes=st.lists(st.sampled_from(["ok", "refused", "written", "lost"]), max_size=2))
    def trouble(self, outcomes: list[str]) -> None:
        """What the next commits meet."""
        self.stage.disk.commits.extend(outcomes)
        self.look()

    @rule(ms=st.sampled_from([0, 0, DAY_MS]), power=st.booleans())
    def crash(self, ms: int, power: bool) -> None:
        """The process dies, or power fails, and it starts again, at once or after a day."""
        self.stage.crash(power=power)
        self.stage.disk.commits.clear()
        for work in (*self.submissions, *self.works):
            if not work.done():
                work.cancel()
        self.submissions.clear()
        self.works.clear()
        self.stage.clock.advance_ms(ms)
        self.stage.start()
        self.look()

    def look(self) -> None:
        """What happened, and what must hold at any moment."""
        self.stage.settle()
        for works in (self.submissions, self.works):
            for work in [w for w in works if w.done()]:
                works.remove(work)
                error = work.exception()
                assert error is None or isinstance(error, OrchError), error
                if isinstance(error, BudgetExhaustedError):
                    assert error.status == 402
        journal = self.stage.journal
        budgets = journal.head.budgets
        if journal.status != "ok" or journal.committed_seq != journal.head.next_seq:
            return  # the disk does not hold all of it yet
        assert set(budgets.holds) <= {state.task_id for state in self.live()}
        books = Books(event for frame in self.stage.disk.frames for event in events_in(frame, texts=True))
        assert set(books.accounts) == set(budgets.accounts)
        for name, account in budgets.accounts.items():
            known = books.accounts[name]
            assert tuple(getattr(account.spent, one) for one in NAMES) == known.spent
            assert tuple(getattr(account.held, one) for one in NAMES) == known.held
            assert account.holders == sum(
                name in [one for one, _ in h.accounts if _ == account.opened_seq] for h in budgets.holds.values()
            )

    @rule()
    def check(self) -> None:
        """All ways to the state agree, from snapshots too."""
        self.stage.check()
        if len(self.stage.snapshots) < 3:
            self.stage.snapshot()

    def teardown(self) -> None:
        """Everything comes to its end, and then nothing is held."""
        if not hasattr(self, "stage"):
            return
        try:
            self.stage.disk.commits.clear()
            for _ in range(300):
                for attempt in self.attempts():
                    if attempt.cancelled or attempt.over:
                        attempt.free()
                for attempt in self.running():
                    attempt.start()
                    self.stage.settle()
                    attempt.end()
                self.stage.advance(3)
                self.look()
                if not self.live() and not self.submissions and not self.works:
                    break
            assert not self.live()
            assert self.stage.journal.head.budgets.holds == {}
            for account in self.stage.journal.head.budgets.accounts.values():
                assert account.holders == 0
                assert tuple(getattr(account.held, one) for one in NAMES) == (0, 0, 0)
            self.stage.check()
        finally:
            self.stage.end()


Money.TestCase.settings = search(70, steps=40)
TestMoney = Money.TestCase
