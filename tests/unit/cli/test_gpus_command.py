"""`gpus`: the server's view, or this machine's own when none runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ...nvml import RTX_3060, RTX_3090, FakeDriver, build_nvml
from .conftest import Answer

GIB = 2**30
GPU: dict[str, Any] = {
    "uuid": "GPU-1",
    "name": "RTX 3090",
    "index": 0,
    "pci_bus_id": "01:00.0",
    "total_bytes": 24 * GIB,
    "used_bytes": 11 * GIB,
    "free_bytes": 12 * GIB,
    "reserved_bytes": GIB,
    "utilization_percent": 30,
    "temperature_c": 61,
    "power_mw": 250_400,
    "processes": [{"pid": 7, "used_bytes": GIB}, {"pid": 8, "used_bytes": None}],
    "parent_uuid": "",
    "pools": ["big", "small"],
    "trouble": None,
}
LOST = GPU | {
    "uuid": "GPU-2",
    "index": 1,
    "used_bytes": None,
    "utilization_percent": None,
    "temperature_c": None,
    "power_mw": None,
    "processes": None,
    "pools": [],
    "trouble": {"cause": "gpu-lost", "message": "the GPU is lost", "advice": "Reboot."},
}
HOST: dict[str, Any] = {
    "host": "local",
    "age_ms": 400,
    "driver_version": "580.42",
    "cuda_version": "13.2",
    "memory": {"total_bytes": 64 * GIB, "available_bytes": 48 * GIB, "limit_bytes": 0},
    "gpus": [GPU, LOST],
    "trouble": None,
}
FAR = HOST | {
    "host": "far",
    "age_ms": None,
    "memory": None,
    "gpus": [],
    "trouble": {"cause": "no-sample", "message": "there is no sample", "advice": "Look at its log."},
}


def test_piped_there_is_a_line_for_each_device_with_what_is_wrong(call, server):
    server.on("GET", "/v1/gpus", Answer(body={"hosts": [HOST, FAR]}))
    done = call("gpus", "--long", "--url", server.url)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        "HOST\tGPU\tNAME\tMEMORY\tLOAD\tTEMP\tPOWER\tPOOLS\tTROUBLE\tUUID\tPCI\tPROCESSES",
        "local\t0\tRTX 3090\t12.0 / 24.0 GiB\t30 %\t61 °C\t250 W\tbig, small\t\tGPU-1\t01:00.0\t7 (1.0 GiB), 8",
        "local\t1\tRTX 3090\t? / 24.0 GiB\t\t\t\t\tgpu-lost\tGPU-2\t01:00.0\tnot told",
        "local\tcpu\tmemory\t16.0 / 64.0 GiB\t\t\t\t\t\t\t\t",
        "",
        "HOST\tGPU\tNAME\tMEMORY\tLOAD\tTEMP\tPOWER\tPOOLS\tTROUBLE\tUUID\tPCI\tPROCESSES",
        "far\t\tnot known\t\t\t\t\t\tno-sample\t\t\t",
    ]


def test_at_a_terminal_there_are_bars_and_what_to_do(call, server):
    server.on("GET", "/v1/gpus", Answer(body={"hosts": [HOST, FAR]}))
    done = call("gpus", "--url", server.url, terminal=True)
    assert "local · driver 580.42 · CUDA 13.2 · 0.4 s old" in done.out
    assert "█████░░░░░ 12.0 / 24.0 GiB" in done.out
    assert "███░░░░░░░ 30 %" in done.out
    assert "GPU 1: the GPU is lost. Reboot." in done.out
    assert "there is no sample. Look at its log." in done.out


def test_json_is_the_servers_answer(call, server):
    server.on("GET", "/v1/gpus", Answer(body={"hosts": [HOST]}))
    assert json.loads(call("gpus", "--json", "--url", server.url).out) == {"hosts": [HOST]}


def test_a_named_server_that_does_not_answer_is_an_error_and_not_this_machine(call):
    assert call("gpus", "--url", "http://127.0.0.1:9").status == 3


def test_watching_too_often_is_refused(call):
    done = call("gpus", "--watch", "--every", "0")
    assert (done.status, "--every" in done.err) == (2, True)


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    return FakeDriver(tmp_path, build_nvml(tmp_path))


def command(driver: FakeDriver, folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "llama_orch.cli.main", "gpus", "--data-dir", str(folder / "no-server"), *arguments]


def test_without_a_server_the_driver_is_asked_and_that_is_said(driver: FakeDriver, tmp_path: Path):
    driver.set(RTX_3090, RTX_3060)
    done = subprocess.run(
        command(driver, tmp_path), env=os.environ | driver.env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.splitlines()) == (
        0,
        ["No server runs: these are this machine's GPUs, as its driver tells of them now."],
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[1:4] for row in rows[1:3]] == [
        ["0", "NVIDIA GeForce RTX 3090", "1.3 / 24.0 GiB"],
        ["1", "NVIDIA GeForce RTX 3060", "0.7 / 12.0 GiB"],
    ]
    assert rows[3][1:3] == ["cpu", "memory"] or rows[3][2].startswith("memory")


def test_watching_as_json_is_a_line_for_each_look(driver: FakeDriver, tmp_path: Path):
    driver.set(RTX_3090)
    with subprocess.Popen(
        command(driver, tmp_path, "--watch", "--every", "0.05", "--json"),
        env=os.environ | driver.env,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        try:
            first = json.loads(process.stdout.readline())
            gpus = first["hosts"][0]["gpus"]
            driver.set(RTX_3090.but(used=9_000), RTX_3060)
            for line in process.stdout:
                gpus = json.loads(line)["hosts"][0]["gpus"]
                if len(gpus) == 2:
                    break
        finally:
            process.terminate()
    assert len(first["hosts"][0]["gpus"]) == 1
    assert gpus[0]["used_bytes"] == 9_000 * 2**20
