"""Predictions are corrected by how they came out, and scored beside a moving average."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.projections.calibration import (
    MOST_BANDS,
    ONE,
    Calibration,
    outcome_at,
    pinball_us,
    residual,
)

from .conftest import Fold


def calibration(fold: Fold) -> Calibration:
    return fold.head.of(Calibration)


def outcome(fold: Fold, n: int, wait_ms: int, model: list[int], *, group: str = "m", band: str = "queue") -> bool:
    """One task from its prediction to its start; whether the published interval held it."""
    low, middle, high = calibration(fold).corrected(group, band, model)
    fold.admit(
        f"t{n}",
        group=group,
        load_band=band,
        modelled_start_ms=model,
        predicted_start_ms=middle,
        predicted_start_ms_p10=low,
        predicted_start_ms_p90=high,
    )
    fold.place(f"t{n}")
    fold.later(1)
    fold.start(f"t{n}", queue_time_ms=wait_ms)
    fold.end(f"t{n}")
    return low <= wait_ms <= high


@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)).map(sorted),
)
def test_a_residual_and_its_outcome_belong_together(outcome_ms: int, model: list[int]) -> None:
    place = residual(outcome_ms, model)
    spread = max(model[2] - model[1], model[1] - model[0], model[1] // 16, 1)
    if abs(place) < 64 * ONE:
        assert outcome_at(place, model) == pytest.approx(outcome_ms, abs=2 + spread // ONE)
    assert residual(model[1], model) == 0


def test_the_pinball_loss_is_the_textbooks() -> None:
    # 0.1·(30−10) + 0.5·(30−20) + 0.1·(40−30), in thousandths.
    assert pinball_us(30, [10, 20, 40]) == 100 * 20 + 500 * 10 + 100 * 10
    assert pinball_us(20, [20, 20, 20]) == 0


def test_a_model_that_was_right_is_left_as_it_is(fold: Fold) -> None:
    assert calibration(fold).corrected("m", "queue", [10, 50, 100]) == [10, 50, 100]
    chance = random.Random(1)
    for n in range(600):
        outcome(fold, n, max(0, round(chance.gauss(5000, 1000 / 1.2816))), [4000, 5000, 6000])
    low, middle, high = calibration(fold).corrected("m", "queue", [4000, 5000, 6000])
    assert low == pytest.approx(4000, abs=250)
    assert middle == pytest.approx(5000, abs=100)
    assert high == pytest.approx(6000, abs=250)


@pytest.mark.parametrize("shift, scale", [(0, 4.0), (0, 0.2), (3000, 1.0), (-2000, 2.0)])
def test_a_model_that_is_wrong_is_put_right(fold: Fold, shift: int, scale: float) -> None:
    chance = random.Random(2)
    held = 0
    for n in range(3000):
        wait = max(0, round(chance.gauss(5000 + shift, scale * 1000 / 1.2816)))
        inside = outcome(fold, n, wait, [4000, 5000, 6000])
        held += inside and n >= 1000
    assert 0.77 <= held / 2000 <= 0.83


def test_coverage_holds_while_the_world_drifts(fold: Fold) -> None:
    chance = random.Random(3)
    held = 0
    for n in range(4000):
        scale = 1 + 3 * (n // 500 % 2)
        held += outcome(fold, n, max(0, round(chance.gauss(5000, scale * 800))), [4000, 5000, 6000])
    assert 0.77 <= held / 4000 <= 0.83


def test_what_was_published_is_scored_beside_a_moving_average(fold: Fold) -> None:
    for n, wait_ms in enumerate((100, 300)):
        fold.admit(
            f"t{n}",
            load_band="queue",
            modelled_start_ms=[1, 2, 3],
            predicted_start_ms_p10=80,
            predicted_start_ms=90,
            predicted_start_ms_p90=110,
        )
        fold.place(f"t{n}")
        fold.start(f"t{n}", queue_time_ms=wait_ms)
        fold.end(f"t{n}")
    score = calibration(fold).bands["m", "queue"].score
    assert (score.n, score.covered, score.width_ms) == (2, 1, 60)
    assert score.pinball_us == pinball_us(100, [80, 90, 110]) + pinball_us(300, [80, 90, 110])
    # Nothing was known before the first; then it is around the first wait.
    assert score.average_width_ms > 0
    assert calibration(fold).bands["", "queue"].score == score


def test_the_moving_averages_interval_learns_to_hold_eighty_in_a_hundred(fold: Fold) -> None:
    chance = random.Random(4)
    for n in range(4000):
        outcome(fold, n, round(chance.lognormvariate(7, 0.7)), [500, 1000, 2000])
    score = calibration(fold).bands["m", "queue"].score
    assert 0.76 <= score.average_covered / score.n <= 0.84


def test_a_group_without_outcomes_is_corrected_by_those_of_others(fold: Fold) -> None:
    chance = random.Random(5)
    for n in range(500):
        outcome(fold, n, max(0, round(chance.gauss(9000, 500))), [4000, 5000, 6000])
    _, middle, _ = calibration(fold).corrected("new", "queue", [4000, 5000, 6000])
    assert middle > 7500
    assert calibration(fold).corrected("new", "free", [1, 2, 3]) == [1, 2, 3]


def test_a_task_that_never_started_teaches_nothing(fold: Fold) -> None:
    fold.admit("t", load_band="queue", modelled_start_ms=[1, 2, 3])
    fold.end("t", outcome="cancelled", finish_reason="cancelled")
    assert calibration(fold).bands == {}
    assert calibration(fold).dump()["pending"] == []


def test_only_the_first_start_counts(fold: Fold) -> None:
    outcome(fold, 1, 10, [1, 2, 3])
    before = calibration(fold).bands["m", "queue"].score.n
    fold.admit("t", load_band="queue", modelled_start_ms=[1, 2, 3])
    fold.place("t")
    fold.start("t", queue_time_ms=5)
    fold.start("t", queue_time_ms=500)
    assert calibration(fold).bands["m", "queue"].score.n == before + 1


def test_bands_that_were_not_used_for_longest_are_forgotten(fold: Fold) -> None:
    for n in range(MOST_BANDS + 10):
        outcome(fold, n, 5, [1, 2, 3], group=f"g{n}")
    assert len(calibration(fold).bands) == MOST_BANDS
    assert ("", "queue") in calibration(fold).bands
    assert ("g0", "queue") not in calibration(fold).bands
