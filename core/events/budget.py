"""Budgets: what may be spent, what is promised to running tasks, when a window begins anew (BUD-1).

What is spent stands in ``task.ended``: its charge is committed, and what was reserved beyond it is free again.
"""

from __future__ import annotations

import msgspec

from ..registry import event
from ..types import Amount


class PriceRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Prices in whole 10^-12 of the currency."""

    #: of a token of the prompt
    input_pico: int = 0
    #: of a token of the prompt that the engine had in its cache
    cached_pico: int = 0
    #: of a token of the answer
    output_pico: int = 0
    #: of a microsecond of decoding
    decode_us_pico: int = 0


@event("budget.set", stream="budget", key="account", durable=True)
class BudgetSet:
    """An account was opened, or its caps were changed; what was spent in its window stays."""

    #: ``<scope>/<subject>/<window>``
    account: str
    #: "key" (the owner of tasks) | "session"
    scope: str
    subject: str
    #: "none" | "day" | "month"
    window: str
    #: name of the time zone that days and months are counted in
    timezone: str = "UTC"
    #: caps; -1 = counted, but not bounded
    tokens: int = -1
    decode_us: int = -1
    cost_pico: int = -1
    #: Unix ns; the end is 0 when the window never ends
    window_start_ns: int = 0
    window_end_ns: int = 0
    #: it stands for a default of the configuration
    by_default: bool = False


@event("budget.removed", stream="budget", key="account", durable=True)
class BudgetRemoved:
    """The account is gone; tasks that run are not counted on it any more."""

    account: str


@event("budget.rolled", stream="budget", key="account")
class BudgetRolled:
    """The account's window ended and the next one began; what is reserved stays reserved."""

    account: str
    window_start_ns: int
    window_end_ns: int
    #: in the window that ended
    spent: Amount


@event("budget.reserved", stream="task", key="task_id")
class BudgetReserved:
    """So much is promised to a task by every account that it is counted on."""

    task_id: str
    #: in all, this reservation included
    hold: Amount
    #: all that follows is written with the first reservation of a task and holds until its end
    accounts: list[str] = []
    #: part of the tokens that is meant for the prompt
    prompt_tokens: int = 0
    prices: PriceRecord = PriceRecord()
