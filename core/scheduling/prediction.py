"""When a task will start: the distribution of its wait, from what runs, what is ahead and how fast it goes (ADM-5).

Pure: a :class:`Situation` in, microseconds out. A waiting task starts when slots have opened once more often than
tasks are ahead of it. Each slot opens first when its present task ends, whose answer's remaining length is known as a
distribution given how long it is already; behind that, at the rate at which tasks like those ahead take turns. Mean
and variance of the number of openings by a time give the times at which it passes the number that is needed with 10,
50 and 90 % (a normal approximation in the count, so that short waits and long-running neighbours skew the times as
they should). The cost is that of the leases and a fixed grid of times, whatever the length of the queue (ADM-3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Protocol

import msgspec

#: of the normal distribution, for 10 and 90 %
_Z: Final = 1.2816
#: times looked at, as multiples of what the work would take if it flowed evenly
_GRID: Final = tuple(1.6**step / 100 for step in range(15))
#: running tasks per pool that are looked at one by one; of more, every so manieth stands for its neighbours
_LOOKED_AT: Final = 16
#: chance from which on something counts as certain
_SURE: Final = 0.998
#: relative error of measured rates that no number of observations takes away
_DRIFT: Final = 0.06
#: and what it is taken for at most, however little was seen
_MOST_DOUBT: Final = 0.45


class Curve(Protocol):
    """How long answers get; see :class:`~llama_orch.core.lengths.LengthCurve`."""

    @property
    def seen(self) -> int:
        """Observations behind it."""
        ...

    def ends_within(self, more: float, *, after: int = 0, cap: int = 0) -> float:
        """Chance that an answer of ``after`` tokens has at most ``more`` further ones."""
        ...


class Running(msgspec.Struct, gc=False):
    """A task on a slot."""

    curve: Curve
    tokens: int
    #: where its answer is cut, 0 = nowhere
    cap: int
    #: before its next token: what is left of reading its prompt, microseconds
    delay_us: float = 0.0


class PoolLoad(msgspec.Struct, gc=False):
    """One pool that serves the group, or will."""

    free: int
    running: list[Running]
    #: of one stream when all slots are taken
    token_us: float
    #: of each task, beside its tokens: taking it over, reading its prompt
    overhead_us: float
    #: until it takes tasks at all: 10, 50 and 90 %
    opens_us: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Situation(msgspec.Struct, gc=False):
    """All that a predicted start depends on."""

    pools: Sequence[PoolLoad]
    ahead: int
    #: tokens of those ahead: mean and mean square per task, and how many observations stand behind them
    mean_tokens: float
    square_tokens: float
    seen: int
    #: from a free slot to the engine's first sign of life, and what 80 % of such times are off by
    accept_us: float
    accept_off_us: float
    #: chance per microsecond that one of those ahead leaves
    leaving: float = 0.0
    #: others are served before it, now and later: how often its own lane had a turn (microseconds between two, and
    #: what they are off by), and how many in that lane are ahead of it
    turn_us: float = 0.0
    turn_off_us: float = 0.0
    lane_ahead: int = 0


def start_us(situation: Situation) -> tuple[float, float, float]:
    """Microseconds until the start that are not passed with 10, 50 and 90 %."""
    opens = min((p.opens_us for p in situation.pools), key=lambda three: three[1], default=(0.0, 0.0, 0.0))
    soonest = opens[1]
    off = situation.accept_off_us
    middle = soonest + situation.accept_us
    if not situation.pools or sum(p.free for p in situation.pools if p.opens_us == opens) > situation.ahead:
        return _around(middle, (soonest - opens[0], off), (opens[2] - soonest, off))
    low, half, high = _turns_us(situation, soonest)
    if situation.turn_us:
        turn = (situation.lane_ahead + 0.5) * situation.turn_us
        spread = _Z * math.sqrt(situation.lane_ahead + 0.5) * situation.turn_off_us
        low, half, high = max(low, turn - spread), max(half, turn), max(high, turn + spread)
    return _around(middle + half, (soonest - opens[0], off, half - low), (opens[2] - soonest, off, high - half))


def _around(middle: float, below: Sequence[float], above: Sequence[float]) -> tuple[float, float, float]:
    """The middle, and an interval whose two sides are each made of independent ones."""
    return max(0.0, middle - math.hypot(*below)), middle, middle + math.hypot(*above)


def _turns_us(situation: Situation, soonest: float) -> tuple[float, float, float]:
    """The same for the wait until a slot opens, counted from when the first pool takes tasks."""
    pools = situation.pools
    ahead = situation.ahead
    spread = max(0.0, situation.square_tokens - situation.mean_tokens**2)
    takes = [situation.mean_tokens * p.token_us + p.overhead_us for p in pools]
    unevenness = [spread * p.token_us**2 / took**2 for p, took in zip(pools, takes, strict=True)]
    slots = [p.free + len(p.running) for p in pools]
    pace = sum(count / took for count, took in zip(slots, takes, strict=True))
    if pace <= 0.0:
        return 0.0, 0.0, 0.0
    doubt = min(_MOST_DOUBT**2, spread / max(1.0, situation.mean_tokens**2) / (situation.seen + 1) + _DRIFT**2)
    even = (ahead + 1) / pace
    grid = [even * multiple for multiple in _GRID]
    means, variances = [0.0] * len(grid), [0.0] * len(grid)
    for pool, took, uneven, count in zip(pools, takes, unevenness, slots, strict=True):
        idle_us = before = before_us = 0.0
        each = -(-len(pool.running) // _LOOKED_AT)
        looked_at = pool.running[::each] if each > 1 else pool.running
        stands_for = len(pool.running) / len(looked_at) if looked_at else 1.0
        over = 0
        for at, now_us in enumerate(grid):
            opened = settled = 0.0
            if now_us >= pool.opens_us[1] - soonest:
                opened += pool.free
            left = []
            for task in looked_at:
                more = (now_us - task.delay_us) / pool.token_us
                done = task.curve.ends_within(more, after=task.tokens, cap=task.cap) if more > 0 else 0.0
                if done > _SURE:
                    over += 1
                    continue
                left.append(task)
                opened += done * stands_for
                settled += done * (1 - done) * stands_for
            looked_at = left
            opened += over * stands_for
            idle_us += (opened + before) / 2 * (now_us - before_us)
            before, before_us = opened, now_us
            turns = idle_us / took
            # Uneven work renews sooner at first than at its long-run rate.
            round_ = turns / count if count else 0.0
            turns += count * (uneven - 1) / 2 * round_ / (1 + round_)
            means[at] += opened + max(0.0, turns)
            variances[at] += settled + uneven * idle_us / took
    for at, now_us in enumerate(grid):
        turned = means[at]
        variances[at] += turned * turned * doubt
        if situation.leaving and ahead:
            means[at] += ahead * -math.expm1(-situation.leaving * now_us)
    needed = ahead + 0.5
    low, half, high = (
        _first_passing(grid, [m + z * math.sqrt(v) for m, v in zip(means, variances, strict=True)], needed)
        for z in (_Z, 0.0, -_Z)
    )
    return min(low, half), half, max(half, high)


def _first_passing(times: Sequence[float], values: Sequence[float], needed: float) -> float:
    """When the values first reach what is needed, between the times in proportion; behind the last one, in its pace."""
    if values[0] >= needed:
        return times[0] * needed / max(values[0], needed)
    for (time, value), (later, more) in pairwise(zip(times, values, strict=True)):
        if more >= needed:
            return time + (later - time) * (needed - value) / (more - value)
    (time, value), (later, more) = (times[-4], values[-4]), (times[-1], values[-1])
    slope = (more - value) / (later - time)
    return later + min((needed - more) / slope, 9 * later) if slope > 0 else 10 * later


def ends_within(
    start: Sequence[float], token_us: float, overhead_us: float, curve: Curve, cap: int, us: float
) -> float:
    """Chance that a task ends within ``us``, given the quantiles of its start and how long its answer may get."""
    low, half, high = start
    # Each third or so of the starts is stood for by its own middle.
    points = ((low, 0.2), ((low + half) / 2, 0.2), (half, 0.2), ((half + high) / 2, 0.2), (high, 0.2))
    return sum(share * curve.ends_within((us - at - overhead_us) / token_us, cap=cap) for at, share in points)
