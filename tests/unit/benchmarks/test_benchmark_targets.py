from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import loads, native, targets
from benchmarks.targets import Launch, Missing

from llama_orch.cli.config import load

ROOT = Path(__file__).resolve().parents[3]


def test_the_configuration_that_llama_orch_is_started_with_is_one_that_it_takes(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(targets.orchestrator_configuration(8081, 9100, tmp_path / "data"))
    settings = load(path, environ={}).settings
    assert settings.bind == "127.0.0.1:8081"
    assert settings.pools[0].provisioning.url == "http://127.0.0.1:9100"
    assert settings.pools[0].slots == targets.SLOTS


def test_targets_are_chosen_by_name_or_by_what_several_begin_with():
    assert targets.select("") == set(targets.NAMES)
    assert targets.select("direct,ngin") == {"direct", "nginx"}
    assert targets.select("llama-orch") == {"llama-orch"}
    assert targets.select("llama-orch m") == {"llama-orch metered", "llama-orch metered /v1/tasks"}
    assert targets.select("llama-orch +") == {"llama-orch +2ms fsync", "llama-orch +10ms fsync"}


def test_an_unknown_target_is_refused_by_name():
    with pytest.raises(ValueError, match=r"--targets: 'ngnix' .* nginx"):
        targets.select("ngnix")


def test_an_unknown_load_is_refused_by_name():
    with pytest.raises(ValueError, match=r"--loads: 'vi' .* iib"):
        loads.select("i,vi")


def test_one_server_answers_for_two_targets_and_a_slow_disk_runs_paced_loads_only(tmp_path):
    launch = Launch("llama-orch", [], 8080, "/readyz", "1")
    assert [target.name for target in targets.faces(launch, set(targets.NAMES))] == [
        "llama-orch",
        "llama-orch /v1/tasks",
    ]
    assert [target.name for target in targets.faces(launch, {"llama-orch"})] == ["llama-orch"]
    metered = Launch("llama-orch metered", [], 8080, "/readyz", "1", make_key=lambda: "lo_x")
    assert [(target.name, target.bearer) for target in targets.faces(metered, set(targets.NAMES))] == [
        ("llama-orch metered", "lo_x"),
        ("llama-orch metered /v1/tasks", "lo_x"),
    ]
    (slow,) = targets.faces(Launch("llama-orch +2ms fsync", [], 8080, "/readyz", "1"), set(targets.NAMES))
    assert slow.fsync_delay_ms == 2
    assert slow.runs("ii") and not slow.runs("iv")


def test_peers_that_could_not_be_installed_are_missing_with_the_reason():
    assert targets.router("vllm-router", "vllm_router", 9100, "not installed (pip: offline)") == Missing(
        "vllm-router", "not installed (pip: offline)"
    )


def test_versions_come_from_the_pins():
    assert targets.pinned_version("b", "a==1.0\nb==2.5 ; python_version > '3'\n") == "2.5"
    assert targets.pinned_version("c", "a==1.0\n") == "?"


def test_every_peer_is_pinned():
    for name in ("vllm-router", "sglang-router"):
        assert targets.pinned_version(name, (ROOT / "benchmarks" / "peers.txt").read_text()) != "?"


def test_short_loads_keep_their_shape():
    for load_ in loads.LOADS:
        short = load_.shortened()
        assert (short.clients, short.rate, short.in_phase, short.whole) == (
            load_.clients,
            load_.rate,
            load_.in_phase,
            load_.whole,
        )
        assert short.requests * short.tokens < load_.requests * load_.tokens


def test_without_a_compiler_it_says_what_to_install(tmp_path):
    with pytest.raises(native.BuildError, match=r"no-such-gcc was not found.*apt-get install gcc"):
        native.build(tmp_path, compiler="no-such-gcc")


def test_without_a_compiler_the_command_fails_with_that_sentence(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--out", str(tmp_path / "x.jsonl")]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("gcc was not found")


@pytest.mark.parametrize("command", [["benchmarks/run.py"], ["-m", "benchmarks"], ["-m", "benchmarks.check"]])
def test_the_commands_explain_themselves(command):
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--rounds" in done.stdout
