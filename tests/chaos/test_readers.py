"""64 readers of one task of 100,000 tokens, one that stalls and one at 1 KB/s (STR-2, STR-3, PERF-6)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from .audit import History, check_reader
from .http_client import parse
from .many_readers import SLOW, STALLED
from .world import PATIENCE_S, MockEngine, World, mock_engine, mock_pool, world

TOKENS = 100_000
READERS = 64
SLOW_BYTES = 1024
#: tokens per second: slow enough for a small machine that runs other tests
RATE = 5000
GROWTH_KIB = 10 * 1024


@dataclass
class Run:
    """One run of the task."""

    task_id: str
    #: the server's highest memory
    peak_kib: int
    #: how far each reader was when the engine had finished
    then: list[int]
    #: frames and digest of each in the end
    ends: list[tuple[int, str]]
    payload: bytes


async def engine_finished(engine: MockEngine, before: int) -> None:
    async with asyncio.timeout(10 * PATIENCE_S):
        while await engine.tokens_said() < before + TOKENS:
            await asyncio.sleep(0.05)


async def run(place: World, engine: MockEngine, readers: int) -> Run:
    """One fresh server, one task, so many readers."""
    await place.start()
    await place.ready()
    before = await engine.tokens_said()
    request = {"model_ref": "mock", "prompt": f"[[mock tokens={TOKENS} rate={RATE}]]", "seed": 1}
    task_id = (await place.call("POST", "/v1/tasks", request)).body["task_id"]
    then: list[int] = []
    ends: list[tuple[int, str]] = []
    payload = b""
    if readers:
        script = str(Path(__file__).with_name("many_readers.py"))
        arguments = [str(place.port), f"/v1/tasks/{task_id}/stream", str(readers), str(SLOW_BYTES)]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            script,
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=1 << 24,
        )
        await engine_finished(engine, before)
        out, payload = await process.communicate(b"finished\n")
        assert process.returncode == 0, payload[-2000:]
        first, second = out.splitlines()
        then, ends = json.loads(first), [(frames, digest) for frames, digest in json.loads(second)]
    else:
        await engine_finished(engine, before)
    info = await place.call("GET", f"/v1/tasks/{task_id}?wait=60000")
    assert info.body["state"] == "completed"
    peak = place.memory_kib("VmHWM")
    assert await place.stop() == 0
    return Run(task_id, peak, then, ends, payload)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_64_readers_get_every_entry_and_cost_neither_memory_nor_the_engines_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mock_engine(ctx=2 * TOKENS) as engine, world(tmp_path, [mock_pool(engine)]) as place:
            alone = await run(place, engine, 0)
            read = await run(place, engine, READERS)
        history = History(place.open_store())
        decode_ms = [history.tasks[one.task_id].ended.decode_ms for one in (alone, read)]
        print(
            f"\n{READERS} readers, {TOKENS} tokens: peak {alone.peak_kib} KiB without, {read.peak_kib} KiB with them"
            f" (+{read.peak_kib - alone.peak_kib}); engine {decode_ms[0]} ms without, {decode_ms[1]} ms with them;"
            f" when it had finished the stalled reader had {read.then[STALLED]} frames, the slow one"
            f" {read.then[SLOW]}, the others {min(read.then[2:])} to {max(read.then[2:])}"
        )
        # the engine finished while two readers had next to nothing: it waits for nobody
        assert read.then[STALLED] < TOKENS // 20
        assert read.then[SLOW] < TOKENS // 5
        # and what it says takes as long as before (both numbers are the engine's; a busy machine gets half as much again)
        assert decode_ms[1] < 1.5 * decode_ms[0]
        assert {frames for frames, _ in read.ends} == {TOKENS + 2}
        assert len({digest for _, digest in read.ends}) == 1, "all readers were sent the same bytes"
        frames = [frame for block in read.payload.split(b"\n\n") if block and (frame := parse(block))]
        check_reader(frames, history.tasks[read.task_id])
        assert read.peak_kib - alone.peak_kib < GROWTH_KIB

    asyncio.run(scenario())
