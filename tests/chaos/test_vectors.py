"""Real llama.cpp dies while it embeds, and is left while it embeds (RCV-2, CAN-1)."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from llama_orch.plugins import GenerateJob
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.testing.engines import PATIENCE_S, Recorder

from ..engines.real_llama import llama_server
from ..engines.tiny_gguf import VARIANTS, write_model
from .test_signals import model_pool
from .world import World, world

pytestmark = [pytest.mark.slow, pytest.mark.real_llama]

#: long enough for the slow model to be met while it is at it
TEXTS = [f"{n} words, " * 3 for n in range(20)]


async def submit(place: World) -> str:
    task = {"model_ref": "tiny", "workload": "embedding", "inputs": TEXTS}
    answer = await place.call("POST", "/v1/tasks", task)
    assert answer.status == 202, answer.body
    return str(answer.body["task_id"])


async def ended(place: World, task_id: str) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await place.call("GET", f"/v1/tasks/{task_id}")
            if answer.body["state"] not in ("queued", "placed", "running"):
                return dict(answer.body)
            await asyncio.sleep(0.02)


async def embeds(port: int) -> None:
    """Wait until the engine is at it."""
    engine = LlamaCpp({"url": f"http://127.0.0.1:{port}"})
    async with asyncio.timeout(PATIENCE_S):
        while not await engine.slots_in_use():
            await asyncio.sleep(0.01)
    await engine.close()


def test_an_engine_that_dies_while_it_embeds_is_asked_again_for_all_of_it(tmp_path: Path) -> None:
    pool = model_pool(write_model(tmp_path / "tiny.gguf", VARIANTS["slow"]))
    pool["provisioning"]["options"] = {"embedding": True, "pooling": "mean"}

    async def scenario() -> None:
        async with world(tmp_path, [pool]) as place:
            await place.start()
            await place.ready()
            engine = place.engine_pid("tiny")
            struck = await submit(place)
            await embeds(place.engine_port("tiny"))
            os.kill(engine, signal.SIGKILL)
            told = await ended(place, struck)
            whole = await ended(place, await submit(place))
            assert place.engine_pid("tiny") != engine
            assert (told["state"], whole["state"]) == ("completed", "completed")
            assert told["attempts"] > 1
            assert len(told["embeddings"]) == len(TEXTS)
            assert told["embeddings"] == whole["embeddings"]

    asyncio.run(scenario())


def test_who_leaves_while_it_embeds_leaves_a_slot_that_is_seen_free(tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        engine = LlamaCpp({"url": url})
        left, after = Recorder(), Recorder()
        job = GenerateJob(task_id="t", attempt=1, workload="embedding", inputs=TEXTS)
        handle = engine.generate(job, left)
        async with asyncio.timeout(PATIENCE_S):
            while not await engine.slots_in_use():
                await asyncio.sleep(0.005)
        handle.cancel()
        left.muted = True
        assert await handle.slot_free() == "slot-free"
        assert await engine.slots_in_use() == 0
        engine.generate(GenerateJob(task_id="t", attempt=2, workload="embedding", inputs=["a"]), after)
        await after.end()
        assert left.breaches == []
        assert left.outcome is None
        await engine.close()

    model = write_model(tmp_path / "slow.gguf", VARIANTS["slow"])
    with llama_server(model, extra=("--embedding", "--pooling", "mean", "--ubatch-size", "2048")) as url:
        asyncio.run(scenario(url))
