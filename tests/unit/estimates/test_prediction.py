"""The distribution of a start, from what runs, what is ahead and how fast it goes."""

from __future__ import annotations

import heapq
import random
from typing import Any

import msgspec
import pytest

from llama_orch.core.lengths import UNIT, LengthCurve, bucket_of
from llama_orch.core.scheduling.prediction import PoolLoad, Running, Situation, ends_within, start_us

TOKEN_US = 20_000.0


def lengths(seed: int = 1, n: int = 4000) -> list[int]:
    chance = random.Random(seed)
    return [max(1, round(chance.lognormvariate(5, 1.0))) for _ in range(n)]


LENGTHS = lengths()


def curve() -> LengthCurve:
    counts: dict[int, int] = {}
    for number in LENGTHS:
        counts[bucket_of(number)] = counts.get(bucket_of(number), 0) + UNIT
    return LengthCurve([(counts, {}, 0)], len(LENGTHS))


CURVE = curve()


def situation(ahead: int, tokens: list[int], *, free: int = 0, **more: Any) -> Situation:
    pool = PoolLoad(
        free=free,
        running=[Running(curve=CURVE, tokens=n, cap=0) for n in tokens],
        token_us=TOKEN_US,
        overhead_us=0.0,
    )
    mean, square = CURVE.moments()
    return msgspec.structs.replace(
        Situation(
            pools=[pool],
            ahead=ahead,
            mean_tokens=mean,
            square_tokens=square,
            seen=4000,
            accept_us=4000.0,
            accept_off_us=2000.0,
        ),
        **more,
    )


def sampled(ahead: int, tokens: list[int], draws: int = 4000) -> tuple[float, float, float]:
    """The same by trying it out: every running task gets a length beyond what it has said."""
    chance = random.Random(7)
    longer = {n: [length for length in LENGTHS if length > n] for n in set(tokens)}
    starts = []
    for _ in range(draws):
        slots = [(chance.choice(longer[n]) - n) * TOKEN_US for n in tokens]
        heapq.heapify(slots)
        for _ in range(ahead):
            heapq.heapreplace(slots, slots[0] + chance.choice(LENGTHS) * TOKEN_US)
        starts.append(slots[0])
    starts.sort()
    return starts[draws // 10], starts[draws // 2], starts[9 * draws // 10]


@pytest.mark.parametrize(
    "ahead, tokens",
    [
        (0, [50]),
        (0, [10, 100, 400]),
        (2, [30]),
        (3, [10, 50, 200, 600]),
        (12, [10, 50, 200, 600]),
        (60, [10, 50, 200, 600]),
        (40, [100]),
    ],
)
def test_it_is_near_what_trying_it_out_gives(ahead: int, tokens: list[int]) -> None:
    predicted = start_us(situation(ahead, tokens, accept_us=0.0, accept_off_us=0.0))
    tried = sampled(ahead, tokens)
    width = tried[2] - tried[0]
    for one, other in zip(predicted, tried, strict=True):
        assert abs(one - other) < 0.3 * width


def test_a_free_slot_is_taken_as_fast_as_engines_take_over() -> None:
    low, middle, high = start_us(situation(0, [10], free=1))
    assert (low, middle, high) == (2000.0, 4000.0, 6000.0)


def test_more_ahead_is_later_and_more_slots_are_earlier() -> None:
    middles = [start_us(situation(ahead, [100] * 4))[1] for ahead in range(0, 40, 3)]
    assert middles == sorted(middles)
    assert start_us(situation(8, [100] * 8))[1] < start_us(situation(8, [100] * 4))[1]


def test_a_task_that_just_began_frees_its_slot_later_than_one_that_will_end_soon() -> None:
    capped = situation(0, [])
    capped.pools[0].running = [Running(curve=CURVE, tokens=500, cap=510)]
    assert start_us(capped)[2] < start_us(situation(0, [0]))[0] + 300_000


def test_a_pool_that_is_coming_up_is_waited_for() -> None:
    loading = situation(0, [], free=4)
    loading.pools[0].opens_us = (8e6, 10e6, 13e6)
    low, middle, high = start_us(loading)
    assert middle == pytest.approx(10e6, rel=0.01)
    assert low == pytest.approx(8e6, rel=0.02)
    assert high == pytest.approx(13e6, rel=0.02)


def test_those_who_leave_make_it_earlier() -> None:
    patient = start_us(situation(30, [100] * 4))
    impatient = start_us(situation(30, [100] * 4, leaving=1 / 30e6))
    assert impatient[1] < 0.8 * patient[1]


def test_a_lane_that_is_overtaken_waits_for_its_turns() -> None:
    plain = start_us(situation(3, [100] * 4))
    overtaken = start_us(situation(3, [100] * 4, turn_us=30e6, turn_off_us=10e6, lane_ahead=3))
    assert overtaken[1] >= 105e6 > plain[1]
    assert overtaken[0] < overtaken[1] < overtaken[2]


def test_little_evidence_widens_the_interval() -> None:
    low, _, high = start_us(situation(40, [100] * 4))
    wide_low, _, wide_high = start_us(situation(40, [100] * 4, seen=1))
    assert wide_high - wide_low > 1.3 * (high - low)


def test_an_interval_is_finite_and_ordered_whatever_is_ahead() -> None:
    for ahead in (0, 1, 10, 1000, 100_000):
        low, middle, high = start_us(situation(ahead, [0, 5000], seen=0))
        assert 0 <= low <= middle <= high < 1e15


def test_the_chance_to_end_in_time_falls_with_the_start() -> None:
    early, late = (ends_within((at, at, at), TOKEN_US, 0.0, CURVE, 0, 10e6) for at in (0.0, 9e6))
    assert early > 0.85
    assert late < 0.2
    assert ends_within((0.0, 0.0, 0.0), TOKEN_US, 0.0, CURVE, 100, 100 * TOKEN_US) == pytest.approx(1.0)
