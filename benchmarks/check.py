"""The bars of ADM-3, PERF-1, PERF-2, PERF-5 and PERF-6, held against one run's results.

Costs and rates are compared with the peers of the same run, because a shared machine makes absolute
figures move by tens of percent. Times that a person waits for are absolute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import fastest_router, figure, table
from .results import EdgeRun, LoadRun, Results
from .targets import METERED_NAME, METERED_TASKS_NAME, TASKS_NAME

if TYPE_CHECKING:
    from .restart import Built, Start

OURS = "llama-orch"

#: PERF-1: CPU per token, as a multiple of the faster Rust router's.
CPU_RATIOS = {"ii": 2.0, "iib": 2.0, "iii": 1.3, "iv": 1.3}

#: What a chat may cost beside the native route, both in the same run.
CHAT_RATIO = 1.05

#: PERF-2: what is added to the median frame, in ms, at one stream, at 64 and at 256.
FRAME_P50_MS = {"ib": 0.5, "ii": 4.0, "iii": 4.0}
FRAME_P99_MS = 15.0

#: PERF-2: the first token may wait for one fsync of that disk, and for this.
FIRST_TOKEN_BEYOND_FSYNC_MS = 2.0

#: PERF-2: rates, and the share of the faster router's that counts as the same on a slower machine:
#: 250,000 tok/s beside the 294,000 and 15,000 req/s beside the 17,000 that the routers reached where the bars were set.
TOKEN_RATE, TOKEN_RATE_SHARE = 250_000, 0.85
REQUEST_RATE, REQUEST_RATE_SHARE = 15_000, 0.88

#: PERF-6.
ABORT_MS = 50.0
STALLED_MB = 10.0


@dataclass(frozen=True)
class Bar:
    """One bar and how it was met.

    Args:
        requirement: The requirement's id.
        what: What is held, in words.
        measured: The figure; None = it was not measured, which misses the bar.
        limit: What it may be at most, or with `at_least` what it must reach.
    """

    requirement: str
    what: str
    measured: float | None
    limit: float
    unit: str
    at_least: bool = False

    @property
    def held(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def cells(self) -> list[str]:
        sign = "≥" if self.at_least else "≤"
        shown = "not measured" if self.measured is None else f"{figure(self.measured)} {self.unit}"
        verdict = "held" if self.held else "MISSED"
        return [self.requirement, self.what, shown, f"{sign} {figure(self.limit)} {self.unit}", verdict]


def cpu_bars(results: Results) -> list[Bar]:
    """PERF-1."""
    bars = []
    for load, limit in CPU_RATIOS.items():
        ours = results.median(OURS, load, lambda row: row.cpu_us_per_token)
        router = fastest_router(results, load, lambda row: row.cpu_us_per_token)
        ratio = ours / router if ours is not None and router else None
        bars.append(Bar("PERF-1", f"CPU per token at {load}, beside the faster router", ratio, limit, "×"))
    return bars


def chat_bars(results: Results) -> list[Bar]:
    """What a chat costs beside the native route, without and with keys, budgets and limits (where those were measured)."""
    bars = []
    for chat, tasks in ((OURS, TASKS_NAME), (METERED_NAME, METERED_TASKS_NAME)):
        if chat != OURS and not any(row.target == chat for row in results.loads):
            continue
        for load in CPU_RATIOS:
            cost, native = (results.median(name, load, lambda row: row.cpu_us_per_token) for name in (chat, tasks))
            ratio = cost / native if cost is not None and native else None
            bars.append(Bar("PERF-1", f"CPU per token at {load}, {chat} beside {tasks}", ratio, CHAT_RATIO, "×"))
    return bars


def _in_ms(value_us: float | None) -> float | None:
    return None if value_us is None else value_us / 1000


def latency_bars(results: Results) -> list[Bar]:
    """PERF-2, latency: with the disk as it is, and with each fsync delayed."""
    bars = []
    delays = {row.target: row.fsync_delay_ms for row in results.loads if row.target == OURS or row.fsync_delay_ms}
    fsync_us = results.fsync_p50_us()
    for target, delay_ms in (delays or {OURS: 0}).items():
        where = f"fsync +{delay_ms} ms" if delay_ms else "the disk as it is"
        for load, limit in FRAME_P50_MS.items():
            p50 = _in_ms(results.added(target, load, lambda row: row.frame_us.p50))
            p99 = _in_ms(results.added(target, load, lambda row: row.frame_us.p99))
            bars.append(Bar("PERF-2", f"added per frame at {load}, median, {where}", p50, limit, "ms"))
            bars.append(Bar("PERF-2", f"added per frame at {load}, p99, {where}", p99, FRAME_P99_MS, "ms"))
        first = _in_ms(results.added(target, "ib", lambda row: row.first_token_us.p50))
        may = (fsync_us or 0) / 1000 + delay_ms + FIRST_TOKEN_BEYOND_FSYNC_MS
        bars.append(Bar("PERF-2", f"added to the first token at ib, median, {where}", first, may, "ms"))
    return bars


def rate_bars(results: Results) -> list[Bar]:
    """PERF-2, rates: the absolute figure, or the same share of the faster router's where the machine is slower."""
    tokens, requests = _rate(results, "iv", lambda row: row.tok_s), _rate(results, "v", lambda row: row.req_s)
    token_limit = _rate_limit(results, "iv", lambda row: row.tok_s, TOKEN_RATE, TOKEN_RATE_SHARE)
    request_limit = _rate_limit(results, "v", lambda row: row.req_s, REQUEST_RATE, REQUEST_RATE_SHARE)
    return [
        Bar("PERF-2", "journaled tokens per second at iv", tokens, token_limit, "tok/s", at_least=True),
        Bar("PERF-2", "short requests per second at v", requests, request_limit, "req/s", at_least=True),
    ]


def _rate(results: Results, load: str, rate: Callable[[LoadRun], float]) -> float | None:
    return results.median(OURS, load, rate)


def _rate_limit(results: Results, load: str, rate: Callable[[LoadRun], float], absolute: float, share: float) -> float:
    slowest_cost = fastest_router(results, load, lambda row: -rate(row))
    return absolute if slowest_cost is None else min(absolute, -slowest_cost * share)


def edge_bars(results: Results) -> list[Bar]:
    """PERF-6: readers that leave, one that stalls, tokens that get lost."""
    edge = next((row for row in results.edges if row.target == OURS), None)
    flowing = _slowest(edge, lambda row: row.abort_flowing_ms)
    silent = _slowest(edge, lambda row: row.abort_silent_ms)
    stalled = edge.stalled_growth_mb if edge else None
    ours = [row for row in results.loads if row.target.startswith(OURS)]
    misplaced = float(sum(row.misplaced for row in ours)) if ours else None
    broken = float(sum(row.failed + row.unfinished for row in ours)) if ours else None
    return [
        Bar("PERF-6", "a reader's leaving reaches the engine, tokens flowing", flowing, ABORT_MS, "ms"),
        Bar("PERF-6", "a reader's leaving reaches the engine, engine silent", silent, ABORT_MS, "ms"),
        Bar("PERF-6", "memory that a stalled reader costs", stalled, STALLED_MB, "MB"),
        Bar("PERF-6", "tokens lost or out of order, in all loads", misplaced, 0, "tokens"),
        Bar("PERF-6", "requests failed or unfinished, in all loads", broken, 0, "requests"),
    ]


def _slowest(edge: EdgeRun | None, times: Callable[[EdgeRun], list[float | None]]) -> float | None:
    """The slowest time in ms; infinite when one was not noticed at all."""
    if edge is None or not times(edge):
        return None
    return max(float("inf") if value is None else value for value in times(edge))


def all_bars(results: Results) -> list[Bar]:
    """Every bar, in the order of the requirements."""
    return [*cpu_bars(results), *chat_bars(results), *latency_bars(results), *rate_bars(results), *edge_bars(results)]


def queue_bars(runs: Sequence[dict[str, Any]], small: int, large: int) -> list[Bar]:
    """ADM-3: what a long queue costs, beside a short one."""
    from .queue import BAR, OPERATIONS, middle

    bars = []
    for name in OPERATIONS:
        ratio = middle(runs, large, name, "cpu_p99_us") / middle(runs, small, name, "cpu_p99_us")
        bars.append(Bar("ADM-3", f"{name} at {large:,} queued tasks, p99, beside {small:,}", ratio, BAR, "×"))
    return bars


def restart_bars(built: Built, starts: Sequence[Start]) -> list[Bar]:
    """PERF-5: from exec to serving."""
    from .restart import BAR_S, middle

    what = f"from exec to serving, {built.events:,} events, {built.tail_events:,} of them behind the snapshot"
    return [Bar("PERF-5", what, middle(starts, "snapshot", "own_s"), BAR_S, "s")]


def verdict(results: Results, more: Sequence[Bar] = ()) -> tuple[str, int]:
    """The table of bars with a closing line, and the exit status: 1 when one is missed.

    Args:
        more: Bars of benchmarks that stand for themselves.
    """
    bars = [*all_bars(results), *more]
    missed = [bar for bar in bars if not bar.held]
    lines = ["## Bars", table(["", "what", "measured", "bar", ""], [bar.cells() for bar in bars])]
    if missed:
        lines.append("Missed:\n" + "\n".join(f"- {' · '.join(bar.cells()[:4])}" for bar in missed))
    else:
        lines.append(f"All {len(bars)} bars are held.")
    return "\n\n".join(lines) + "\n", 1 if missed else 0


def _measured_queue(rounds: int) -> tuple[list[dict[str, Any]], int, int]:
    from .queue import arguments, measure_all

    options = arguments().parse_args(["--rounds", str(rounds)])
    return measure_all(options), options.small, options.large


def _measured_restart() -> tuple[Built, list[Start]]:
    from .restart import arguments, measure_all

    return measure_all(arguments().parse_args(["--snapshot-only"]))


def main(words: Sequence[str] | None = None) -> int:
    """Measures (or reads FILE), prints the report and the bars, and fails naming each missed bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=main.__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="hold stored results instead of measuring")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to measure (default 3)")
    options = parser.parse_args(words)
    path: Path | None = options.file
    more: list[Bar] = []
    if path is None:
        from .__main__ import measure_all

        path = measure_all(["--rounds", str(options.rounds)])
        if path is None:
            return 2
        more = [*queue_bars(*_measured_queue(options.rounds)), *restart_bars(*_measured_restart())]
    text, status = verdict(Results.read(path), more)
    print(text, end="")
    return status


if __name__ == "__main__":
    sys.exit(main())
