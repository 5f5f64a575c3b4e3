"""Intervals hold what they promise on traces that nothing was tuned on (ADM-5); simulated, so the same everywhere."""

from __future__ import annotations

import pytest
from benchmarks.estimates import ENOUGH, Row, rows_of, run_committed, run_queue
from benchmarks.tuning import run as run_tuned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def judged(rows: list[Row], bands: set[str]) -> None:
    """Every band of so many starts: 75 to 85 % inside, and less pinball loss than a moving average of past waits."""
    found = {row.band: row for row in rows if row.band != "others"}
    assert bands <= set(found)
    for row in found.values():
        assert row.score.n >= ENOUGH
        said = f"{row.band}: {row.score}"
        assert 0.75 <= row.score.covered / row.score.n <= 0.85, said
        assert row.score.pinball_us < row.score.average_pinball_us, said


@pytest.mark.parametrize(
    "name, starts, bands",
    [
        ("poisson", 8_000, {"free", "next", "queue", "deep"}),
        ("heavy tails", 8_000, {"free", "next", "queue"}),
        ("closed loops", 8_000, {"queue"}),
        ("shifts", 8_000, {"free", "queue", "deep", "flood"}),
    ],
)
def test_intervals_hold_on_queues_of_other_seeds_and_kinds(name: str, starts: int, bands: set[str]) -> None:
    judged(rows_of(name, run_queue(name, 51, starts)), bands)


def test_intervals_hold_where_models_are_loaded_and_swapped() -> None:
    judged(rows_of("committed", run_committed()), {"free", "swap"})


def test_the_same_trace_gives_the_same_scores() -> None:
    first, second = (run_queue("bursts", 77, 600).digest() for _ in range(2))
    assert first == second


def test_tuned_slots_serve_more_tasks_as_aimed_at_than_any_fixed_number_of_them() -> None:
    tuned = run_tuned(0, rounds=1)
    fixed = [run_tuned(slots, rounds=1) for slots in (6, 8, 10, 12)]
    assert tuned.changes > 2
    assert tuned.share > max(one.share for one in fixed) + 0.03
