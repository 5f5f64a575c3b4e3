from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.check import Bar, all_bars, main, verdict
from benchmarks.results import EdgeRun, FsyncProbe, LoadRun, Quantiles, Results, to_line

MILLION = 1_000_000


@pytest.fixture
def good(make_run):
    """A run in which every bar is held."""
    rows = [FsyncProbe(0, 1_000, 2_000), EdgeRun("llama-orch", [5.0, 9.0], [6.0], 1.0, 2.0, 300_000)]
    for load in ("i", "ib", "ii", "iib", "iii", "iv", "v"):
        times = Quantiles(100, 400, 900)
        rows.append(make_run("direct", load, frame_us=times, first_token_us=times))
        rows.append(make_run("vllm-router", load, cpu_s=40.0, tokens=MILLION, tok_s=300_000, req_s=17_000))
        rows.append(make_run("sglang-router", load, cpu_s=50.0, tokens=MILLION, tok_s=280_000, req_s=9_000))
        ours = make_run("llama-orch", load, cpu_s=44.0, tokens=MILLION, tok_s=260_000, req_s=16_000)
        for name in ("llama-orch /v1/tasks", "llama-orch metered", "llama-orch metered /v1/tasks"):
            rows.append(make_run(name, load, cpu_s=43.0, tokens=MILLION))
        rows.append(replace(ours, frame_us=Quantiles(500, 9_000, 0), first_token_us=Quantiles(2_100, 0, 0)))
    return rows


def missed(rows) -> list[str]:
    return [bar.what for bar in all_bars(Results(rows)) if not bar.held]


def change(rows, target, load, **changes):
    return [
        replace(row, **changes) if isinstance(row, LoadRun) and (row.target, row.load) == (target, load) else row
        for row in rows
    ]


def test_a_good_run_holds_every_bar(good):
    text, status = verdict(Results(good))
    assert status == 0
    assert "All" in text and "MISSED" not in text


@pytest.mark.parametrize(
    "load, changes, named",
    [
        ("ii", {"cpu_s": 81.0}, "CPU per token at ii,"),
        ("iib", {"cpu_s": 81.0}, "CPU per token at iib,"),
        ("iii", {"cpu_s": 53.0}, "CPU per token at iii,"),
        ("iv", {"cpu_s": 53.0}, "CPU per token at iv,"),
        ("iv", {"cpu_s": 46.0}, "CPU per token at iv, llama-orch beside llama-orch /v1/tasks"),
        ("ib", {"frame_us": Quantiles(700, 800, 0)}, "added per frame at ib, median"),
        ("ii", {"frame_us": Quantiles(4_200, 5_000, 0)}, "added per frame at ii, median"),
        ("iii", {"frame_us": Quantiles(1_000, 15_500, 0)}, "added per frame at iii, p99"),
        ("ib", {"first_token_us": Quantiles(3_300, 0, 0)}, "added to the first token at ib"),
        ("iv", {"tok_s": 249_000}, "journaled tokens per second"),
        ("v", {"req_s": 14_900}, "short requests per second"),
        ("i", {"misplaced": 1}, "tokens lost or out of order"),
        ("i", {"unfinished": 1}, "requests failed or unfinished"),
    ],
)
def test_each_figure_beyond_its_bar_is_named_and_fails_the_command(good, load, changes, named):
    rows = change(good, "llama-orch", load, **changes)
    assert [what for what in missed(rows) if named in what] == missed(rows) != []
    text, status = verdict(Results(rows))
    assert status == 1
    assert named in text.split("Missed:")[1]


@pytest.mark.parametrize(
    "edge, named",
    [
        (EdgeRun("llama-orch", [5.0, 51.0], [6.0], 1.0, 2.0, 1), "tokens flowing"),
        (EdgeRun("llama-orch", [5.0], [6.0, None], 1.0, 2.0, 1), "engine silent"),
        (EdgeRun("llama-orch", [5.0], [6.0], 1.0, 10.5, 1), "stalled reader"),
    ],
)
def test_readers_that_leave_late_or_cost_much_are_named(good, edge, named):
    rows = [edge if isinstance(row, EdgeRun) else row for row in good]
    assert len(missed(rows)) == 1
    assert named in missed(rows)[0]


def test_cpu_is_held_against_the_cheaper_router(good):
    cheap = change(good, "sglang-router", "iii", cpu_s=20.0)
    assert missed(cheap) == ["CPU per token at iii, beside the faster router"]


def test_what_was_not_measured_is_missed_and_not_passed():
    text, status = verdict(Results([]))
    assert status == 1
    assert "not measured" in text
    assert "held" not in text


def test_a_slower_machine_lowers_the_rates_with_the_faster_router(good):
    slow = change(good, "vllm-router", "iv", tok_s=150_000)
    slow = change(slow, "sglang-router", "iv", tok_s=140_000)
    slow = change(slow, "llama-orch", "iv", tok_s=130_000)
    assert missed(slow) == []
    assert missed(change(slow, "llama-orch", "iv", tok_s=120_000)) == ["journaled tokens per second at iv"]


def test_a_slow_disk_may_delay_the_first_token_and_no_other(good, make_run):
    late = {"frame_us": Quantiles(500, 9_000, 0), "first_token_us": Quantiles(12_900, 0, 0), "fsync_delay_ms": 10}
    slow = [make_run("llama-orch +10ms fsync", load, **late) for load in ("ib", "ii", "iii")]
    assert missed(good + slow) == []
    waits = [replace(row, frame_us=Quantiles(10_500, 16_000, 0)) for row in slow]
    assert len(missed(good + waits)) == 6
    assert all("fsync +10 ms" in what for what in missed(good + waits))


def test_a_bar_is_held_at_its_limit():
    assert Bar("PERF-6", "", 50.0, 50.0, "ms").held
    assert Bar("PERF-2", "", 250.0, 250.0, "tok/s", at_least=True).held
    assert not Bar("PERF-2", "", 249.0, 250.0, "tok/s", at_least=True).held


def test_the_command_holds_a_stored_run(tmp_path, capsys, good):
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(map(to_line, good)))
    assert main([str(path)]) == 0
    path.write_text("\n".join(map(to_line, change(good, "llama-orch", "ii", cpu_s=90.0))))
    assert main([str(path)]) == 1
    assert "CPU per token at ii" in capsys.readouterr().out


def test_a_chat_that_costs_more_than_the_native_route_with_keys_and_budgets_is_named(good):
    dear = change(good, "llama-orch metered", "iii", cpu_s=46.0)
    assert missed(dear) == ["CPU per token at iii, llama-orch metered beside llama-orch metered /v1/tasks"]
