"""Metrics frames: for readers who ask, at most one a period, dropped before any token is late (STR-5)."""

from __future__ import annotations

from typing import Any

import pytest

from llama_orch.core.devices import GpuReading, HostSample
from llama_orch.core.events.pool import PoolReady

from ...support.reader import Reader
from ...support.stage import Stage, on_stage

PERIOD_MS = 1_000


def running(stage: Stage, cached_tokens: int = 0, **fields: Any) -> str:
    task_id = stage.submit(**fields).task_id
    stage.attempt(task_id).start(cached_tokens=cached_tokens)
    stage.settle()
    return task_id


def asking(stage: Stage, task_id: str, **options: Any) -> Reader:
    return stage.reader(task_id, metrics_ms=PERIOD_MS, **options)


def say(stage: Stage, task_id: str, *texts: str) -> None:
    stage.attempt(task_id).say(*texts)
    stage.settle()


def test_who_does_not_ask_gets_none_and_costs_no_timer() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        before = len(list(stage.loop.timers()))
        reader = stage.reader(task_id)
        assert len(list(stage.loop.timers())) == before + 1, "its heartbeat alone"
        stage.advance(10)
        assert reader.metrics == []


@pytest.mark.parametrize("fast", [False, True])
def test_who_asks_gets_one_a_period_and_reads_the_same_stream(fast: bool) -> None:
    with on_stage() as stage:
        task_id = running(stage)
        asks, plain = asking(stage, task_id, fast=fast), stage.reader(task_id, fast=fast)
        for second in range(5):
            for n in range(4):
                stage.advance(0.24)
                say(stage, task_id, f"{second}.{n} ")
            stage.advance(0.04)
        assert len(asks.metrics) == 5
        stage.attempt(task_id).end()
        stage.settle()
        stage.advance(5)
        assert len(asks.metrics) == 5, "none behind the end"
        assert (asks.ids, asks.texts, asks.ended) == (plain.ids, plain.texts, plain.ended)
        assert stage.services.streams.metrics_dropped == 0
        late = asking(stage, task_id, after=asks.ids[3])
        assert late.ids == asks.ids[4:]


def test_the_rate_is_that_since_the_last_frame() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        reader = asking(stage, task_id)
        for count in (10, 0, 3):
            stage.advance(0.5)
            if count:
                say(stage, task_id, *["x"] * count)
            stage.advance(0.5)
        assert [data["tokens_per_second"] for _, data in reader.metrics] == [10.0, 0.0, 3.0]


def test_what_waits_is_told_to_who_runs_and_to_who_waits() -> None:
    with on_stage() as stage:
        first = running(stage)
        waiting = [stage.submit(priority=priority).task_id for priority in ("interactive", "batch")]
        runs, waits = asking(stage, first), asking(stage, waiting[1])
        stage.advance(1)
        assert runs.metrics[0][1]["queue_depth"] == 2
        assert "queue_position" not in runs.metrics[0][1]
        told = waits.metrics[0][1]
        assert (told["queue_depth"], told["queue_position"]) == (2, 1)
        assert not {"tokens_per_second", "kv_warmth", "gpus"} & told.keys(), "nothing runs yet"


def test_the_chance_is_told_where_there_is_a_deadline() -> None:
    with on_stage() as stage:
        plain, bounded = running(stage), stage.submit(deadline_ms=60_000).task_id
        readers = [asking(stage, plain), asking(stage, bounded)]
        stage.advance(1)
        assert "on_time_probability" not in readers[0].metrics[0][1]
        assert 0 <= readers[1].metrics[0][1]["on_time_probability"] <= 1


@pytest.mark.parametrize("cached, strict, warmth", [(0, False, None), (2, False, True), (0, True, False)])
def test_the_caches_warmth_is_told_where_it_is_known(cached: int, strict: bool, warmth: bool | None) -> None:
    with on_stage() as stage:
        fields = {"determinism": "strict"} if strict else {}
        reader = asking(stage, running(stage, cached_tokens=cached, **fields))
        stage.advance(1)
        assert reader.metrics[0][1].get("kv_warmth") is warmth


def test_the_gpus_of_the_tasks_pool_are_told_while_their_sample_is_fresh() -> None:
    with on_stage() as stage:
        observed = stage.journal.head.pools.by_id["p"].observed
        assert observed is not None
        ready = PoolReady(
            pool_id="p", replica_id="r0", generation=1, engine_version="1", slots=1, ctx=4096, devices=["GPU-1"]
        )
        with stage.loop.running():
            stage.journal.append([ready], actor="test", correlation="")
            stage.services.gpus.receive(
                HostSample(
                    host="local",
                    gpus=[
                        GpuReading(uuid="GPU-1", total_bytes=8, used_bytes=5, utilization_percent=71),
                        GpuReading(uuid="GPU-2", total_bytes=9, used_bytes=1, utilization_percent=2),
                    ],
                )
            )
        reader = asking(stage, running(stage))
        stage.advance(1)
        assert reader.metrics[0][1]["gpus"] == [
            {"device": "GPU-1", "utilization_percent": 71, "vram_used_bytes": 5, "vram_total_bytes": 8}
        ]
        stage.advance(60)
        assert "gpus" not in reader.metrics[-1][1], "an old sample is no answer"


def test_a_reader_without_room_gets_tokens_and_no_metrics() -> None:
    with on_stage(buffer_bytes=4_096) as stage:
        task_id = running(stage)
        stalled = asking(stage, task_id, stalled=True)
        for n in range(40):
            say(stage, task_id, f"{n} ")
            stage.advance(0.25)
        assert stage.services.streams.metrics_dropped == 10
        stage.attempt(task_id).end()
        stage.settle()
        stalled.go()
        assert stalled.texts == [f"{n} " for n in range(40)]
        assert stalled.metrics == []


def test_what_was_committed_meanwhile_comes_first() -> None:
    with on_stage() as stage:
        task_id = running(stage)
        due = stage.loop.time() + PERIOD_MS / 1_000
        reader = asking(stage, task_id)

        def at_that_moment() -> None:
            stage.attempt(task_id).say("first ")
            stage.journal._flush()

        stage.loop.call_at(due, at_that_moment)
        stage.advance(1)
        assert (reader.texts, reader.metrics) == (["first "], [])
        assert stage.services.streams.metrics_dropped == 1
        stage.advance(1)
        assert [seen for seen, _ in reader.metrics][-1] == 2


def test_a_late_server_sends_none() -> None:
    with on_stage() as stage:
        reader = asking(stage, running(stage))
        stage.loop._now_s += 1.5  # somebody held the loop up
        stage.settle()
        assert (reader.metrics, stage.services.streams.metrics_dropped) == ([], 1)
        stage.advance(1)
        assert len(reader.metrics) == 1


def test_a_journal_under_pressure_comes_first() -> None:
    with on_stage(by_hand=True, pending_bytes=65_536) as stage:
        task_id = running(stage)
        reader = asking(stage, task_id)
        while not stage.journal.pressure():
            stage.attempt(task_id).say("x" * 4_000)
            stage.turn()
        stage.loop.advance(1)
        assert (reader.metrics, stage.services.streams.metrics_dropped) == ([], 1)


def test_metrics_that_cannot_be_read_break_no_stream() -> None:
    with on_stage() as stage:

        def broken(*_: object) -> int:
            raise ZeroDivisionError

        stage.services.streams._metrics._on_time = broken
        task_id = running(stage)
        reader = asking(stage, task_id)
        stage.advance(3)
        say(stage, task_id, "a")
        stage.attempt(task_id).end()
        stage.settle()
        assert (reader.texts, reader.metrics) == (["a"], [])
        assert reader.ended is not None
