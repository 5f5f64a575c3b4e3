from __future__ import annotations

import json

import pytest
from benchmarks.results import (
    Absent,
    EdgeRun,
    FsyncProbe,
    LoadRun,
    Machine,
    Quantiles,
    Results,
    from_line,
    parse_loadgen,
    to_line,
)
from hypothesis import given
from hypothesis import strategies as st

numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
counts = st.integers(0, 2**40)
quantiles = st.builds(Quantiles, numbers, numbers, numbers)
rows = st.one_of(
    st.builds(Absent),
    st.builds(FsyncProbe, round=counts, p50_us=numbers, p99_us=numbers),
    st.builds(
        Machine,
        started=st.text(),
        cpu=st.text(),
        cores=counts,
        kernel=st.text(),
        python=st.text(),
        revision=st.text(),
        rounds=counts,
        quick=st.booleans(),
        versions=st.dictionaries(st.text(), st.text(), max_size=2),
    ),
    st.builds(
        LoadRun,
        wall_s=numbers,
        tok_s=numbers,
        req_s=numbers,
        first_token_us=quantiles,
        frame_us=quantiles,
        request_us=quantiles,
        cpu_s=numbers,
        harness_cpu_s=numbers,
        machine_busy_s=numbers,
        rss_mb=numbers,
    ),
    st.builds(
        EdgeRun,
        abort_flowing_ms=st.lists(numbers | st.none(), max_size=3),
        abort_silent_ms=st.lists(numbers | st.none(), max_size=3),
        reading_growth_mb=numbers,
        stalled_growth_mb=numbers,
    ),
)


@given(rows)
def test_every_row_comes_back_from_its_line(row):
    line = to_line(row)
    assert "\n" not in line
    assert from_line(line) == row


@pytest.mark.parametrize(
    "line, named",
    [
        ('{"kind": "loda", "target": "nginx"}', "loda"),
        ('{"target": "nginx"}', "kind"),
        ('{"kind": "absent", "target": "nginx"}', "reason"),
        ('{"kind": "absent", "target": "nginx", "reason": "", "extra": 1}', "extra"),
    ],
)
def test_a_line_that_is_no_row_is_refused_by_name(line, named):
    with pytest.raises(ValueError, match=named):
        from_line(line)


def test_what_the_load_generator_prints_becomes_the_fields_of_a_run(make_run):
    times = {"p50": 1.5, "p90": 2.0, "p99": 3.0, "max": 4.0, "mean": 1.7}
    printed = {
        "wall_s": 2.0,
        "ok": 3,
        "failed": 1,
        "unfinished": 0,
        "misplaced": 2,
        "tokens": 40,
        "bytes": 999,
        "tok_s": 20.0,
        "req_s": 1.5,
        "first_token_us": times,
        "frame_us": times,
        "request_us": times,
        "loadgen_cpu_s": 0.1,
        "error": "cut short",
        "status": {"200": 4},
    }
    run = make_run("nginx", "ii", **parse_loadgen(json.dumps(printed)))
    assert (run.ok, run.failed, run.misplaced, run.tokens, run.error) == (3, 1, 2, 40, "cut short")
    assert run.frame_us == Quantiles(1.5, 3.0, 4.0)
    assert run.faults == 3


def test_a_load_generator_that_printed_nothing_is_an_error_and_not_a_zero():
    with pytest.raises(ValueError, match="printed no result"):
        parse_loadgen("")


def test_medians_are_over_the_rounds_and_leave_out_runs_in_which_nothing_succeeded(make_run):
    results = Results(
        [
            make_run("nginx", "ii", round=0, cpu_s=1.0, tokens=1_000_000),
            make_run("nginx", "ii", round=1, cpu_s=9.0, tokens=1_000_000),
            make_run("nginx", "ii", round=2, cpu_s=2.0, tokens=1_000_000),
            make_run("nginx", "ii", round=3, cpu_s=0.0, tokens=0, ok=0, failed=64),
        ]
    )
    assert results.median("nginx", "ii", lambda row: row.cpu_us_per_token) == 2.0
    assert results.median("nginx", "iv", lambda row: row.cpu_us_per_token) is None


def test_what_a_target_adds_is_its_median_less_the_one_without_any_target(make_run):
    results = Results(
        [
            make_run("direct", "ii", frame_us=Quantiles(100, 400, 900)),
            make_run("nginx", "ii", frame_us=Quantiles(350, 900, 1900)),
        ]
    )
    assert results.added("nginx", "ii", lambda row: row.frame_us.p50) == 250
    assert results.added("nginx", "iv", lambda row: row.frame_us.p50) is None
