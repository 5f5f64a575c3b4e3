"""What is left of the budgets, in the headers of answers to submissions (BUD-2)."""

from __future__ import annotations

from typing import Final

from ..core.amounts import decimal
from ..core.services.budgets import Remaining
from ..core.services.caller import Caller
from ..core.services.container import Services

TOKENS: Final = "X-Budget-Tokens-Remaining"
TIME: Final = "X-Budget-Time-Remaining-Ms"
COST: Final = "X-Budget-Cost-Remaining"

#: for the description of routes
BUDGET_HELP: Final = {
    TOKENS: "Tokens that the caller's budgets still allow, where one bounds them.",
    TIME: "Milliseconds of decoding that they still allow, where one bounds it.",
    COST: "Money that they still allow, as a decimal, where one bounds it.",
}


def budget_headers(services: Services, caller: Caller, session_id: str | None = None) -> dict[str, str]:
    """What the caller's next task, in this session, may still take: what is neither spent nor reserved.

    Empty where no budget bounds it.
    """
    return _headers(services.budgets.remaining(caller.owner, session_id or ""))


def _headers(remaining: Remaining | None) -> dict[str, str]:
    if remaining is None:
        return {}
    found: dict[str, str] = {}
    if remaining.tokens is not None:
        found[TOKENS] = str(remaining.tokens)
    if remaining.decode_us is not None:
        found[TIME] = str(remaining.decode_us // 1000)
    if remaining.cost_pico is not None:
        found[COST] = decimal(remaining.cost_pico)
    return found
