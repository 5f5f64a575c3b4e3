"""What a batch may do to budgets: never a reservation beyond a cap, never a charge beyond its reservation (BUD-1).

The events of a batch are counted one after another on copies of what they touch, before any of them is applied.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..amounts import NOTHING, covers, minus, plus
from ..events.budget import BudgetRemoved, BudgetReserved, BudgetRolled, BudgetSet
from ..events.task import TaskEnded
from ..projections.budgets import Account, Budgets, Hold, opened
from ..types import Amount

_QUANTITIES = ("tokens", "decode_us", "cost_pico")


class BudgetRules:
    """Counts one batch through; each method answers why an event is refused, "" = it is not."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        #: as the batch leaves them so far; ``None`` = gone
        self._accounts: dict[str, Account | None] = {}
        self._holds: dict[str, Hold | None] = {}

    def _account(self, name: str) -> Account | None:
        if name not in self._accounts:
            known = self._budgets.accounts.get(name)
            self._accounts[name] = None if known is None else msgspec.structs.replace(known)
        return self._accounts[name]

    def _hold(self, task_id: str) -> Hold | None:
        return self._holds[task_id] if task_id in self._holds else self._budgets.holds.get(task_id)

    def _behind(self, hold: Hold) -> Iterator[Account]:
        for name, opened_seq in hold.accounts:
            account = self._account(name)
            if account is not None and account.opened_seq == opened_seq:
                yield account

    def set(self, event: BudgetSet) -> str:
        """An account is opened or changed."""
        account = self._account(event.account)
        if account is None:
            # No seq yet: nothing of before can be counted on it.
            self._accounts[event.account] = opened(event, -1)
        else:
            account.declare(event)
        return ""

    def removed(self, event: BudgetRemoved) -> str:
        """An account goes."""
        if self._account(event.account) is None:
            return f"there is no account {event.account}"
        self._accounts[event.account] = None
        return ""

    def rolled(self, event: BudgetRolled) -> str:
        """A window begins anew."""
        account = self._account(event.account)
        if account is None:
            return f"there is no account {event.account}"
        if event.spent != account.spent or event.window_start_ns < account.window_end_ns:
            return f"the window of {event.account} is another one"
        account.roll(event)
        return ""

    def reserved(self, event: BudgetReserved, phase: str) -> str:
        """A task holds more."""
        if phase in ("absent", "ended"):
            return f"the task is {phase}"
        hold = self._hold(event.task_id)
        if hold is None:
            unknown = [name for name in event.accounts if self._account(name) is None]
            if unknown or not event.accounts:
                return f"there is no account {', '.join(unknown)}" if unknown else "it names no account"
            opened = [(name, account.opened_seq) for name in event.accounts if (account := self._account(name))]
            hold = Hold(accounts=opened, amount=NOTHING, prompt_tokens=event.prompt_tokens, prices=event.prices)
        if not covers(event.hold, hold.amount):
            return "a reservation never shrinks before its task ends"
        more = minus(event.hold, hold.amount)
        for account in self._behind(hold):
            for name in _QUANTITIES:
                wanted, room = getattr(more, name), account.room(name)
                if wanted and room is not None and wanted > room:
                    return f"{account.declared.account} has room for {room} {name}, not for {wanted}"
        for account in self._behind(hold):
            account.held = plus(account.held, more)
        self._holds[event.task_id] = msgspec.structs.replace(hold, amount=event.hold)
        return ""

    def ended(self, event: TaskEnded) -> str:
        """A task ends: what it is charged was reserved, and the rest is free."""
        hold, charge = self._hold(event.task_id), event.charge
        if hold is None:
            return "" if charge is None else "it is charged, and nothing was reserved for it"
        if charge is None:
            return "something is reserved for it, and it is charged nothing by name"
        if not covers(hold.amount, charge) or not covers(charge, Amount()):
            return f"it is charged {charge}, and {hold.amount} is reserved for it"
        for account in self._behind(hold):
            account.held = minus(account.held, hold.amount)
            account.spent = plus(account.spent, charge)
        self._holds[event.task_id] = None
        return ""
