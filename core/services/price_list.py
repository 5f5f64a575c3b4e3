"""What models cost, and what a task came to (BUD-1)."""

from __future__ import annotations

from collections.abc import Mapping

from ..amounts import NOTHING, least, pico
from ..events.budget import PriceRecord
from ..projections.head import Head
from ..projections.tasks import TaskState
from ..settings import PriceSettings
from ..types import Amount

#: tokens, or microseconds, that a price is given for
_PER = 1_000_000


class PriceList:
    """The prices in force, by the name of a model."""

    def __init__(self, prices: Mapping[str, PriceSettings]) -> None:
        self._prices = {model: _record(one) for model, one in prices.items()}
        self._others = self._prices.get("*", PriceRecord())

    def of(self, *names: str) -> PriceRecord:
        """The prices of a model by the first of its names that has some."""
        return next((self._prices[name] for name in names if name in self._prices), self._others)


def _record(prices: PriceSettings) -> PriceRecord:
    return PriceRecord(
        input_pico=pico(prices.input) // _PER,
        cached_pico=pico(prices.cached or prices.input) // _PER,
        output_pico=pico(prices.output) // _PER,
        decode_us_pico=pico(prices.second) // _PER,
    )


def used(prices: PriceRecord, prompt_tokens: int, tokens_out: int, decode_us: int, cached_tokens: int = 0) -> Amount:
    """What so much comes to."""
    cached = min(cached_tokens, prompt_tokens)
    return Amount(
        tokens=prompt_tokens + tokens_out,
        decode_us=decode_us,
        cost_pico=(prompt_tokens - cached) * prices.input_pico
        + cached * prices.cached_pico
        + tokens_out * prices.output_pico
        + decode_us * prices.decode_us_pico,
    )


def charge_of(
    head: Head, state: TaskState, prompt_tokens: int, cached_tokens: int, hold: Amount | None
) -> Amount | None:
    """What a task is charged at its end; ``None``: it is counted nowhere.

    Its prompt once an engine took it, and what the journal holds of its answer, at the prices of its first reservation; at
    most what is reserved. Where an engine never said how long the prompt was, its part of the reservation counts.

    :param hold: what is reserved by the end, if that is more than head knows of.
    """
    known = head.budgets.holds.get(state.task_id)
    if known is None:
        return None
    if state.started is None:
        return NOTHING
    came_to = used(known.prices, prompt_tokens or known.prompt_tokens, state.tokens_out, state.decode_us, cached_tokens)
    return least(came_to, known.amount if hold is None else hold)
