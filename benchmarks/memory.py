"""The memory model beside what real llama.cpp takes on the CPU (PLC-5); `python -m benchmarks.memory`.

Each case writes a model of its own shape, starts the server of the `xllamacpp` package on it, fills the context of every
slot and reads the process's peak resident memory from /proc. The bar is 10 % of what was observed, for each case by
itself; the constants of the model were found with the first table's cases, the second table's it never saw.
"""

from __future__ import annotations

import argparse
import sys

from tests.engines.real_memory import HELD_OUT, MIB, TUNED, Measured, measure_all

from .report import table

BAR_PERMILLE = 100
SETS = {"tuned": TUNED, "held-out": HELD_OUT}


def row(found: Measured) -> list[str]:
    """One line of the table, in MiB."""
    case, plan, told = found.case, found.case.plan, found.predicted
    sizes = (told.weights_bytes, told.kv_bytes, told.compute_bytes, told.overhead_bytes, told.host_bytes)
    return [
        case.name,
        f"{plan.embedding} × {plan.layers}",
        f"{plan.vocab:,}",
        plan.quantization,
        f"{case.ctx:,} × {case.slots}",
        *(f"{size / MIB:.1f}" for size in sizes),
        f"{found.observed_bytes / MIB:.1f}",
        f"{found.error_permille / 10:+.1f} %",
    ]


def main() -> int:
    """Measure, print, and answer 1 when the bar is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--set", choices=sorted(SETS), action="append", help="which cases; default: both")
    parser.add_argument("--case", default="", help="only cases whose names hold this")
    args = parser.parse_args()
    head = ["case", "width × layers", "vocabulary", "weights' type", "context × slots"]
    head += ["weights", "KV", "compute", "overhead", "predicted", "observed", "error"]
    missed = 0
    for name in args.set or SETS:
        measured = []
        for found in measure_all([case for case in SETS[name] if args.case in case.name]):
            print(f"{found.case.name}: {found.error_permille / 10:+.1f} %", file=sys.stderr)
            measured.append(found)
        if not measured:
            continue
        print(f"{name} (MiB)\n{table(head, [row(found) for found in measured])}")
        errors = sorted(abs(found.error_permille) for found in measured)
        print(f"largest error {errors[-1] / 10:.1f} %, median {errors[len(errors) // 2] / 10:.1f} %\n")
        missed += sum(error > BAR_PERMILLE for error in errors)
    print(
        f"PLC-5, error of each case at most {BAR_PERMILLE // 10} %: {'held' if not missed else f'missed by {missed}'}"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
