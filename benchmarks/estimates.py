"""How good predicted starts are, per trace and load band, beside a moving average of past waits (ADM-5).

`python -m benchmarks.estimates` prints a table in Markdown for traces that nothing was tuned on; `--tuning` takes those
that it was tuned on, `--only NAME` some of them. The moving average takes an eighth of each wait; its interval is as
many mean absolute deviations wide as made it cover 80 % so far. A row stands for a load band with at least 1,000
starts; what has fewer is in the row "others". All of it is simulated time: the numbers are the same on any machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama_orch.core.projections.calibration import Calibration, Score
from llama_orch.core.projections.head import Head
from llama_orch.simulator.world import World

from .estimate_traces import QUEUES, committed, office, on_reference_rig
from .queueing import Queueing
from .report import table

#: starts of a band from which on it is judged
ENOUGH = 1000
#: share of outcomes inside of the interval that is asked for, thousandths
LEAST, MOST = 750, 850


@dataclass
class Row:
    """One load band of one trace."""

    trace: str
    band: str
    score: Score

    @property
    def good(self) -> bool:
        """Whether it meets the bar."""
        score = self.score
        covered = score.covered * 1000 / score.n
        return LEAST <= covered <= MOST and score.pinball_us < score.average_pinball_us


def run_queue(name: str, seed: int, starts: int) -> Head:
    """Head after a queue's trace."""
    pools, rule = QUEUES[name]
    queueing = Queueing(pools(), seed)
    rule(queueing)
    queueing.run(starts)
    return queueing.head


def run_rig(kind: str, seeds: Sequence[int]) -> Head:
    """Head after a trace on the reference rig."""
    world = World(*on_reference_rig(kind, seeds), name=kind)
    world.run()
    return world.journal.head


def run_committed() -> Head:
    """Head after the committed traces on the reference rig."""
    world = World(*committed(), name="committed")
    world.run()
    return world.journal.head


def run_office(seed: int, hours: int) -> Head:
    """Head after days at the office."""
    world = World(*office(seed, hours), name="office")
    world.run()
    return world.journal.head


def rows_of(trace: str, head: Head) -> list[Row]:
    """Scores of all groups together, by band; bands with few starts as one."""
    rows, others = [], Score()
    for (group, band), known in sorted(head.of(Calibration).bands.items()):
        if group or not known.score.n:
            continue
        if known.score.n >= ENOUGH:
            rows.append(Row(trace, band, known.score))
        else:
            _add(others, known.score)
    return [*rows, Row(trace, "others", others)] if others.n else rows


def _add(to: Score, score: Score) -> None:
    for field in Score.__struct_fields__:
        setattr(to, field, getattr(to, field) + getattr(score, field))


TUNING: dict[str, Callable[[], Head]] = {
    **{f"queue: {name}": (lambda n=name: run_queue(n, 1, 12_000)) for name in QUEUES if name != "shifts"},  # type: ignore[misc]
    **{f"rig: {kind}": (lambda k=kind: run_rig(k, range(7, 11))) for kind in ("poisson", "bursts", "agents")},  # type: ignore[misc]
}
HELD_OUT: dict[str, Callable[[], Head]] = {
    **{f"queue: {name}": (lambda n=name: run_queue(n, 51, 20_000)) for name in QUEUES},  # type: ignore[misc]
    **{f"rig: {kind}": (lambda k=kind: run_rig(k, range(301, 309))) for kind in ("poisson", "bursts", "agents")},  # type: ignore[misc]
    "rig: committed files": run_committed,
    "office": lambda: run_office(401, 6),
}


def _cells(row: Row) -> list[str]:
    n = max(1, row.score.n)
    score = row.score
    return [
        row.trace,
        row.band,
        f"{score.n:,}",
        f"{score.covered / n:.1%}",
        f"{score.width_ms / n / 1000:.2f}",
        f"{score.pinball_us / 3e6 / n:.3f}",
        f"{score.average_covered / n:.1%}",
        f"{score.average_width_ms / n / 1000:.2f}",
        f"{score.average_pinball_us / 3e6 / n:.3f}",
        "" if row.band == "others" else "yes" if row.good else "NO",
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; 1 = a band does not meet the bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimates", description=__doc__)
    parser.add_argument("--tuning", action="store_true", help="the traces that it was tuned on")
    parser.add_argument("--only", default="", metavar="NAME", help="traces whose name holds this")
    options = parser.parse_args(words)
    rows: list[Row] = []
    for name, run in (TUNING if options.tuning else HELD_OUT).items():
        if options.only in name:
            began = time.perf_counter()
            rows += rows_of(name, run())
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    head = ["trace", "load", "starts", "covered", "width s", "pinball s"]
    head += ["average covered", "its width s", "its pinball s", "within the bar"]
    print(table(head, [_cells(row) for row in rows]))
    return int(any(not row.good for row in rows if row.band != "others"))


if __name__ == "__main__":
    sys.exit(main())
