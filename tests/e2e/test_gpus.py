"""GPUs through the whole server: driver, pool-managerd, socket, journal, routes, metrics, command line (PLC-3, OBS-1)."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ..nvml import RTX_3060, RTX_3090, FakeDriver, build_nvml

MIB = 1_048_576
SETTINGS = {
    "pools": [{"id": "mock", "engine": "mock", "model": "mock", "slots": 2}],
    "manager": {"sample_ms": 100},
    "streams": {"metrics_ms": 100},
}


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    driver = FakeDriver(tmp_path, build_nvml(tmp_path))
    driver.set(RTX_3090, RTX_3060)
    return driver


@pytest.fixture
def server(new_server: Any, home: Any, driver: FakeDriver) -> Any:
    home.environ |= driver.env
    return new_server(SETTINGS, home=home).start()


def local(server: Any) -> Any:
    (host,) = server.get("/v1/gpus")["hosts"]
    return host


def gpus_of(server: Any) -> dict[str, Any]:
    return {gpu["uuid"]: gpu for gpu in local(server)["gpus"]}


def journaled(server: Any) -> list[Any]:
    tail = server.get("/v1/journal/tail?stream=host:local&limit=1000")
    return [event["payload"] for event in tail["events"] if event["name"] == "gpu.observed"]


def metrics_of(server: Any) -> str:
    with urllib.request.urlopen(server.url + "/metrics", timeout=20) as answer:
        return answer.read().decode()


def test_cards_are_seen_by_routes_metrics_journal_and_command_line_as_they_change(
    server: Any, home: Any, driver: FakeDriver, eventually: Any
) -> None:
    eventually(lambda: len(gpus_of(server)) == 2, "two cards")
    host = local(server)
    assert (host["driver_version"], host["cuda_version"], host["trouble"]) == ("580.42", "13.2", None)
    assert 0 <= host["age_ms"] < 10_000
    assert host["memory"]["total_bytes"] > 0
    assert [d["device"] for d in server.get("/v1/capabilities")["devices"]] == ["cpu", RTX_3090.uuid, RTX_3060.uuid]
    assert home.json("gpus")["hosts"][0]["gpus"][0]["name"] == "NVIDIA GeForce RTX 3090"

    driver.set(RTX_3090.but(used=20_000, util=80), RTX_3060)
    eventually(lambda: gpus_of(server)[RTX_3090.uuid]["used_bytes"] == 20_000 * MIB, "a full card")
    series = f'vram_used_bytes{{device="{RTX_3090.uuid}",engine="",engine_version="",pool_id="",replica_id=""}}'
    line = next(line for line in metrics_of(server).splitlines() if line.startswith(series))
    assert float(line.rsplit(" ", 1)[1]) == 20_000 * MIB
    eventually(lambda: journaled(server)[-1]["gpus"][0]["used_mib"] == 20_000, "the card in the journal")

    driver.set(RTX_3060)
    eventually(lambda: gpus_of(server)[RTX_3090.uuid]["trouble"], "a lost card")
    assert gpus_of(server)[RTX_3090.uuid]["trouble"]["cause"] == "gpu-lost"
    assert RTX_3090.uuid not in metrics_of(server)
    eventually(lambda: journaled(server)[-1]["gpus"][-1].get("trouble") == "gpu-lost", "the loss in the journal")

    driver.set(lines=["gone 9"])
    eventually(lambda: local(server)["trouble"], "a driver that is gone")
    assert local(server)["trouble"]["cause"] == "driver-gone"
    assert [d["device"] for d in server.get("/v1/capabilities")["devices"]] == ["cpu"]
    eventually(lambda: journaled(server)[-1].get("trouble") == "driver-gone", "its end in the journal")

    driver.set(RTX_3090, RTX_3060)
    eventually(
        lambda: not local(server)["trouble"] and not any(g["trouble"] for g in gpus_of(server).values()), "all back"
    )
    eventually(lambda: "trouble" not in journaled(server)[-1], "their return in the journal")
    assert len(journaled(server)) <= 8


def test_tasks_go_on_while_the_driver_hangs(server: Any, driver: FakeDriver, eventually: Any) -> None:
    eventually(lambda: len(gpus_of(server)) == 2, "two cards")
    driver.set(RTX_3090, RTX_3060, lines=["hang nvmlDeviceGetMemoryInfo_v2"])
    eventually(lambda: (local(server)["trouble"] or {}).get("cause") == "no-answer", "a hanging driver")
    assert "nvmlDeviceGetMemoryInfo has not returned" in local(server)["trouble"]["message"]
    done = server.post("/v1/tasks", {"model_ref": "mock", "prompt": "x"})
    assert server.get(f"/v1/tasks/{done['task_id']}?wait=20000")["state"] == "completed"
    eventually(lambda: journaled(server)[-1].get("trouble") == "no-answer", "the silence in the journal")
    driver.set(RTX_3090, RTX_3060)
    eventually(lambda: local(server)["trouble"] is None, "answers again")


def test_metrics_frames_stand_between_tokens_without_an_id(server: Any) -> None:
    task = server.post("/v1/tasks", {"model_ref": "mock", "prompt": "[[mock rate=40]] a b c", "max_tokens": 60})
    with urllib.request.urlopen(f"{server.url}/v1/tasks/{task['task_id']}/stream?metrics=1", timeout=60) as answer:
        frames = [
            dict(line.split(": ", 1) for line in part.splitlines() if ": " in line and line[0] != ":")
            for part in answer.read().decode().split("\n\n")
        ]
    kinds = [frame.get("event") for frame in frames if "event" in frame]
    metrics = [frame for frame in frames if frame.get("event") == "metrics"]
    assert metrics, kinds
    assert kinds[0] == "started"
    assert kinds[-1] == "end"
    assert all("id" not in frame for frame in metrics)
    assert all("id" in frame for frame in frames if frame.get("event") in {"started", "token", "end"})
    assert all(json.loads(frame["data"])["queue_depth"] == 0 for frame in metrics)
    assert max(json.loads(frame["data"]).get("tokens_per_second", 0) for frame in metrics) > 0
