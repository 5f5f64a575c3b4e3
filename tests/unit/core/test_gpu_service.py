"""Samples of hosts: the latest in memory with its age, in the journal what changed by more than a tremble (PLC-3)."""

from __future__ import annotations

from typing import Any

import pytest

from llama_orch.core.devices import CAUSES, GpuReading, HostSample, MemoryReading
from llama_orch.core.events.gpu import GpuObserved
from llama_orch.core.events.pool import PoolReady
from llama_orch.core.services.caller import Caller
from llama_orch.core.settings import HostSettings, PoolSettings, Settings

from ...support.stage import Stage, on_stage

MIB = 1_048_576
GIB = 1_024 * MIB


def gpu(used: int = GIB, **changes: Any) -> GpuReading:
    fields: dict[str, Any] = {
        "total_bytes": 24 * GIB,
        "utilization_percent": 10,
        "temperature_c": 40,
        "power_mw": 50_000,
    } | changes
    return GpuReading(uuid="GPU-1", name="RTX 3090", used_bytes=used, **fields)


def sample(*gpus: GpuReading, **changes: Any) -> HostSample:
    fields: dict[str, Any] = {
        "host": "local",
        "memory": MemoryReading(64 * GIB, 32 * GIB),
        "driver_version": "580",
    } | changes
    return HostSample(gpus=list(gpus), **fields)


def send(stage: Stage, *samples: HostSample, every_s: float = 1) -> None:
    for one in samples:
        with stage.loop.inside():
            stage.services.gpus.receive(one)
        stage.advance(every_s)


def observed(stage: Stage) -> list[GpuObserved]:
    return stage.payloads(GpuObserved)


def be_on(stage: Stage, *devices: str) -> None:
    """The pool's engine runs on these."""
    ready = PoolReady(
        pool_id="p", replica_id="r0", generation=1, engine_version="1", slots=1, ctx=9, devices=list(devices)
    )
    with stage.loop.running():
        stage.journal.append([ready], actor="test", correlation="")


def only_view(stage: Stage) -> Any:
    (view,) = stage.services.gpus.views()
    return view


def test_the_first_sample_is_journaled_and_the_same_again_is_not() -> None:
    with on_stage() as stage:
        send(stage, *[sample(gpu())] * 30)
        (event,) = observed(stage)
        assert (event.host, event.driver, event.trouble) == ("local", "580", "")
        assert (event.memory_total_mib, event.memory_available_mib) == (64 * 1024, 32 * 1024)
        (record,) = event.gpus
        assert (record.uuid, record.total_mib, record.used_mib, record.utilization_percent) == (
            "GPU-1",
            24_576,
            1_024,
            10,
        )
        assert stage.journal.head.gpus.by_host["local"] == event


def test_a_card_that_fills_is_journaled_at_once() -> None:
    with on_stage() as stage:
        send(stage, sample(gpu()), sample(gpu(20 * GIB)), every_s=0.1)
        assert [event.gpus[0].used_mib for event in observed(stage)] == [1_024, 20_480]


def test_small_changes_are_journaled_every_ten_seconds_at_most() -> None:
    with on_stage() as stage:
        send(stage, *[sample(gpu(GIB + n * 20 * MIB, temperature_c=40 + n)) for n in range(41)])
        events = observed(stage)
        assert 4 <= len(events) <= 6
        stage.advance(10)
        send(stage, sample(gpu(GIB + 40 * 20 * MIB, temperature_c=80)))
        assert observed(stage)[-1].gpus[0].used_mib >= 1_024 + 40 * 20
        assert observed(stage)[-1].gpus[0].temperature_c == 80


def test_a_flickering_load_is_smoothed() -> None:
    with on_stage() as stage:
        send(stage, *[sample(gpu(utilization_percent=100 * (n % 2))) for n in range(240)])
        assert len(observed(stage)) <= 12
        assert 30 <= observed(stage)[-1].gpus[0].utilization_percent <= 70
        assert only_view(stage).gpus[0].utilization_percent == 100, "people see the sample itself"


@pytest.mark.parametrize("cause", ["gpu-lost", "reset-required"])
def test_a_lost_card_is_journaled_at_once_and_its_return_too(cause: str) -> None:
    with on_stage() as stage:
        send(stage, sample(gpu()), sample(GpuReading(uuid="GPU-1", trouble=cause)), sample(gpu()))
        assert [event.gpus[0].trouble for event in observed(stage)] == ["", cause, ""]


def test_the_age_grows_and_an_old_sample_is_said_and_journaled_without_a_new_one() -> None:
    with on_stage() as stage:
        send(stage, sample(gpu(), age_ms=200), every_s=3)
        view = only_view(stage)
        assert (view.age_ms, view.trouble) == (3_200, None)
        stage.advance(20)
        view = only_view(stage)
        assert (view.age_ms, view.trouble.cause) == (23_200, "stale")
        assert view.gpus[0].used_bytes == GIB, "what was known last, marked as old"
        assert [event.trouble for event in observed(stage)] == ["", "stale"]
        assert observed(stage)[-1].gpus == observed(stage)[0].gpus
        stage.advance(60)
        assert len(observed(stage)) == 2
        send(stage, sample(gpu()))
        assert observed(stage)[-1].trouble == ""
        assert only_view(stage).trouble is None


def test_a_driver_that_hangs_makes_the_sample_old_although_it_is_sent() -> None:
    with on_stage() as stage:
        send(stage, *[sample(gpu(), age_ms=n * 1_000, trouble="no-answer" if n > 5 else "") for n in range(9)])
        assert [event.trouble for event in observed(stage)] == ["", "no-answer"]
        send(stage, sample(gpu(), age_ms=11_000))
        assert observed(stage)[-1].trouble == "stale"


def test_after_a_restart_what_the_journal_holds_is_old_until_it_is_confirmed() -> None:
    with on_stage() as stage:
        send(stage, sample(gpu()))
        stage.restart()
        assert only_view(stage).trouble.cause == "no-sample"
        assert stage.journal.head.gpus.by_host["local"].trouble == ""
        stage.advance(20)
        assert [event.trouble for event in observed(stage)] == ["", "stale"]
        send(stage, sample(gpu()))
        stage.restart()
        send(stage, sample(gpu()))
        stage.advance(1)
        assert [event.trouble for event in observed(stage)] == ["", "stale", ""], "confirmed, so nothing changed"


def test_a_driver_that_has_not_answered_yet_makes_nothing_unknown() -> None:
    with on_stage() as stage:
        opening = sample(trouble="no-sample")
        send(stage, opening)
        assert [(event.trouble, event.memory_total_mib) for event in observed(stage)] == [("no-sample", 64 * 1024)]
        send(stage, sample(gpu()), opening, opening, sample(gpu()))
        assert [event.trouble for event in observed(stage)] == ["no-sample", ""]


def test_what_cannot_be_journaled_is_journaled_when_it_can() -> None:
    with on_stage() as stage:
        stage.journal.status = "refusing"
        send(stage, sample(gpu()))
        stage.journal.status = "ok"
        assert observed(stage) == []
        send(stage, sample(gpu()))
        assert len(observed(stage)) == 1


def test_hosts_that_said_nothing_are_shown_as_such() -> None:
    settings = Settings(
        pools=[PoolSettings(id="p", engine="mock", model="m", slots=1)],
        hosts=[HostSettings(id="far", address="far:1", key_file="k")],
    )
    with on_stage(settings=settings) as stage:
        send(stage, sample(gpu()))
        views = stage.services.gpus.views()
        assert [(view.host, view.age_ms is None) for view in views] == [("far", True), ("local", False)]
        assert views[0].trouble is not None
        assert views[0].trouble.advice == CAUSES["no-sample"][1]


def test_pools_are_named_with_the_cards_that_they_hold_memory_on() -> None:
    with on_stage() as stage:
        be_on(stage, "GPU-1")
        send(stage, sample(gpu(), GpuReading(uuid="GPU-2")))
        assert [g.pools for g in only_view(stage).gpus] == [["p"], []]


def test_a_pools_health_has_its_own_devices_and_what_is_wrong_with_them() -> None:
    with on_stage() as stage:
        be_on(stage, "GPU-1")
        gpus, pool = stage.services.gpus, stage.journal.head.pools.by_id["p"]
        assert getattr(gpus.view_of_pool(pool).trouble, "cause", "") == "no-sample"
        send(stage, sample(GpuReading(uuid="GPU-1", trouble="gpu-lost"), GpuReading(uuid="GPU-2"), age_ms=30))
        view = gpus.view_of_pool(pool)
        assert [(g.uuid, getattr(g.trouble, "cause", ""), g.pools) for g in view.gpus] == [("GPU-1", "gpu-lost", ["p"])]
        assert view.age_ms == 1_030


def test_capabilities_name_what_can_be_placed_on() -> None:
    with on_stage() as stage:
        assert stage.services.capabilities.report(Caller())["devices"] == []
        send(stage, sample(gpu(), GpuReading(uuid="GPU-2", trouble="gpu-lost")))
        assert stage.services.capabilities.report(Caller())["devices"] == [
            {"device": "cpu", "host": "local", "total_bytes": 64 * GIB},
            {"device": "GPU-1", "host": "local", "name": "RTX 3090", "total_bytes": 24 * GIB},
        ]
        send(stage, sample(gpu(), trouble="driver-gone"))
        assert [d["device"] for d in stage.services.capabilities.report(Caller())["devices"]] == ["cpu"]


def test_every_cause_has_words_and_advice() -> None:
    for cause, (said, todo) in CAUSES.items():
        assert said, cause
        assert todo.endswith((".", "'")), cause
