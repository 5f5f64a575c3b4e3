"""Budgets: what accounts may spend, what was spent of it, and what is promised to live tasks (BUD-1)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ..amounts import NOTHING, minus, plus
from ..events.budget import BudgetRemoved, BudgetReserved, BudgetRolled, BudgetSet, PriceRecord
from ..events.task import TaskEnded
from ..types import Amount
from .projection import Projection, Recorded, on

#: ends of windows that may stay in memory though nothing is due then, beside as many as there are accounts
_SPARE_ENDS = 1024


class Account(msgspec.Struct, kw_only=True, gc=False):
    """What one subject may spend in one kind of window."""

    #: caps, -1 = none; which windows; whose it is
    declared: BudgetSet
    #: of the window that runs, Unix ns; the end is 0 when it never ends
    window_start_ns: int
    window_end_ns: int
    #: seq of its opening: an account that is removed and opened again is another one
    opened_seq: int
    spent: Amount = NOTHING
    held: Amount = NOTHING
    #: live tasks that hold something of it
    holders: int = 0

    def declare(self, event: BudgetSet) -> None:
        """Other caps, or windows counted otherwise."""
        self.declared = event
        self.window_start_ns, self.window_end_ns = event.window_start_ns, event.window_end_ns

    def roll(self, event: BudgetRolled) -> None:
        """The next window."""
        self.window_start_ns, self.window_end_ns = event.window_start_ns, event.window_end_ns
        self.spent = NOTHING

    def due(self, now_ns: int) -> bool:
        """Whether its window is over."""
        return 0 < self.window_end_ns <= now_ns

    def room(self, name: str) -> int | None:
        """What of a quantity (``tokens``, ``decode_us``, ``cost_pico``) is neither spent nor reserved, below zero when its
        cap was lowered under that; ``None``: it has no cap.
        """
        cap: int = getattr(self.declared, name)
        return None if cap < 0 else cap - getattr(self.spent, name) - getattr(self.held, name)


class Hold(msgspec.Struct, kw_only=True, gc=False):
    """What is promised to one live task."""

    #: with the seq of their opening
    accounts: list[tuple[str, int]]
    amount: Amount
    prompt_tokens: int
    prices: PriceRecord


class Budgets(Projection):
    """Accounts by id and by subject, holds by task."""

    name = "budgets"

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, Hold] = {}
        self._of: dict[tuple[str, str], list[str]] = {}
        #: ends of windows, with those of accounts that changed since
        self._ends: list[tuple[int, str]] = []

    def of(self, scope: str, subject: str) -> list[Account]:
        """The accounts of a key's tasks or of a session."""
        return [self.accounts[name] for name in self._of.get((scope, subject), ())]

    def counted(self, owner: str, session_id: str) -> list[Account]:
        """All accounts that a task of this owner, in this session, is counted on."""
        found = self.of("key", owner) if ("key", owner) in self._of else []
        return found + self.of("session", session_id) if session_id else found

    def open_of(self, hold: Hold) -> list[Account]:
        """The accounts behind a hold that are still there."""
        found = []
        for name, opened_seq in hold.accounts:
            account = self.accounts.get(name)
            if account is not None and account.opened_seq == opened_seq:
                found.append(account)
        return found

    def due(self, now_ns: int, most: int) -> list[Account]:
        """Accounts whose window is over, at most so many."""
        found: dict[str, Account] = {}
        ends = self._ends
        while ends and ends[0][0] <= now_ns and len(found) < most:
            _, name = heapq.heappop(ends)
            account = self.accounts.get(name)
            if account is not None and account.due(now_ns):
                found[name] = account
        # They stay due until their roll is appended.
        for name, account in found.items():
            heapq.heappush(ends, (account.window_end_ns, name))
        return list(found.values())

    @on(BudgetSet)
    def _set(self, record: Recorded) -> None:
        event: BudgetSet = record.payload
        account = self.accounts.get(event.account)
        if account is None:
            account = self.accounts[event.account] = opened(event, record.seq)
            self._of.setdefault((event.scope, event.subject), []).append(event.account)
        else:
            account.declare(event)
        self._note_end(account)

    def _note_end(self, account: Account) -> None:
        if account.window_end_ns:
            heapq.heappush(self._ends, (account.window_end_ns, account.declared.account))
        if len(self._ends) > _SPARE_ENDS + 2 * len(self.accounts):
            # Most are of accounts that are gone, or were set again.
            self._ends = [(one.window_end_ns, name) for name, one in self.accounts.items() if one.window_end_ns]
            heapq.heapify(self._ends)

    @on(BudgetRemoved)
    def _removed(self, record: Recorded) -> None:
        declared = self.accounts.pop(record.payload.account).declared
        names = self._of[declared.scope, declared.subject]
        names.remove(declared.account)
        if not names:
            del self._of[declared.scope, declared.subject]

    @on(BudgetRolled)
    def _rolled(self, record: Recorded) -> None:
        event: BudgetRolled = record.payload
        account = self.accounts[event.account]
        account.roll(event)
        self._note_end(account)

    @on(BudgetReserved)
    def _reserved(self, record: Recorded) -> None:
        event: BudgetReserved = record.payload
        hold = self.holds.get(event.task_id)
        if hold is None:
            hold = self.holds[event.task_id] = Hold(
                accounts=[(name, self.accounts[name].opened_seq) for name in event.accounts],
                amount=NOTHING,
                prompt_tokens=event.prompt_tokens,
                prices=event.prices,
            )
            for account in self.open_of(hold):
                account.holders += 1
        more = minus(event.hold, hold.amount)
        for account in self.open_of(hold):
            account.held = plus(account.held, more)
        hold.amount = event.hold

    @on(TaskEnded)
    def _ended(self, record: Recorded) -> None:
        event: TaskEnded = record.payload
        hold = self.holds.pop(event.task_id, None)
        if hold is None:
            return
        for account in self.open_of(hold):
            account.held = minus(account.held, hold.amount)
            account.holders -= 1
            if event.charge is not None:
                account.spent = plus(account.spent, event.charge)

    def dump(self) -> Any:
        """Accounts in the order of their ids, holds in the order of their tasks'."""
        return {
            "accounts": _plain(self.accounts[name] for name in sorted(self.accounts)),
            "holds": {task_id: msgspec.to_builtins(self.holds[task_id]) for task_id in sorted(self.holds)},
        }

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.__init__()  # type: ignore[misc]
        for account in sorted(msgspec.convert(data["accounts"], list[Account]), key=lambda one: one.opened_seq):
            declared = account.declared
            self.accounts[declared.account] = account
            self._of.setdefault((declared.scope, declared.subject), []).append(declared.account)
            self._note_end(account)
        self.holds = msgspec.convert(data["holds"], dict[str, Hold])


def opened(event: BudgetSet, seq: int) -> Account:
    """The account that an event opens."""
    return Account(
        declared=event, window_start_ns=event.window_start_ns, window_end_ns=event.window_end_ns, opened_seq=seq
    )


def _plain(accounts: Iterable[Account]) -> Sequence[Any]:
    return [msgspec.to_builtins(account) for account in accounts]
