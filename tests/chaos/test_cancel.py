"""Cancel from end to end on real llama.cpp (CAN-1, CAN-2, PLC-4): the slot is free soon, and its lease ends only then."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import pytest

from ..engines.tiny_gguf import VARIANTS, write_model
from .audit import History
from .http_client import call
from .load import Followed, Ledger, Load
from .settle import finish
from .test_signals import follow_new, model_pool
from .world import PATIENCE_S, World, world

ROUNDS = 15
NOBODY = "00000000-0000-4000-8000-000000000000"


async def busy_slots(port: int) -> int:
    """As the engine says, asked past the server."""
    return sum(slot["is_processing"] for slot in (await call(port, "GET", "/slots")).body)


async def frames_of(task: Followed, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(task.frames) < count:
            await asyncio.sleep(0.005)


async def watch_slot(port: int) -> tuple[int, int]:
    """Wait until the engine's slots are free: when they were last seen busy, and first seen free (Unix ns)."""
    busy_ns = 0
    async with asyncio.timeout(PATIENCE_S):
        while True:
            asked_ns = time.time_ns()
            if not await busy_slots(port):
                return busy_ns, time.time_ns()
            busy_ns = asked_ns
            await asyncio.sleep(0.001)


@pytest.mark.slow
@pytest.mark.real_llama
def test_a_cancelled_task_leaves_its_slot_soon_and_its_lease_ends_only_then(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", VARIANTS["slow"])

    async def scenario() -> None:
        async with world(tmp_path, [model_pool(model, slots=1)]) as place:
            await place.start()
            await place.ready()
            engine = place.engine_port("tiny")
            load = Load(place.port, Ledger(), seed=1)
            seen: list[tuple[str, int, int]] = []
            free_ms: list[float] = []
            for n in range(ROUNDS):
                task, following = await follow_new(place, load, f"task-{n}", max_tokens=100_000)
                await frames_of(task, 5)
                sent_ns = time.time_ns()
                watching = asyncio.create_task(watch_slot(engine))
                answer = await place.call("POST", f"/v1/tasks/{task.task_id}/cancel")
                assert answer.status == 204
                assert answer.headers["x-correlation-id"]
                busy_ns, free_ns = await watching
                free_ms.append((free_ns - sent_ns) / 1e6)
                seen.append((task.task_id, busy_ns, free_ns))
                await following
                assert task.frames[-1].data["finish_reason"] == "cancelled"
                # again, when it ended and when it is compacted
                for _ in range(2):
                    assert (await place.call("POST", f"/v1/tasks/{task.task_id}/cancel")).status == 204
            unknown = await place.call("POST", f"/v1/tasks/{NOBODY}/cancel")
            assert (unknown.status, unknown.body["code"]) == (404, "NOT_FOUND")
            await finish(place, load)
            history = History(place.open_store())
            for task_id, busy_ns, _ in seen:
                story = history.story[task_id]
                at = [story.index(name) for name in ("task.cancelled", "task.ended", "lease.released")]
                assert at == sorted(at), story
                assert story.count("task.cancelled") == 1
                assert history.released_ns[task_id] >= busy_ns, "the lease ended while the slot was seen busy"
            assert {cause for _, _, cause in history.releases} == {"slot-free"}
            print(
                f"\nslot free after cancel, decoding, {ROUNDS} rounds: median {statistics.median(free_ms):.1f} ms,"
                f" longest {max(free_ms):.1f} ms"
            )
            # a machine that is busy with other tests gets tenfold; the figure is in the docs
            assert statistics.median(free_ms) < 1000

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.real_llama
def test_tasks_are_cancelled_in_the_queue_and_in_storms(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", VARIANTS["plain"])

    async def cancel(place: World, task: Followed) -> None:
        assert (await place.call("POST", f"/v1/tasks/{task.task_id}/cancel")).status == 204

    async def scenario() -> None:
        async with world(tmp_path, [model_pool(model)]) as place:
            await place.start()
            await place.ready()
            engine = place.engine_port("tiny")
            load = Load(place.port, Ledger(), seed=1)
            tasks = [await follow_new(place, load, f"task-{n}", max_tokens=100_000) for n in range(40)]
            for task, _ in tasks[:2]:
                await frames_of(task, 3)
            # one that waits
            waiting, following = tasks[7]
            await cancel(place, waiting)
            await following
            (only,) = waiting.frames
            assert (only.event, only.data["finish_reason"], only.data["tokens_out"]) == ("end", "cancelled", 0)
            queue = (await place.call("GET", "/v1/queue")).body
            assert waiting.task_id not in str(queue)
            # and all the others, each by many at once
            await asyncio.gather(*(cancel(place, task) for task, _ in tasks for _ in range(10)))
            await asyncio.gather(*(following for _, following in tasks))
            async with asyncio.timeout(PATIENCE_S):
                while await busy_slots(engine):
                    await asyncio.sleep(0.01)
            await finish(place, load)
            history = History(place.open_store())
            for told in history.tasks.values():
                assert told.cancels == 1
                assert told.ended.outcome == "cancelled"

    asyncio.run(scenario())
