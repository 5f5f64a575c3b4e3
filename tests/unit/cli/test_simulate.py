"""`llama-orch simulate`: a configuration is tried as it is, with sizes said or read, and faults are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_orch.cli import exits
from llama_orch.haiku import model_path
from llama_orch.plugins.storage.sqlite import SqliteStore
from llama_orch.simulator.rig import ModelledPool, Rig, gpu
from llama_orch.simulator.trace import TraceTask
from llama_orch.simulator.world import World

CONFIG = """
pools:
  - {id: small, model: small, devices: auto, preload: false, slots: 2, ctx: 4096}
  - {id: large, model: large, devices: "0", preload: false, slots: 2, ctx: 4096}
"""
SIZES = ("--size", "small=4", "--size", "large=18")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "rig.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    lines = [
        {"n": 0, "model": "small", "output_tokens": 50},
        {"n": 1, "model": "large", "at_ms": 1000, "output_tokens": 50},
        {"n": 2, "model": "small", "after": 1, "delay_ms": 500, "output_tokens": 50},
    ]
    path = tmp_path / "day.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_configuration_is_simulated_beside_first_come_first_served(call, config, trace) -> None:
    done = call("simulate", str(config), "--trace", str(trace), "--gpus", "24,12", *SIZES)
    assert done.status == exits.OK, done.err
    rows = {line[:24].strip(): line[24:].split() for line in done.out.splitlines()}
    assert done.out.splitlines()[0].split() == ["llama-orch", "first", "come"]
    assert rows["completed"] == ["3", "3"]
    assert rows["out of memory"] == ["0", "0"]
    assert "large: 18.00 GB as said" in done.err


def test_json_holds_every_number_and_the_remarks(call, config, trace) -> None:
    done = call("simulate", str(config), "--trace", str(trace), "--gpus", "24", *SIZES, "--no-comparison", "--json")
    assert (done.status, done.err) == (exits.OK, "")
    said = json.loads(done.out)
    (report,) = said["simulations"]
    assert (report["name"], report["completed"], report["violations"]) == ("llama-orch", 3, [])
    assert report["loads"] == 2, "both fit one card of 24 GB"
    assert report["peak_bytes"]["GPU-0"] > 22 * 10**9
    assert len(said["remarks"]) == 2
    again = call("simulate", str(config), "--trace", str(trace), "--gpus", "24", *SIZES, "--no-comparison", "--json")
    assert again.out == done.out


def test_on_a_smaller_card_the_models_take_turns(call, config, trace) -> None:
    done = call("simulate", str(config), "--trace", str(trace), "--gpus", "20", *SIZES, "--no-comparison", "--json")
    (report,) = json.loads(done.out)["simulations"]
    assert (report["completed"], report["swaps"], report["violations"]) == (3, 2, [])


def test_what_fits_nowhere_is_said(call, config, trace) -> None:
    done = call("simulate", str(config), "--trace", str(trace), "--gpus", "8", *SIZES, "--no-comparison")
    assert done.status == exits.OK
    assert "large is not served: pool 'large' fits no device: it needs 18" in done.out


def test_a_models_size_is_read_from_its_file(call, tmp_path, trace) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(model_path().read_bytes())
    path = tmp_path / "rig.yaml"
    path.write_text(
        f"models: {{small: {model_path()}, large: {copy}}}\n"
        "pools:\n  - {id: a, model: small, devices: cpu, ctx: 256}\n  - {id: b, model: large, devices: auto, ctx: 256}\n"
    )
    done = call("simulate", str(path), "--trace", str(trace), "--gpus", "12", "--no-comparison", "--json")
    assert (done.status, done.err) == (exits.OK, "")
    said = json.loads(done.out)
    assert said["remarks"] == []
    assert set(said["simulations"][0]["peak_bytes"]) == {"cpu", "GPU-0"}


def test_a_built_in_trace_stands_for_the_configurations_models(call, config) -> None:
    done = call("simulate", str(config), "--trace", "abcabc", "--gpus", "24", *SIZES, "--no-comparison", "--json")
    said = json.loads(done.out)
    assert "the trace's large-20g stands for large" in said["remarks"]
    assert said["simulations"][0]["completed"] == 600


@pytest.mark.parametrize(
    "arguments, says, remedy",
    [
        (
            ["--gpus", "24", "--size", "small=4.5"],
            "the size of 'large' (pool 'large') is not known",
            "--size large=13.4",
        ),
        (["--gpus", "0"], "--gpus '0' is no list of sizes", "--gpus 24,12"),
        (["--gpus", "24", "--size", "small=huge"], "--size 'small=huge' is not understood", "--size coder=16.2"),
        (["--gpus", "24", "--trace", "nowhere.jsonl"], "cannot be read: No such file", "agents, poisson"),
    ],
)
def test_what_is_missing_or_wrong_is_named_with_what_to_say(call, config, trace, arguments, says, remedy) -> None:
    if "--trace" not in arguments:
        arguments = [*arguments, "--trace", str(trace)]
    done = call("simulate", str(config), *arguments)
    assert (done.status, done.out) == (exits.USAGE, "")
    assert says in done.err
    assert remedy in done.err


def test_what_the_journal_recorded_is_tried_on_another_machine(call, config, tmp_path) -> None:
    """Tasks of a server with one pool, on a configuration with two."""
    machine = Rig(
        devices=(gpu(0, 24),),
        pools=(ModelledPool(pool_id="p", model="small", weights_bytes=4 * 10**9, devices=("GPU-0",)),),
    )
    lived = [TraceTask(n=n, model="small", at_ms=n * 500, output_tokens=30) for n in range(7)]
    (tmp_path / "data").mkdir()
    store = SqliteStore(f"sqlite:///{tmp_path / 'data' / 'journal.db'}", {})
    assert World(machine, lived, store=store).run().completed == 7
    done = call("simulate", str(config), "--trace", "journal", "--gpus", "24", *SIZES, "--no-comparison", "--json")
    assert done.status == exits.OK, done.err
    (report,) = json.loads(done.out)["simulations"]
    assert (report["tasks"], report["completed"], report["tokens_out"]) == (7, 7, 210)


def test_without_a_journal_there_is_nothing_to_try_again(call, config) -> None:
    done = call("simulate", str(config), "--trace", "journal", "--gpus", "24", *SIZES)
    assert done.status == exits.FAILED
    assert "there is no journal at" in done.err


def test_a_trace_for_other_models_is_refused_with_the_nearest_name(call, config, tmp_path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"n":0,"model":"smal"}\n')
    done = call("simulate", str(config), "--trace", str(path), "--gpus", "24", *SIZES)
    assert done.status == exits.USAGE
    assert "did you mean 'small'?" in done.err


def test_pools_elsewhere_and_gpus_that_are_not_there_are_named(call, tmp_path, trace) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text('pools:\n  - {id: a, model: small, devices: "1"}\n')
    done = call("simulate", str(path), "--trace", str(trace), "--gpus", "24", *SIZES)
    assert done.status == exits.USAGE
    assert "pool 'a' runs on 1; simulated are GPU-0" in done.err
    path.write_text(
        "pools:\n  - {id: a, engine: mock, model: m, provisioning: {mode: external, url: 'http://127.0.0.1:1'}}\n"
    )
    done = call("simulate", str(path), "--trace", str(trace), "--gpus", "24")
    assert done.status == exits.USAGE
    assert "no pool of the configuration can be simulated" in done.err


def test_without_a_configuration_the_reference_rig_is_tried(call) -> None:
    done = call("simulate", "--trace", "abcabc", "--no-comparison", "--json")
    (report,) = json.loads(done.out)["simulations"]
    assert (report["tasks"], report["violations"]) == (600, [])
    wrong = call("simulate", "--size", "a=3")
    assert wrong.status == exits.USAGE
