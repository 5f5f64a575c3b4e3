"""Traces: the committed ones are what their generator makes; a broken one is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.simulator.make_traces import FOLDER, HOURS_MS, made, main
from llama_orch.simulator.rig import reference_rig
from llama_orch.simulator.trace import TraceError, TraceTask, built_in, read_trace, trace_bytes


def test_the_committed_traces_are_what_the_generator_makes(capsys) -> None:
    assert main(["--check"]) == 0
    assert capsys.readouterr().err == ""
    assert {path.name for path in FOLDER.glob("*.jsonl")} == set(made())
    assert {path.name for path in built_in().values()} == set(made())


def test_a_changed_trace_is_noticed(tmp_path: Path, capsys) -> None:
    for name, content in made().items():
        (tmp_path / name).write_bytes(content)
    assert main(["--check"], tmp_path) == 0
    (tmp_path / "poisson.jsonl").write_bytes(b"")
    assert main(["--check"], tmp_path) == 1
    assert "poisson.jsonl" in capsys.readouterr().err
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0


def test_other_seeds_make_other_traces_of_the_same_kinds(tmp_path: Path) -> None:
    assert main(["--shift", "1000", "--into", str(tmp_path)]) == 0
    for name, content in made().items():
        other = read_trace(tmp_path / name)
        assert trace_bytes(other) != content
        assert {task.model for task in other} <= {pool.model for pool in reference_rig().pools}
    assert main(["--check"]) == 0, "the committed ones are untouched"


def test_traces_last_two_hours_and_ask_for_the_rigs_models() -> None:
    models = {pool.model for pool in reference_rig().pools}
    for name, path in built_in().items():
        trace = read_trace(path)
        assert {task.model for task in trace} <= models
        assert max(task.at_ms for task in trace) < HOURS_MS
        if name == "agents":
            assert len([task for task in trace if task.after < 0]) == 8, "eight agents"
        else:
            assert max(task.at_ms for task in trace) > HOURS_MS * 9 // 10


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    trace = [TraceTask(n=0, model="m", at_ms=5), TraceTask(n=1, model="m", after=0, delay_ms=7, priority="batch")]
    path = tmp_path / "t.jsonl"
    path.write_bytes(trace_bytes(trace) + b"\n")
    assert read_trace(path) == trace


@pytest.mark.parametrize(
    "content, says",
    [
        (b'{"n":0,"model":"m"}\nnonsense\n', "line 2 is no task"),
        (b'{"n":0,"model":"m","tokens":3}\n', "unknown field `tokens`"),
        (b'{"n":0}\n', "required field `model`"),
        (b'{"n":1,"model":"m"}\n', "line 1 has n = 1"),
        (b'{"n":0,"model":"m","after":0}\n', "only follow an earlier one"),
        (b'{"n":0,"model":"m","at_ms":-1}\n', "at_ms"),
        (b"\n\n", "holds no task"),
    ],
)
def test_a_broken_trace_is_refused_with_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=says.replace("(", r"\(")):
        read_trace(path)
