from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.check import queue_bars
from benchmarks.queue import OPERATIONS, measure, missed, report


def run(size: int, p99: float, **others: float) -> dict[str, Any]:
    """One process's figures: every operation alike, but for those named."""
    times = {}
    for name in OPERATIONS:
        tail = others.get(name, p99)
        times[name] = {f"{kind}_{q}_us": tail for kind in ("cpu", "wall") for q in ("p50", "p99")}
    return {"size": size, "times": times, "rss_bytes_per_task": 2_000.0, "fill_s": 1.0}


def test_every_operation_is_measured_on_a_queue_that_keeps_its_size(tmp_path):
    found = asyncio.run(measure(tmp_path, size=80, count=100, prompt_bytes=512))
    assert list(found["times"]) == OPERATIONS
    for times in found["times"].values():
        assert 0 < times["cpu_p50_us"] <= times["cpu_p99_us"]
        assert 0 < times["wall_p50_us"] <= times["wall_p99_us"]


def test_an_operation_whose_tail_grows_beyond_the_bar_is_named():
    runs = [run(1_000, 100.0), run(100_000, 149.0, cancel=151.0)]
    assert missed(runs, 1_000, 100_000) == ["cancel"]
    assert "Beyond 1.5 times: cancel." in report(runs, 1_000, 100_000)
    assert [bar.held for bar in queue_bars(runs, 1_000, 100_000)] == [True, True, False, True]


def test_the_middle_round_counts():
    runs = [run(1_000, 100.0), run(100_000, 120.0), run(100_000, 900.0), run(100_000, 110.0)]
    assert missed(runs, 1_000, 100_000) == []
    assert "All tails are within 1.5 times." in report(runs, 1_000, 100_000)
