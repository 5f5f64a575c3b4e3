"""How long answers get: buckets, and the curve that counts give."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.lengths import LAST, UNIT, LengthCurve, bucket_of, edge_of, shifted_prior


@given(st.integers(0, 2_000_000))
def test_a_number_lies_within_its_bucket(number: int) -> None:
    bucket = bucket_of(number)
    assert edge_of(bucket) <= number
    assert number < edge_of(bucket + 1) or bucket == LAST


def test_buckets_grow_without_gaps_and_keep_their_share() -> None:
    edges = [edge_of(b) for b in range(LAST + 2)]
    assert edges == sorted(set(edges))
    assert all((high - low) / low <= 0.25 for low, high in itertools.pairwise(edges[8:]))


def curve_of(stops: list[int], cuts: list[int] | None = None) -> LengthCurve:
    def counted(numbers: list[int]) -> dict[int, int]:
        counts: dict[int, int] = {}
        for number in numbers:
            counts[bucket_of(number)] = counts.get(bucket_of(number), 0) + UNIT
        return counts

    return LengthCurve([(counted(stops), counted(cuts or []), 0)])


def lognormal(n: int, seed: int = 1) -> list[int]:
    chance = random.Random(seed)
    return [max(1, round(chance.lognormvariate(5, 0.8))) for _ in range(n)]


def test_quantiles_and_moments_are_those_of_the_lengths_seen() -> None:
    lengths = sorted(lognormal(20_000))
    curve = curve_of(lengths)
    for permille in (100, 500, 900):
        assert curve.quantile(permille) == pytest.approx(lengths[permille * 20], rel=0.06)
    mean, square = curve.moments()
    assert mean == pytest.approx(sum(lengths) / 20_000, rel=0.03)
    assert square == pytest.approx(sum(n * n for n in lengths) / 20_000, rel=0.1)


def test_answers_that_were_cut_do_not_make_answers_look_short() -> None:
    lengths = lognormal(20_000)
    cap = 150
    curve = curve_of(
        [n for n in lengths[:10_000] if n < cap] + lengths[10_000:], [cap for n in lengths[:10_000] if n >= cap]
    )
    assert curve.quantile(900) == pytest.approx(sorted(lengths)[18_000], rel=0.08)
    naive = curve_of([min(n, cap) for n in lengths[:10_000]] + lengths[10_000:])
    assert naive.quantile(750) < 0.8 * curve.quantile(750)


def test_what_is_left_of_an_answer_depends_on_how_long_it_is_already() -> None:
    lengths = lognormal(20_000)
    curve = curve_of(lengths)
    longer = sorted(n - 400 for n in lengths if n > 400)
    assert curve.ends_within(longer[len(longer) // 2], after=400) == pytest.approx(0.5, abs=0.04)
    assert curve.ends_within(400, after=400) < curve.ends_within(400, after=0)


def test_the_cap_ends_every_answer() -> None:
    curve = curve_of(lognormal(1000))
    assert curve.ends_within(6, after=44, cap=50) == 1.0
    assert curve.ends_within(5, after=44, cap=50) < 1.0
    mean, square = curve.moments(50)
    assert mean <= 50
    assert square <= 2500


def test_others_answers_count_little_beside_many_own_ones() -> None:
    own = {bucket_of(100): 500 * UNIT}
    others = {bucket_of(4000): 500 * UNIT}
    assert LengthCurve([(own, {}, 0), (others, {}, 12)]).quantile(500) < 130
    assert LengthCurve([({}, {}, 0), (others, {}, 12)]).quantile(500) > 3000


def test_a_callers_expectation_is_the_first_guess() -> None:
    short, long = (LengthCurve([(shifted_prior(hint), {}, 0)]) for hint in (16, 2048))
    assert short.quantile(500) < 40
    assert 1000 < long.quantile(500) < 4000


@given(
    st.lists(st.integers(0, 100_000), max_size=30),
    st.lists(st.integers(0, 100_000), max_size=30),
    st.integers(0, 200_000),
    st.integers(0, 200_000),
)
def test_a_curve_is_a_distribution(stops: list[int], cuts: list[int], after: int, more: int) -> None:
    curve = curve_of(stops, cuts)
    assert 0.0 <= curve.ends_within(more, after=after) <= 1.0
    assert curve.ends_within(more, after=after) <= curve.ends_within(more + 10, after=after) + 1e-9
    assert curve.quantile(100) <= curve.quantile(500) <= curve.quantile(900)
    mean, square = curve.moments(after)
    assert mean >= 1
    assert square >= 1
