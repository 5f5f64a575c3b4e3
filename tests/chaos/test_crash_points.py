"""Servers that die at one exact point, again and again, under load: nothing that was acknowledged is lost (RCV-1)."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from llama_orch.core.journal.replay import replay
from llama_orch.core.journal.snapshot import load_latest

from .load import PATIENCE_S, Ledger, Load
from .settle import finish
from .world import World, mock_engine, mock_pool, world

#: the point, and at which of its passings each life of the server ends
POINTS = [
    ("before-append-TaskAdmitted", (1, 7)),
    ("before-append-TaskStarted", (2, 9)),
    ("before-append-TaskEnded", (1, 6)),
    ("folded-TaskAdmitted", (1, 8)),
    ("folded-TaskStarted", (1, 5)),
    ("folded-TaskEnded", (2, 7)),
    ("folded-entries", (1, 40)),
    ("before-commit", (12, 60)),
    ("after-commit", (11, 50)),
    ("not-synced", (5, 20)),
    ("synced-not-told", (6, 19)),
    ("engine-asked", (1, 9)),
    ("engine-took-it", (3, 8)),
    ("engine-sent-entries", (2, 45)),
    ("engine-sent-end", (1, 5)),
    ("no-transcript", (1, 6)),
    ("no-transcript-end-seen", (3, 9)),
    ("transcript-folded", (2, 7)),
    ("recovering", (1, 1)),
    ("rewriting", (1,)),
    ("snapshot-part-written", (1, 1)),
    ("snapshot-renamed", (1, 1)),
]
#: compaction waits until nothing runs, so it is reached with one client only
CLIENTS = {"rewriting": 1}
#: snapshots come often
SETTINGS = {"journal": {"snapshot_every": 150}}


async def snapshot_written(place: World) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not list((place.data / "snapshots").glob("*.snapshot")):
            await asyncio.sleep(0.02)


def check_snapshots(place: World) -> None:
    """A snapshot that a kill left is whole, and folding on from it gives what folding from the start gives."""
    store = place.open_store()

    def frame_hash(number: int) -> bytes | None:
        return next((frame.hash for frame in store.frames_at([number])), None)

    found = load_latest(place.data / "snapshots", frame_hash)
    assert found is not None
    assert found[1] > 1
    assert replay(store, *found).head.digest() == replay(store).head.digest()
    assert list((place.data / "snapshots").glob("*.part")) == []
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("point, counts", POINTS, ids=[name for name, _ in POINTS])
def test_a_server_that_dies_there_loses_nothing(tmp_path: Path, point: str, counts: tuple[int, ...]) -> None:
    async def scenario() -> None:
        async with mock_engine() as engine, world(tmp_path, [mock_pool(engine)], settings=SETTINGS) as place:
            load = Load(place.port, Ledger(), seed=len(point))
            load.start(CLIENTS.get(point, 8))
            try:
                if point == "recovering":
                    # there has to be something to take up
                    await place.start()
                    await load.goes_on(200)
                    await place.kill()
                for count in counts:
                    await place.start(crash=f"{point}:{count}")
                    assert await place.ended() == -signal.SIGKILL
                    load.check()
                    assert place.crashed_at() == point
                await place.start()
                await place.ready()
                if point.startswith("snapshot"):
                    await snapshot_written(place)
                figures = await finish(place, load)
            finally:
                await load.abort()
            if point.startswith("snapshot"):
                check_snapshots(place)
            assert figures.tasks >= 8
            assert await engine.slots_busy() == 0

    asyncio.run(scenario())
