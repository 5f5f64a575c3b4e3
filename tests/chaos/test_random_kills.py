"""Servers that are killed at random moments under load: on the mock, and on real llama.cpp (RCV-1).

`make test` kills a few times; `make chaos` as often as the bar says (CHAOS_KILLS, CHAOS_LLAMA_KILLS).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .audit import Figures
from .load import Ledger, Load
from .settle import settle
from .world import HAIKU_POOL, World, mock_engine, mock_pool, world

KILLS = int(os.environ.get("CHAOS_KILLS", "25"))
POSTGRESQL_KILLS = int(os.environ.get("CHAOS_POSTGRESQL_KILLS", "4"))
LLAMA_KILLS = int(os.environ.get("CHAOS_LLAMA_KILLS", "4"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
TOPICS = ("rain", "snow", "the moon", "a river", "autumn", "the sea", "a frog", "night")


async def live_and_die(place: World, ledger: Ledger, rng: random.Random, *, most: int, early: float) -> None:
    """One life: it ends after a random number of things that clients heard, or while it is still starting."""
    await place.start()
    if rng.random() < early:
        await asyncio.sleep(rng.uniform(0, 0.3))  # no condition: anywhere between the fork and the first answers
    else:
        heard = asyncio.create_task(ledger.more(rng.randrange(1, most)))
        died = asyncio.create_task(place.zygote.ended(place.pid))
        done, _ = await asyncio.wait({heard, died}, return_when=asyncio.FIRST_COMPLETED)
        heard.cancel()
        died.cancel()
        assert died not in done, f"the server ended by itself: {place.log.read_text()[-2000:]}"
    await place.kill()


def report(name: str, kills: int, figures: Figures) -> None:
    """Figures for people."""
    print(
        f"\n{name}: {kills} kills, {figures.restarts} restarts that got as far as an epoch, {figures.tasks} tasks"
        f" {dict(figures.outcomes)}, recovered {dict(figures.recoveries)}, {figures.reconnects} reconnections,"
        f" {figures.frames} frames, {figures.events} events"
    )


async def killed_on_the_mock(tmp_path: Path, kills: int, settings: dict[str, Any]) -> Figures:
    """Load on the mock engine, and so many kills."""
    async with mock_engine() as engine, world(tmp_path, [mock_pool(engine)], settings=settings) as place:
        rng = random.Random(SEED)
        load = Load(place.port, Ledger(), seed=SEED)
        load.start(8)
        try:
            for _ in range(kills):
                await live_and_die(place, load.ledger, rng, most=400, early=0.15)
                load.check()
            figures = await settle(place, load)
        finally:
            await load.abort()
        assert await engine.slots_busy() == 0
        return figures


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    # snapshots come often, so that some are killed too
    figures = asyncio.run(killed_on_the_mock(tmp_path, KILLS, {"journal": {"snapshot_every": 2000}}))
    report("mock", KILLS, figures)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.postgresql
def test_kills_with_a_postgresql_journal_lose_nothing(tmp_path: Path, database: Callable[[], str]) -> None:
    figures = asyncio.run(killed_on_the_mock(tmp_path, POSTGRESQL_KILLS, {"journal": {"url": database()}}))
    report("PostgreSQL", POSTGRESQL_KILLS, figures)


def haiku_request(rng: random.Random) -> dict[str, Any]:
    """A task for the bundled model."""
    return {
        "model_ref": "haiku",
        "workload": "chat",
        "messages": [{"role": "user", "content": f"Write a haiku about {rng.choice(TOPICS)}"}],
        "temperature": rng.choice((0.0, 0.8)),
        "recovery": rng.choice(("continue", "continue", "strict")),
    }


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.real_llama
@pytest.mark.timeout(600)
def test_kills_with_real_llama_cpp_lose_nothing_and_adopt_the_engine(tmp_path: Path) -> None:
    async def scenario() -> Figures:
        async with world(tmp_path, [HAIKU_POOL]) as place:
            rng = random.Random(SEED)
            load = Load(place.port, Ledger(), seed=SEED, make=haiku_request, cancels=0.1)
            await place.start()
            await place.ready()
            engine = place.engine_pid("haiku")
            load.start(4)
            try:
                await load.ledger.more(10)
                await place.kill()
                for _ in range(LLAMA_KILLS - 1):
                    await live_and_die(place, load.ledger, rng, most=60, early=0.1)
                    load.check()
                    assert place.engine_pid("haiku") == engine
                return await settle(place, load)
            finally:
                await load.abort()

    report("llama.cpp", LLAMA_KILLS, asyncio.run(scenario()))
