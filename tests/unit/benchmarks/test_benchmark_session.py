"""A whole run, on as little as there is: the engine alone, and a server that does not start."""

from __future__ import annotations

from benchmarks.__main__ import measure_all
from benchmarks.loads import BY_NAME
from benchmarks.results import Absent, Results
from benchmarks.session import Session, probe_fsync, turns
from benchmarks.targets import Launch, Missing, Target


def test_a_run_stores_what_it_prints_and_leaves_nothing_else(tmp_path, capsys):
    path, work = tmp_path / "run.jsonl", tmp_path / "work"
    words = ["--quick", "--targets", "direct", "--loads", "i,v", "--out", str(path), "--work", str(work)]
    assert measure_all(words) == path
    results = Results.read(path)
    assert [(row.target, row.load, row.faults) for row in results.loads] == [("direct", "i", 0), ("direct", "v", 0)]
    assert results.machine is not None and results.machine.quick
    assert results.fsync
    assert "| direct" in capsys.readouterr().out
    assert list(work.iterdir()) == []


def test_a_target_that_does_not_start_is_told_and_the_others_are_measured(native, tmp_path):
    found = [Launch("nginx", ["false"], 1, "/health", "1"), Missing("vllm-router", "not installed")]
    names = {"direct", "nginx", "vllm-router"}
    with Session(native, names, tmp_path, lambda _: None, lambda *_: found) as running:
        assert [target.name for target in running.targets] == ["direct"]
        assert running.absent == [
            Absent("nginx", "did not start: nginx ended with status 1: it logged nothing"),
            Absent("vllm-router", "not installed"),
        ]


def test_each_round_begins_with_another_of_the_targets_that_run_the_load():
    targets = [Target(name, "chat", 1) for name in ("a", "b", "c")] + [Target("d", "chat", 1, loads=frozenset({"i"}))]
    names = [[target.name for target in turns(targets, BY_NAME["v"], number)] for number in range(4)]
    assert names == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert turns(targets[3:], BY_NAME["v"], 1) == []


def test_the_disk_is_probed_and_left_clean(tmp_path):
    probe = probe_fsync(tmp_path, 2, writes=5)
    assert probe.round == 2
    assert 0 < probe.p50_us <= probe.p99_us * 1.0001
    assert list(tmp_path.iterdir()) == []
