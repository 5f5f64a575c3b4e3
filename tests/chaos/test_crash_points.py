"""Servers that die at one exact point, again and again, under load: nothing that was acknowledged is lost (RCV-1)."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from .load import Ledger, Load
from .settle import settle
from .world import mock_engine, mock_pool, world

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
]
#: compaction waits until nothing runs, so it is reached with one client only
CLIENTS = {"rewriting": 1}


@pytest.mark.slow
@pytest.mark.parametrize(("point", "counts"), POINTS, ids=[name for name, _ in POINTS])
def test_a_server_that_dies_there_loses_nothing(tmp_path: Path, point: str, counts: tuple[int, ...]) -> None:
    async def scenario() -> None:
        async with mock_engine() as engine, world(tmp_path, [mock_pool(engine)]) as place:
            load = Load(place.port, Ledger(), seed=len(point))
            load.start(CLIENTS.get(point, 8))
            try:
                for count in counts:
                    await place.start(crash=f"{point}:{count}")
                    assert await place.ended() == -signal.SIGKILL
                    load.check()
                    assert place.crashed_at() == point
                figures = await settle(place, load)
            finally:
                await load.abort()
            assert figures.restarts >= len(counts)
            assert await engine.slots_busy() == 0

    asyncio.run(scenario())
