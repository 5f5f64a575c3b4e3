"""`python -m benchmarks`: builds, starts, measures, stores and reports."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import edge, loads, targets
from .native import HERE, BuildError, build
from .processes import StartError
from .report import render
from .results import LoadRun, Results, Row, to_line
from .session import Session, describe_machine

RESULTS = HERE / "results"


def tell(line: str) -> None:
    """Progress goes to stderr, the report alone to stdout."""
    print(line, file=sys.stderr, flush=True)


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures llama-orch side by side with its peers and prints a report in Markdown.",
    )
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--loads", default=",".join(loads.BY_NAME), help="comma-separated: %(default)s")
    parser.add_argument(
        "--targets", default="", help=f"comma-separated, beginnings suffice: {', '.join(targets.NAMES)}"
    )
    parser.add_argument("--quick", action="store_true", help="one short round: shows that everything runs")
    parser.add_argument("--no-edges", action="store_true", help="leave out readers that leave or stall")
    parser.add_argument("--only-edges", action="store_true", help="nothing but readers that leave or stall")
    parser.add_argument("--work", type=Path, help="where journals and logs lie meanwhile: choose the disk to measure")
    parser.add_argument("--out", type=Path, help="results file (default: benchmarks/results/TIME.jsonl)")
    return parser.parse_args(words)


def _progress(row: Row) -> None:
    if isinstance(row, LoadRun):
        cost = row.cpu_us_per_request if row.load == "v" else row.cpu_us_per_token
        faults = f"  FAULTS {row.faults} {row.error}" if row.faults else ""
        tell(
            f"{row.round} {row.load:4}{row.target:28}{row.tok_s:10.0f} tok/s{cost:9.2f} µs{row.rss_mb:7.0f} MB{faults}"
        )


def measure_all(words: Sequence[str] | None = None) -> Path | None:
    """Runs everything that the arguments ask for, prints the report; the file with the results, or None: it failed."""
    options = parse_arguments(words)
    try:
        chosen = loads.select(options.loads)
        names = targets.select(options.targets)
        native = build()
    except (ValueError, BuildError) as error:
        tell(str(error))
        return None
    if options.quick:
        options.rounds, chosen = 1, [load.shortened() for load in chosen]
    path: Path = options.out or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the targets are stopped then, too
    rows: list[Row] = []
    try:
        with Session(native, names, options.work, tell) as session, path.open("w") as out:

            def keep(row: Row) -> None:
                rows.append(row)
                out.write(to_line(row) + "\n")
                out.flush()
                _progress(row)

            keep(describe_machine(options.rounds, options.quick, session.versions))
            for absent in session.absent:
                keep(absent)
            if not options.no_edges:
                for run in edge.measure_all(session, tell):
                    keep(run)
            if not options.only_edges:
                for row in session.rounds(options.rounds, chosen):
                    keep(row)
    except StartError as error:
        tell(str(error))
        return None
    except KeyboardInterrupt:
        tell(f"interrupted; what was measured is in {path}")
    finally:
        signal.signal(signal.SIGTERM, before)
    print(render(Results(rows)), end="")
    tell(f"results: {path}")
    return path


def main() -> int:
    """Entry point of `python -m benchmarks`."""
    return 0 if measure_all() else 2


if __name__ == "__main__":
    sys.exit(main())
