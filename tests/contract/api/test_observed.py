"""Metrics move and lines are logged under load (OBS-1, OBS-2)."""

from __future__ import annotations

import io
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llama_orch.api.logs import EventLog, LineWriter
from llama_orch.api.metrics import lint
from llama_orch.core.devices import GpuReading, HostSample
from llama_orch.core.events.pool import PoolDraining, PoolMeasured, PoolReady
from llama_orch.core.settings import PoolSettings, QueueSettings, StreamSettings

from .live_server import LiveServer

CANARY = "xylophone-canary-7731"


def values(http: httpx.Client) -> dict[str, float]:
    """The sum of each series over its labels; of histograms their counts."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_sum")):
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


@pytest.fixture
def small(make_server: Callable[..., LiveServer]) -> LiveServer:
    """One slot, one place in the queue, whose oldest batch task makes room; metrics frames every 20 ms."""
    queue = QueueSettings(capacity=1, full_policy="drop-lru")
    return make_server(
        pools=[PoolSettings(id="m", engine="mock", model="mock", slots=1, queue=queue)],
        streams=StreamSettings(metrics_ms=20),
    )


@pytest.fixture
def http(small: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=small.url, timeout=20) as client:
        yield client


def submit(http: httpx.Client, prompt: str, **fields: object) -> httpx.Response:
    return http.post("/v1/tasks", json={"model_ref": "mock", "prompt": prompt, **fields})


def test_every_series_moves(http: httpx.Client, small: LiveServer) -> None:
    before = values(http)
    pools = small.services.pools
    session = str(uuid.uuid4())
    # A task that runs, one that waits and is dropped, one that takes its place, one for which there is no room.
    running = submit(http, "[[mock fault=silent:2]]", session_id=session).json()["task_id"]
    until(lambda: http.get(f"/v1/tasks/{running}").json()["state"] == "running", "the start")
    submit(http, "x", priority="batch")
    waiting = submit(http, "x").json()["task_id"]
    assert submit(http, "x").status_code == 429
    assert http.post("/v1/tasks", json={"model_ref": "no", "prompt": "x"}).status_code == 404
    assert http.put("/v1/budgets/key/local", json={"tokens": 0}).status_code == 200
    assert submit(http, "x").status_code == 402
    assert http.delete("/v1/budgets/key/local").status_code == 204
    with http.stream("GET", f"/v1/tasks/{running}/stream?metrics=1") as answer:
        reading = answer.iter_bytes()
        next(reading)
        during = values(http)
        small.call(time.sleep, 0.1)  # the server is late: frames that were due are dropped
    http.post(f"/v1/tasks/{running}/cancel")
    assert http.get(f"/v1/tasks/{waiting}", params={"wait": 20_000}).json()["state"] == "completed"
    # The pool's engine fails, comes back as another process, and is drained.
    properties = small.call(lambda: pools._journal.head.pools.by_id["m"].observed)
    assert properties is not None
    small.call(lambda: small.host.unready("m", "driver-reset", detail="gone"))
    until(lambda: values(http)["pool_ready"] == 0, "an unready pool")
    unready = values(http)

    async def again() -> None:
        from llama_orch.core.engine_ports import EngineProperties

        known = EngineProperties(engine_version="mock-1", model_name="mock", slots=1, ctx=4096)
        small.host.ready("m", known, generation=2, decode_mtok_s=0)
        small.services.journal.append([PoolDraining(pool_id="m", deadline_ms=1)], actor="test", correlation="")

    small.run(again())
    until(lambda: values(http).get("drain_events_total", 0) > 0, "a drain")
    after = values(http)

    counters = lint()["counters"]
    assert set(counters) <= set(after)
    for name in counters:
        assert after[name] > before.get(name, 0), name
    for name in lint()["histograms"]:
        assert after[f"{name}_count"] > before.get(f"{name}_count", 0), name
    assert (before["queue_depth"], during["queue_depth"]) == (0, 1)
    assert (before["active_leases"], during["active_leases"]) == (0, 1)
    assert (before["active_sessions"], during["active_sessions"]) == (0, 1)
    assert (before["active_streams"], during["active_streams"]) == (0, 1)
    assert (before["placement_candidates_considered"], after["placement_candidates_considered"]) == (0, 1)
    assert (before["pool_ready"], unready["pool_ready"]) == (1, 0)
    ready, not_ready = (
        'model_state{model_id="mock",state="ready"} 1.0',
        'model_state{model_id="mock",state="unready"} 0.0',
    )
    assert {ready, not_ready} <= set(http.get("/metrics").text.splitlines())
    assert after["journal_ok"] == 1
    assert (before["kv_cache_usage_ratio"], after["kv_cache_usage_ratio"]) == (0, 0)
    assert during["kv_cache_usage_ratio"] > 0


def gpu_series(http: httpx.Client) -> dict[tuple[str, str, str], float]:
    """``(series, pool, device)`` and the value."""
    return {
        (sample.name, sample.labels["pool_id"], sample.labels["device"]): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
        if "device" in sample.labels
    }


def test_series_of_gpus_follow_their_samples_and_end_with_them(http: httpx.Client, small: LiveServer) -> None:
    gpus = [
        GpuReading(uuid="GPU-1", used_bytes=900, utilization_percent=40),
        GpuReading(uuid="GPU-2", used_bytes=70),
        GpuReading(uuid="GPU-3", trouble="gpu-lost"),
    ]
    ready = PoolReady(
        pool_id="m", replica_id="r0", generation=1, engine_version="mock-1", slots=1, ctx=9, devices=["GPU-1"]
    )
    assert gpu_series(http) == {}
    small.call(lambda: small.services.journal.append([ready], actor="test", correlation=""))
    small.call(small.services.gpus.receive, HostSample(host="local", gpus=gpus))
    assert gpu_series(http) == {
        ("gpu_utilization", "m", "GPU-1"): 0.4,
        ("vram_used_bytes", "", "GPU-1"): 900,
        ("vram_used_bytes", "", "GPU-2"): 70,
    }
    measured = PoolMeasured(pool_id="m", generation=1, observed_bytes={"GPU-1": 600})
    small.call(lambda: small.services.journal.append([measured], actor="test", correlation=""))
    assert gpu_series(http) == {
        ("gpu_utilization", "m", "GPU-1"): 0.4,
        ("vram_used_bytes", "m", "GPU-1"): 600,
        ("vram_used_bytes", "", "GPU-1"): 300,
        ("vram_used_bytes", "", "GPU-2"): 70,
    }
    gone = HostSample(host="local", gpus=gpus, trouble="driver-gone")
    small.call(small.services.gpus.receive, gone)
    assert gpu_series(http) == {}, "what is not known has no series"


def test_every_sample_has_the_labels_of_the_lint_file_and_known_values(http: httpx.Client) -> None:
    task_id = submit(http, "x").json()["task_id"]
    http.get(f"/v1/tasks/{task_id}", params={"wait": 20_000})
    rules = lint()
    labels = {**rules["counters"], **rules["gauges"], **{n: r["labels"] for n, r in rules["histograms"].items()}}
    until(lambda: values(http).get("tokens_out_total", 0) == 16, "the end in the metrics")
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            name = re.sub(r"_(bucket|sum|count)$", "", sample.name) if family.type == "histogram" else sample.name
            assert set(sample.labels) - {"le"} == set(labels[name])
            if "pool_id" in sample.labels and "engine_version" in sample.labels:
                assert (sample.labels["pool_id"], sample.labels["engine_version"]) == ("m", "mock-1")


def test_a_task_is_logged_in_sentences_without_prompt_and_without_secret(
    make_server: Callable[..., LiveServer],
) -> None:
    out = io.StringIO()
    server = make_server(log=EventLog(LineWriter(out)))
    with httpx.Client(base_url=server.url, timeout=20) as http:
        answer = http.post(
            "/v1/tasks",
            json={"model_ref": "mock", "prompt": CANARY},
            headers={"Authorization": f"Bearer sk-{CANARY}", "X-Correlation-Id": "corr-1"},
        )
        task_id = answer.json()["task_id"]
        http.get(f"/v1/tasks/{task_id}", params={"wait": 20_000})
        http.post("/v1/tasks", json={"model_ref": "mok", "prompt": CANARY})
    server.stop()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    mine = [line for line in lines if line.get("task_id") == task_id]
    assert [line["event"] for line in mine] == ["task.admitted", "task.placed", "task.started", "task.ended"]
    assert {line["correlation_id"] for line in mine} == {"corr-1"}
    assert all(line["human"].endswith(".") for line in lines)
    assert "task.rejected" in [line["event"] for line in lines]
    assert CANARY not in out.getvalue()
