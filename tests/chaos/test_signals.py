"""Signals: an orderly stop under load, a second server on the same journal, and processes that are killed (RCV-1 to RCV-3)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from llama_orch.pools.identity import process_table

from ..engines.tiny_gguf import VARIANTS, write_model
from .audit import History
from .load import Followed, Ledger, Load
from .settle import finish, settle
from .world import HAIKU_POOL, PATIENCE_S, World, mock_engine, mock_pool, world

#: more than admission.max_attempts: an orderly stop is no fault of an engine
STOPS = 7


def long_request(rng: random.Random) -> dict[str, Any]:
    tokens = rng.randrange(200, 600)
    return {"model_ref": "mock", "prompt": f"[[mock tokens={tokens} rate=150]] {rng.getrandbits(32)}"}


@pytest.mark.slow
def test_orderly_stops_under_load_tell_readers_and_lose_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mock_engine() as engine, world(tmp_path, [mock_pool(engine)]) as place:
            load = Load(place.port, Ledger(), seed=5, make=long_request, cancels=0)
            load.start(4)
            try:
                for _ in range(STOPS):
                    await place.start()
                    await load.goes_on(60)
                    assert await place.stop() == 0
                    assert not (place.data / "server.json").exists()
                assert len(load.ledger.transport_errors) >= STOPS, "streams are told before the server is gone"
                figures = await settle(place, load)
            finally:
                await load.abort()
            assert set(figures.outcomes) == {"completed"}
            history = History(place.open_store())
            failures = {code for told in history.tasks.values() for code in told.attempts_failed}
            assert failures == {"restart"}
            assert await engine.slots_busy() == 0

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_second_server_on_one_journal_refuses_with_a_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mock_engine() as engine, world(tmp_path, [mock_pool(engine)]) as place:
            await place.start()
            await place.ready()
            first = place.pid
            told = json.loads(place.config.read_text())
            other = tmp_path / "other.yaml"
            other.write_text(json.dumps(told | {"bind": "127.0.0.1:0"}))
            log = tmp_path / "other.log"
            second = await place.zygote.fork(argv=["serve", "--config", str(other)], folder=str(tmp_path), log=str(log))
            assert await place.zygote.ended(second) == 1
            said = log.read_text()
            assert "another server" in said
            assert f"process {first}" in said
            assert "--data-dir" in said
            assert "Traceback" not in said
            answer = await place.call("POST", "/v1/tasks", {"model_ref": "mock", "prompt": "still here"})
            assert answer.status == 202
            assert await place.stop() == 0

    asyncio.run(scenario())


def model_pool(path: Path, *, slots: int = 2, ctx: int = 2048) -> dict[str, Any]:
    """A pool that runs a model file on real llama.cpp."""
    return {
        "id": "tiny",
        "engine": "llamacpp",
        "model": str(path),
        "slots": slots,
        "ctx": ctx,
        "provisioning": {"threads": 1},
    }


async def follow_new(place: World, load: Load, key: str, **request: Any) -> tuple[Followed, asyncio.Task[None]]:
    """Submit one task and follow it beside the test."""
    task = Followed(key, {"model_ref": "tiny", "prompt": "once upon", **request})
    load.ledger.tasks.append(task)
    await load.submit(task)
    return task, asyncio.create_task(load.follow(task))


@pytest.mark.slow
@pytest.mark.real_llama
def test_an_engine_that_is_killed_mid_stream_is_started_again_and_the_stream_goes_on(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", VARIANTS["slow"])

    async def scenario() -> None:
        async with world(tmp_path, [model_pool(model)]) as place:
            await place.start()
            await place.ready()
            load = Load(place.port, Ledger(), seed=1)
            engine = place.engine_pid("tiny")
            tasks = [await follow_new(place, load, f"task-{n}", max_tokens=300, seed=n) for n in range(2)]
            await load.ledger.more(80)
            os.kill(engine, signal.SIGKILL)
            for _, following in tasks:
                await following
            assert place.engine_pid("tiny") != engine
            await finish(place, load)
            history = History(place.open_store())
            for task, _ in tasks:
                assert task.connections == 1, "readers notice nothing"
                told = history.tasks[task.task_id]
                assert told.ended.outcome == "completed"
                assert told.ended.tokens_out == 300
                assert told.ended.recovery_used in ("regenerate", "continue")
                print(f"\nengine killed: {told.ended.attempts} attempts, {told.ended.recovery_used}")

    asyncio.run(scenario())


@pytest.mark.slow
def test_an_engine_of_somebody_else_that_is_gone_for_a_while_costs_no_task_its_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mock_engine() as engine, world(tmp_path, [mock_pool(engine)]) as place:
            await place.start()
            await place.ready()
            load = Load(place.port, Ledger(), seed=3, cancels=0)
            load.start(8)
            try:
                for _ in range(2):
                    await load.goes_on(200)
                    engine.kill()
                    async with asyncio.timeout(PATIENCE_S):
                        while (await place.call("GET", "/readyz")).status == 200:
                            await asyncio.sleep(0.05)
                    await engine.start()
                await load.goes_on(200)
                figures = await finish(place, load)
            finally:
                await load.abort()
            assert set(figures.outcomes) <= {"completed", "failed INTERRUPTED"}, "only what asked for no recovery"

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.real_llama
def test_an_engine_outlives_its_server_and_is_adopted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path, [HAIKU_POOL]) as place:
            await place.start()
            await place.ready()
            record = json.loads((place.data / "engines" / "haiku.json").read_text())
            engine = place.engine_pid("haiku")
            await place.kill()
            assert process_table().start_ticks(engine) is not None
            await place.start()
            await place.ready()
            again = json.loads((place.data / "engines" / "haiku.json").read_text())
            assert again == record | {"told_epoch": again["told_epoch"]}
            answer = await place.call("POST", "/v1/tasks", {"model_ref": "haiku", "prompt": "rain"})
            waited = await place.call("GET", f"/v1/tasks/{answer.body['task_id']}?wait=60000")
            assert waited.body["state"] == "completed"
            assert await place.stop() == 0
            # an orderly stop takes the engine along
            assert process_table().start_ticks(engine) is None

    asyncio.run(scenario())
