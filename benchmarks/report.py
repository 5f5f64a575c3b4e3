"""The results as Markdown: the table of CPU per token, what is added in latency, rates, memory, edges."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .loads import LOADS, PACED
from .results import LoadRun, Results

ROUTERS = ("vllm-router", "sglang-router")
_NONE = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded so that it also reads well as text."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [_line(head, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join(lines + [_line(row, widths) for row in rows])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def figure(value: float | None) -> str:
    """Three significant digits, thousands separated; a dash where there is nothing."""
    if value is None:
        return _NONE
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _measured(results: Results, names: Sequence[str]) -> list[str]:
    return [name for name in names if any(row.load == name for row in results.loads)]


def _cpu_cell(results: Results, target: str, load: str) -> str:
    if load == "v":
        value = results.median(target, load, lambda row: row.cpu_us_per_request)
        return _NONE if value is None else f"({figure(value)})"
    return figure(results.median(target, load, lambda row: row.cpu_us_per_token))


def cpu_table(results: Results) -> str:
    """CPU of the target's whole process tree in µs per relayed token; for load v per request, in brackets."""
    loads = _measured(results, [load.name for load in LOADS])
    targets = [target for target in results.targets() if target != "direct"]
    rows = [[target, *(_cpu_cell(results, target, load) for load in loads)] for target in targets]
    return table(["µs per token", *loads], rows)


def fastest_router(results: Results, load: str, cost: Callable[[LoadRun], float]) -> float | None:
    """The lowest median cost that a router has under a load."""
    costs = [value for router in ROUTERS if (value := results.median(router, load, cost)) is not None]
    return min(costs) if costs else None


def ratio_table(results: Results) -> str:
    """CPU per token relative to the cheaper of the two Rust routers, per load."""
    loads = _measured(results, [load.name for load in LOADS])
    rows = []
    for target in results.targets():
        if target == "direct":
            continue
        cells = []
        for load in loads:
            cost = _cost_of(load)
            ours, router = results.median(target, load, cost), fastest_router(results, load, cost)
            cells.append(_NONE if ours is None or not router else f"{ours / router:.2f}×")
        rows.append([target, *cells])
    return table(["relative to the faster router", *loads], rows)


def _cost_of(load: str) -> Callable[[LoadRun], float]:
    if load == "v":
        return lambda row: row.cpu_us_per_request
    return lambda row: row.cpu_us_per_token


def latency_table(results: Results) -> str:
    """What a target adds to "direct", in ms, median and 99th percentile, per frame and to the first token."""
    loads = _measured(results, PACED)
    rows = []
    for target in results.targets():
        cells = []
        for load in loads:
            frame = (_ms(results, target, load, "frame_us", "p50"), _ms(results, target, load, "frame_us", "p99"))
            first = _ms(results, target, load, "first_token_us", "p50")
            cells.append(_NONE if frame[0] == _NONE else f"{frame[0]} / {frame[1]} · {first}")
        rows.append([target, *cells])
    return table(["added ms: frame p50 / p99 · TTFT p50", *loads], rows)


def _ms(results: Results, target: str, load: str, times: str, quantile: str) -> str:
    def read(row: LoadRun) -> float:
        return float(getattr(getattr(row, times), quantile))

    value = results.median(target, load, read) if target == "direct" else results.added(target, load, read)
    return figure(None if value is None else value / 1000)


def rate_table(results: Results) -> str:
    """Tokens per second where nothing is paced, requests per second, first tokens, memory."""
    rows = []
    for target in results.targets():
        rss = [row.rss_mb for row in results.loads if row.target == target]
        faults = sum(row.faults for row in results.loads if row.target == target)
        first = results.median(target, "v", lambda row: row.request_us.p50)
        last = results.median(target, "v", lambda row: row.request_us.p99)
        rows.append(
            [
                target,
                figure(results.median(target, "i", lambda row: row.tok_s)),
                figure(results.median(target, "iv", lambda row: row.tok_s)),
                figure(results.median(target, "v", lambda row: row.req_s)),
                _NONE if first is None or last is None else f"{figure(first / 1000)} / {figure(last / 1000)}",
                _NONE if target == "direct" else figure(statistics.median(rss)),
                _NONE if target == "direct" else figure(max(rss)),
                str(faults),
            ]
        )
    head = ["", "i tok/s", "iv tok/s", "v req/s", "v ms p50 / p99", "RSS MB", "RSS max", "faults"]
    return table(head, rows)


def edge_table(results: Results) -> str:
    """Readers that leave, and one that stalls."""
    rows = [
        [
            row.target,
            _slowest(row.abort_flowing_ms),
            _slowest(row.abort_silent_ms),
            figure(row.reading_growth_mb),
            figure(row.stalled_growth_mb),
            f"{row.stalled_frames:,}",
        ]
        for row in results.edges
    ]
    head = [
        "",
        "gone while flowing, ms",
        "gone while silent, ms",
        "RSS + reading, MB",
        "RSS + stalled, MB",
        "frames taken",
    ]
    return table(head, rows)


def _slowest(times_ms: Sequence[float | None]) -> str:
    known = [value for value in times_ms if value is not None]
    if len(known) < len(times_ms) or not known:
        return f"not noticed ({len(times_ms) - len(known)} of {len(times_ms)})"
    return f"{figure(statistics.median(known))} (max {figure(max(known))})"


def _busy_elsewhere(results: Results) -> float | None:
    """The share of the machine's CPU time during the loads that neither target nor harness used."""
    total = sum(row.machine_busy_s for row in results.loads)
    known = sum(row.cpu_s + row.harness_cpu_s for row in results.loads)
    return max(0.0, 1 - known / total) if total else None


def _preface(results: Results) -> list[str]:
    lines = []
    machine = results.machine
    if machine:
        lines.append(
            f"Measured {machine.started} on {machine.cores} cores ({machine.cpu}), {machine.kernel}, "
            f"Python {machine.python}, revision {machine.revision}; medians of {machine.rounds} interleaved rounds, "
            "everything on loopback."
        )
        if machine.quick:
            lines.append("**Shortened loads: this shows that everything runs, and is not to be published.**")
        if machine.versions:
            lines.append(
                "Versions: " + ", ".join(f"{name} {version}" for name, version in machine.versions.items()) + "."
            )
    fsync = results.fsync_p50_us()
    if fsync is not None:
        worst = statistics.median(row.p99_us for row in results.fsync)
        lines.append(
            f"The disk under the journal: 4 KB write + fdatasync takes {fsync / 1000:.2f} ms at the median, "
            f"{worst / 1000:.2f} ms at p99."
        )
    elsewhere = _busy_elsewhere(results)
    if elsewhere is not None and elsewhere > 0.2:
        lines.append(f"Others took {elsewhere:.0%} of the CPU time that was used meanwhile: trust ratios only.")
    lines += [f"Not measured: {row.target}: {' '.join(row.reason.split())}" for row in results.absent]
    return lines


def render(results: Results) -> str:
    """The whole report."""
    parts = ["# Benchmarks", "\n".join(_preface(results))]
    if results.loads:
        shown = _measured(results, [load.name for load in LOADS])
        parts.append(
            "Loads: " + " · ".join(f"**{load.name}** {load.title}" for load in LOADS if load.name in shown) + "."
        )
        parts.append(
            "## CPU\n\nOf the target's whole process tree, in µs per relayed token (v: µs per request, in brackets).\n\n"
            + cpu_table(results)
        )
        parts.append(ratio_table(results))
        parts.append(
            '## Latency\n\nWhat each target adds to the figures of "direct" (which are given as measured).\n\n'
            + latency_table(results)
        )
        parts.append(
            "## Rates and memory\n\nFaults are failed and unfinished requests, and tokens lost or out of order, in all "
            "rounds.\n\n" + rate_table(results)
        )
    if results.edges:
        parts.append(
            "## Readers that leave or stall\n\nTime from closing the connection to the engine's noticing: median and "
            "maximum. Memory: growth while a reader takes a long stream, and while one takes nothing of it.\n\n"
            + edge_table(results)
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.report FILE`: prints the report of stored results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=main.__doc__)
    parser.add_argument("file", type=Path, help="results as a run wrote them (.jsonl)")
    options = parser.parse_args(words)
    print(render(Results.read(options.file)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
