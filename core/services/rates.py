"""Rates as predictions use them: what was measured, or what is taken for it until then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..projections.estimates import Estimates
from ..projections.measures import Lane, PoolRates
from ..projections.queue import BATCH, INTERACTIVE

#: until something was measured: a token of one stream, taking a task over
TOKEN_US: Final = 50_000
_ACCEPT_US: Final = 5_000
#: 80 % of outcomes lie within so many mean absolute deviations of the mean, were they normal
OFFS: Final = 1.6
#: how long callers who came are expected to come again
_LATELY_NS: Final = 60_000_000_000


def band_of(slots: int, ahead: int, priority: str, *, loading: bool) -> str:
    """How busy a group without a free slot is, for somebody who comes now."""
    if not slots:
        band = "load" if loading else "swap"
    elif ahead < slots:
        band = "next"
    elif ahead < 4 * slots:
        band = "queue"
    else:
        band = "deep" if ahead < 16 * slots else "flood"
    return f"batch-{band}" if priority == BATCH else band


def accept_us(pools: Sequence[PoolRates | None], prompt_tokens: int) -> tuple[float, float]:
    """From a free slot to the engine's first sign of life, over some pools, and what 80 % of such times are off by."""
    lines = [pool.accept_us for pool in pools if pool is not None and pool.accept_us.n]
    if not lines:
        return float(_ACCEPT_US), float(_ACCEPT_US)
    middle = sum(line.at(prompt_tokens) for line in lines) / len(lines)
    return middle, OFFS * sum(line.off.mean for line in lines) / len(lines)


def token_us(pool: PoolRates | None, streams: int) -> float:
    """Microseconds per token of one stream when so many share the engine, as measured nearest to that."""
    if pool is None:
        return float(TOKEN_US)
    if not pool.token_ns:
        return 1e9 / pool.preload_mtok_s if pool.preload_mtok_s else float(TOKEN_US)
    below = max((n for n in pool.token_ns if n <= streams), default=None)
    above = min((n for n in pool.token_ns if n >= streams), default=None)
    if below is None or above is None or below == above:
        return max(1, pool.token_ns[below or above or 0].mean) / 1000
    low, high = pool.token_ns[below].mean, pool.token_ns[above].mean
    return max(1.0, low + (high - low) * (streams - below) / (above - below)) / 1000


def prompt_us(pool: PoolRates | None, tokens: int) -> float:
    """What a task with such a prompt takes of a slot beside its tokens: being taken over, its prompt being read."""
    return float(pool.beside_us.at(tokens)) if pool is not None and pool.beside_us.n else float(_ACCEPT_US)


def others_came(rates: Estimates, group: str, now_ns: int) -> bool:
    """Whether interactive tasks came lately, which overtake batch tasks."""
    lane = rates.lanes.get((group, INTERACTIVE))
    return lane is not None and now_ns - lane.came_ns < _LATELY_NS


def leaving_per_us(lanes: Sequence[Lane]) -> float:
    """Chance per microsecond that a task leaves the queue before it started."""
    left, waited = sum(lane.left for lane in lanes), sum(lane.waited_ms for lane in lanes)
    return left / waited / 1000 if waited else 0.0
