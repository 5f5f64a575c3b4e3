"""Series have the names, labels and bounds of the lint file (OBS-1); that each moves is shown in tests/contract/api."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from llama_orch.api.metrics import _HELP, OTHER, Metrics, lint
from llama_orch.core.events.task import TaskAdmitted, TaskCancelled, TaskEnded
from llama_orch.core.projections.projection import Recorded

from .fakes import FakeServices

#: what the contract names, so that neither code nor lint file loses one
PROMISED = {
    "tasks_enqueued_total": {"engine", "engine_version", "pool_id", "replica_id", "priority"},
    "tasks_started_total": {"engine", "engine_version", "pool_id", "replica_id", "priority"},
    "tasks_canceled_total": {"engine", "engine_version", "pool_id", "replica_id", "reason"},
    "tasks_rejected_total": {"engine", "reason"},
    "tokens_in_total": {"engine", "engine_version", "pool_id", "replica_id"},
    "tokens_out_total": {"engine", "engine_version", "pool_id", "replica_id"},
    "admission_backpressure_events_total": {"engine", "policy"},
    "placement_decisions_total": {"outcome", "pinned", "fallback"},
    "metrics_frames_dropped_total": set(),
    "queue_depth": {"engine", "engine_version", "pool_id", "priority"},
    "kv_cache_usage_ratio": {"engine", "engine_version", "pool_id", "replica_id"},
    "gpu_utilization": {"engine", "engine_version", "pool_id", "replica_id", "device"},
    "vram_used_bytes": {"engine", "engine_version", "pool_id", "replica_id", "device"},
    "placement_candidates_considered": set(),
    "model_state": {"model_id", "state"},
    "latency_first_token_ms": {"engine", "engine_version", "pool_id", "priority"},
    "latency_decode_ms": {"engine", "engine_version", "pool_id", "priority"},
}
BOUNDS = {"engine": 8, "engine_version": 64, "pool_id": 256, "replica_id": 1024, "priority": 8, "reason": 32}


def metrics_of(services: Any) -> Metrics:
    return Metrics(services)


def declared() -> dict[str, list[str]]:
    rules = lint()
    histograms = {name: rule["labels"] for name, rule in rules["histograms"].items()}
    return {**rules["counters"], **rules["gauges"], **histograms}


def recorded(payload: Any) -> Recorded:
    return Recorded(
        seq=1,
        frame_no=1,
        epoch=1,
        stream="",
        position=0,
        name="",
        time_ns=1,
        actor="",
        correlation="",
        payload=payload,
    )


def admitted(task_id: str, priority: str = "interactive") -> TaskAdmitted:
    return TaskAdmitted(
        task_id=task_id,
        owner="local",
        group="m",
        model_ref="m",
        workload="chat",
        priority=priority,
        body_id="",
        request_digest="",
        seed=1,
    )


def samples(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_the_lint_file_has_all_that_was_promised_under_its_labels() -> None:
    for name, labels in PROMISED.items():
        assert set(declared()[name]) == labels
    assert {name: lint()["bounds"][name] for name in BOUNDS} == BOUNDS


def test_every_label_has_a_bound_and_every_series_a_help() -> None:
    assert {label for labels in declared().values() for label in labels} <= set(lint()["bounds"])
    assert set(_HELP) == set(declared())


def test_buckets_of_latencies_are_those_that_were_promised() -> None:
    histograms = lint()["histograms"]
    assert histograms["latency_first_token_ms"]["buckets"] == [
        50, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000,
    ]  # fmt: skip
    assert histograms["latency_decode_ms"]["buckets"] == [
        250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000,
    ]  # fmt: skip


def test_the_registry_has_what_the_lint_file_has() -> None:
    metrics = metrics_of(FakeServices())
    kinds = {"counter": "counters", "gauge": "gauges", "histogram": "histograms"}
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name in lint()[kinds[family.type]]
    assert len(list(metrics.registry.collect())) == len(declared())


def test_values_past_a_bound_are_counted_together() -> None:
    metrics = metrics_of(FakeServices())
    for n in range(BOUNDS["reason"] + 5):
        metrics.fold([recorded(TaskCancelled(task_id=f"t{n}", reason=f"r{n}"))])
    found = samples(metrics)["tasks_canceled_total"]
    assert len(found) == BOUNDS["reason"] + 1
    assert sum(found.values()) == BOUNDS["reason"] + 5
    assert next(value for labels, value in found.items() if OTHER in labels) == 5


def test_ended_tasks_are_forgotten() -> None:
    metrics = metrics_of(FakeServices())
    ended = TaskEnded(task_id="a", outcome="completed", finish_reason="stop", entries=1, tokens_out=1, prompt_tokens=2)
    metrics.fold([recorded(admitted("a")), recorded(admitted("b")), recorded(ended)])
    assert set(metrics._tasks) == {"b"}
    found = samples(metrics)
    assert sum(found["tokens_in_total"].values()) == 2
    assert sum(found["tasks_enqueued_total"].values()) == 2


def test_gauges_of_pools_that_are_gone_disappear() -> None:
    services = FakeServices()
    metrics = metrics_of(services)
    assert "pool_ready" not in samples(metrics)
    assert samples(metrics)["journal_ok"] == {(): 1.0}
    services.journal.status = "refusing"
    assert samples(metrics)["journal_ok"] == {(): 0.0}
