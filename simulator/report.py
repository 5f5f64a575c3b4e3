"""What a simulation found, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

#: violations that a table names
_VIOLATIONS = 3


class Waits(Struct, frozen=True, kw_only=True):
    """A distribution of waits, milliseconds."""

    mean_ms: int = 0
    p50_ms: int = 0
    p95_ms: int = 0
    p99_ms: int = 0
    worst_ms: int = 0
    total_ms: int = 0


def waits_of(values: Sequence[int]) -> Waits:
    """The distribution of some waits."""
    if not values:
        return Waits()
    ordered = sorted(values)

    def at(percent: int) -> int:
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]

    return Waits(
        mean_ms=sum(ordered) // len(ordered),
        p50_ms=at(50),
        p95_ms=at(95),
        p99_ms=at(99),
        worst_ms=ordered[-1],
        total_ms=sum(ordered),
    )


class Report(Struct, frozen=True, kw_only=True):
    """One simulation."""

    name: str = ""
    tasks: int
    completed: int
    failed: int
    refused: int
    elapsed_ms: int
    #: from admission to the engine's first sign of life
    start: Waits
    #: from admission to the end
    end: Waits
    #: loads of models, and models that had to leave for them
    loads: int
    swaps: int
    loaded_bytes: int
    #: time that loads took, all together
    load_ms: int
    tokens_out: int
    prompt_tokens: int
    cached_tokens: int
    #: per device: share of the time that it worked, thousandths
    busy_permille: dict[str, int]
    peak_bytes: dict[str, int]
    #: longest that a task waited unserved while tasks that came after it were started where it could have run
    passed_over_ms: int
    #: the same, the time in which its own model was being served counted too
    passed_over_in_all_ms: int
    #: what the memory checker found
    violations: list[str]
    #: digest of the state that the journal builds: equal runs, equal digests
    digest: str
    #: per model that tasks still wait for at the end: why it is not loaded
    waits: dict[str, str] = {}
    #: per model: why the first of its tasks that got no answer got none
    unserved: dict[str, str] = {}


def reports_as_data(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Reports as JSON would hold them."""
    return [msgspec.to_builtins(report) for report in reports]


def table(reports: Sequence[Report]) -> str:
    """Reports side by side, as text."""
    rows: list[tuple[str, list[str]]] = [
        ("", [r.name for r in reports]),
        ("tasks", [str(r.tasks) for r in reports]),
        ("completed", [str(r.completed) for r in reports]),
        ("failed / refused", [f"{r.failed} / {r.refused}" for r in reports]),
        ("simulated", [_time(r.elapsed_ms) for r in reports]),
        ("loads", [str(r.loads) for r in reports]),
        ("swaps", [str(r.swaps) for r in reports]),
        ("bytes loaded", [f"{r.loaded_bytes / 1e9:.0f} GB" for r in reports]),
        ("time in loads", [_time(r.load_ms) for r in reports]),
        ("waits in all", [_time(r.start.total_ms) for r in reports]),
        ("wait, mean", [_time(r.start.mean_ms) for r in reports]),
        ("wait, median", [_time(r.start.p50_ms) for r in reports]),
        ("wait, p95", [_time(r.start.p95_ms) for r in reports]),
        ("wait, p99", [_time(r.start.p99_ms) for r in reports]),
        ("wait, worst", [_time(r.start.worst_ms) for r in reports]),
        ("to the end, mean", [_time(r.end.mean_ms) for r in reports]),
        ("passed over, worst", [_time(r.passed_over_ms) for r in reports]),
        ("… own queue counted", [_time(r.passed_over_in_all_ms) for r in reports]),
        ("tokens out", [str(r.tokens_out) for r in reports]),
        ("prompt cached", [f"{100 * r.cached_tokens // max(1, r.prompt_tokens)} %" for r in reports]),
        *((f"{d} at work", [_permille(r.busy_permille.get(d, 0)) for r in reports]) for d in _devices(reports)),
        ("out of memory", [str(len(r.violations)) for r in reports]),
        ("journal", [r.digest[:12] for r in reports]),
    ]
    first = max(len(name) for name, _ in rows)
    widths = [max(len(row[n]) for _, row in rows) for n in range(len(reports))]
    lines = [
        name.ljust(first) + "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for name, row in rows
    ]
    for report in reports:
        lines += [f"{report.name}: {model} is not loaded: {why}" for model, why in report.waits.items()]
        lines += [f"{report.name}: {model} is not served: {why}" for model, why in report.unserved.items()]
        lines += [f"{report.name}: {violation}" for violation in report.violations[:_VIOLATIONS]]
    return "\n".join(line.rstrip() for line in lines)


def _devices(reports: Sequence[Report]) -> list[str]:
    return sorted({device for report in reports for device in report.busy_permille})


def _permille(value: int) -> str:
    return f"{value // 10}.{value % 10} %"


def _time(ms: int) -> str:
    if ms < 120_000:
        return f"{ms / 1000:.1f} s"
    if ms < 7_200_000:
        return f"{ms / 60_000:.1f} min"
    return f"{ms / 3_600_000:.1f} h"
