from __future__ import annotations

import pytest
from benchmarks.report import figure, main, render, table
from benchmarks.results import Absent, EdgeRun, FsyncProbe, Machine, Quantiles, Results, to_line


def machine(quick: bool = False) -> Machine:
    return Machine(
        started="2026-01-02 03:04:05 UTC",
        cpu="A CPU",
        cores=2,
        kernel="Linux 6",
        python="3.11.7",
        revision="abc",
        rounds=3,
        quick=quick,
        versions={"nginx": "1.22.1"},
    )


def cells(report: str, first: str) -> list[list[str]]:
    """The cells of every table line that begins with this cell."""
    lines = [line for line in report.splitlines() if line.startswith("| ")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in split if row[0] == first]


@pytest.mark.parametrize(
    "value, shown",
    [(None, "–"), (0.934, "0.93"), (21.74, "21.7"), (147.6, "148"), (266_432.0, "266,000"), (-0.05, "-0.05")],
)
def test_figures_have_three_digits(value, shown):
    assert figure(value) == shown


def test_tables_are_padded_to_their_widest_cell():
    assert table(["", "ii"], [["nginx", "21.7"], ["a", "–"]]).splitlines() == [
        "|       | ii   |",
        "|-------|------|",
        "| nginx | 21.7 |",
        "| a     | –    |",
    ]


def test_cpu_is_per_token_and_for_whole_answers_per_request_in_brackets(make_run):
    report = render(
        Results(
            [
                make_run("direct", "ii"),
                make_run("nginx", "ii", cpu_s=0.256, tokens=12_800),
                make_run("nginx", "v", cpu_s=0.06, ok=6_000, tokens=48_000),
            ]
        )
    )
    assert cells(report, "nginx")[0] == ["nginx", "20.0", "(10.0)"]


def test_ratios_are_to_the_cheaper_router_of_each_load(make_run):
    results = [
        make_run(target, load, cpu_s=cpu_s, tokens=1_000_000)
        for target, load, cpu_s in [
            ("vllm-router", "ii", 40.0),
            ("sglang-router", "ii", 20.0),
            ("llama-orch", "ii", 30.0),
            ("vllm-router", "iv", 4.0),
            ("sglang-router", "iv", 8.0),
            ("llama-orch", "iv", 5.0),
        ]
    ]
    assert cells(render(Results(results)), "llama-orch")[1] == ["llama-orch", "1.50×", "1.25×"]


def test_a_load_that_a_target_did_not_run_is_a_dash(make_run):
    report = render(Results([make_run("direct", "ii"), make_run("nginx", "ii", cpu_s=0.1), make_run("a", "iv")]))
    assert cells(report, "a")[0] == ["a", "–", "0.00"]


def test_latency_is_what_a_target_adds(make_run):
    report = render(
        Results(
            [
                make_run("direct", "ii", frame_us=Quantiles(100, 400, 0), first_token_us=Quantiles(1000, 0, 0)),
                make_run("nginx", "ii", frame_us=Quantiles(150, 2400, 0), first_token_us=Quantiles(2500, 0, 0)),
            ]
        )
    )
    assert ["nginx", "0.05 / 2.00 · 1.50"] in cells(report, "nginx")
    assert ["direct", "0.10 / 0.40 · 1.00"] in cells(report, "direct")


def test_the_preface_tells_disk_versions_what_is_missing_and_that_a_run_was_short(make_run):
    report = render(
        Results(
            [
                machine(quick=True),
                Absent("sglang-router", "not\n  installed"),
                FsyncProbe(0, 3_000, 7_000),
                FsyncProbe(1, 4_000, 9_000),
                make_run("direct", "ii"),
            ]
        )
    )
    assert "3.50 ms at the median, 8.00 ms at p99" in report
    assert "nginx 1.22.1" in report
    assert "Not measured: sglang-router: not installed" in report
    assert "not to be published" in report


def test_a_busy_machine_is_told(make_run):
    quiet = make_run("nginx", "ii", cpu_s=0.4, harness_cpu_s=0.5, machine_busy_s=1.0)
    busy = make_run("nginx", "ii", cpu_s=0.1, harness_cpu_s=0.1, machine_busy_s=1.0)
    assert "trust ratios only" not in render(Results([quiet]))
    assert "80% of the CPU time" in render(Results([busy]))


def test_a_reader_whose_leaving_was_missed_is_said_in_words():
    edge = EdgeRun("vllm-router", [10.0, 30.0, 20.0], [5.0, None], 0.5, 66.2, 300_000)
    assert cells(render(Results([edge])), "vllm-router") == [
        ["vllm-router", "20.0 (max 30.0)", "not noticed (1 of 2)", "0.50", "66.2", "300,000"]
    ]


def test_the_command_prints_the_report_of_a_file(tmp_path, capsys, make_run):
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(map(to_line, [machine(), make_run("direct", "ii")])))
    assert main([str(path)]) == 0
    assert "Measured 2026-01-02" in capsys.readouterr().out
