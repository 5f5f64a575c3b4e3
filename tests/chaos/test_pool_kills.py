"""Kills of engine, pool-managerd and orchestratord, in every order and in pairs, under load (RCV-3).

`make test` does each once; `make chaos` as often as the bar says (CHAOS_POOL_KILLS). After each round the oracle reads
/proc and the server's own word; at the end the journal is audited.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from llama_orch.core.journal.history import facts_of
from llama_orch.core.ports import JournalStore
from llama_orch.pools import identity as identities
from llama_orch.pools.identity import Identity, process_table

from ..support.managerd import engine_pids, managerd_pid
from .http_client import BROKEN
from .load import PATIENCE_S, Ledger, Load, Maker
from .settle import finish
from .wire_engine import install
from .world import HAIKU_POOL, World, quiet_port, world

ROUNDS = int(os.environ.get("CHAOS_POOL_KILLS", "1"))
LLAMA_ROUNDS = int(os.environ.get("CHAOS_POOL_LLAMA_KILLS", "1"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
ROUNDS_PER_WORLD = 25
#: more deaths of one engine within a short time, seen by one pool-managerd, open the circuit breaker, as they should
DEATHS_PER_WORLD = 4
ENGINE, MANAGERD, SERVER = "engine", "pool-managerd", "orchestratord"
ALL = (ENGINE, MANAGERD, SERVER)
ORDERS = [
    *((victim,) for victim in ALL),
    *itertools.permutations(ALL, 2),
    *itertools.permutations(ALL, 3),
]
WIRE_POOL: dict[str, Any] = {"id": "wire", "engine": "wire", "model": "haiku", "slots": 4}

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(3000)]


def wire_request(rng: random.Random) -> dict[str, Any]:
    """A task for the mock: short or long, quick or slow."""
    tokens, rate = rng.choice((1, 8, 40, 80)), rng.choice((100, 200, 400, 0))
    return {
        "model_ref": "haiku",
        "prompt": f"[[mock tokens={tokens} rate={rate}]] {rng.getrandbits(32):08x}",
        "priority": rng.choice(("interactive", "batch")),
        "recovery": rng.choice(("continue", "continue", "strict")),
    }


def haiku_request(rng: random.Random) -> dict[str, Any]:
    """A task for the bundled model."""
    return {
        "model_ref": "haiku",
        "workload": "chat",
        "messages": [{"role": "user", "content": f"Write a haiku about {rng.choice(('rain', 'snow', 'a frog'))}"}],
        "recovery": rng.choice(("continue", "strict")),
    }


class Pools:
    """The pools of a world, as the operating system and the server see them."""

    def __init__(self, place: World, pool_id: str) -> None:
        self.place = place
        self.pool_id = pool_id
        self.table = process_table()
        self.restarts: Counter[str] = Counter()

    def identity(self) -> Identity | None:
        """The living engine that the record names."""
        known = identities.read(self.place.data / "engines" / f"{self.pool_id}.json")
        return known if known is not None and identities.alive(known, self.table) else None

    async def whole(self) -> Identity:
        """Wait until the server is ready, and all three run; the engine."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(*BROKEN):
                    engine = self.identity()
                    ready = (await self.place.call("GET", "/readyz")).status == 200
                    if ready and engine is not None and managerd_pid(self.place.data) > 0:
                        pool = (await self.place.call("GET", f"/v1/pools/{self.pool_id}/health")).body
                        if pool["ready"] and engine == self.identity():
                            return engine
                await asyncio.sleep(0.02)

    async def kill(self, victim: str) -> None:
        """SIGKILL one of the three, if it lives just now."""
        if victim == SERVER:
            if self.place.pid:
                await self.place.kill()
            return
        known = self.identity()
        pid = managerd_pid(self.place.data) if victim == MANAGERD else known.pid if known is not None else 0
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                while self.table.start_ticks(pid) is not None:
                    await asyncio.sleep(0.001)

    async def round(self, order: tuple[str, ...], load: Load, rng: random.Random) -> None:
        """Kill in this order, bring the server back, and look at what is there."""
        before = await self.whole()
        await load.ledger.more(rng.randrange(1, 120))
        for victim in order:
            await self.kill(victim)
            await asyncio.sleep(rng.choice((0, 0, 0.02, 0.2)))  # no condition: others notice it, or not yet
        if SERVER in order:
            await self.place.start()
        after = await self.whole()
        await load.goes_on(30)
        self.look(before, after, order)

    def look(self, before: Identity, after: Identity, order: tuple[str, ...]) -> None:
        """No orphan, and the engine is the same one wherever nobody killed it."""
        alive = engine_pids(self.place.data)
        assert list(alive) == [after.pid], f"{order}: engines {alive}, recorded {after}"
        if ENGINE in order:
            assert after.pid != before.pid
            assert after.generation > before.generation
        else:
            assert after == msgspec.structs.replace(before, told_epoch=after.told_epoch), f"{order}: it was kept"
        self.restarts["restarted" if ENGINE in order else "kept"] += 1


def audit_outbox(store: JournalStore) -> int:
    """No fact was folded twice; how many were folded."""
    last: dict[tuple[str, str], int] = {}
    facts = 0
    for frame in store.frames(1):
        batch = 0
        for record in facts_of(frame):
            if record.name == "outbox.received":
                event: Any = record.payload
                key = (event.host, event.incarnation)
                assert event.n > last.get(key, 0), f"{key}: {event.n} after {last[key]}"
                assert batch <= event.n - last.get(key, 0), "more facts than numbers"
                last[key] = event.n
                facts += batch
                batch = 0
            elif record.actor.startswith("host:") and not record.name.startswith("manager."):
                batch += 1
            else:
                batch = 0
    return facts


async def killed(
    folder: Path, pool: dict[str, Any], make: Maker, orders: list[tuple[str, ...]], seed: int
) -> Counter[str]:
    """A world, load on it, and one round for each of the orders."""
    env = install(folder / "plugin")
    async with world(folder, [pool], env=env) as place:
        rng = random.Random(seed)
        load = Load(place.port, Ledger(), seed=seed, make=make, cancels=0.1)
        pools = Pools(place, pool["id"])
        await place.start()
        await pools.whole()
        load.start(6)
        try:
            for order in orders:
                await pools.round(order, load, rng)
            figures = await finish(place, load)
        except BaseException:
            print(await place.stuck())
            print((place.data / "pools" / "managerd.log").read_text()[-4000:])
            raise
        finally:
            await load.abort()
        store = place.open_store()
        try:
            facts = audit_outbox(store)
        finally:
            store.close()
        assert engine_pids(place.data) == {}, "engines end with a server that stops in order"
        pools.restarts["facts"] += facts
        pools.restarts["tasks"] += figures.tasks
        return pools.restarts


def in_worlds(tmp_path: Path, pool: dict[str, Any], make: Maker, order: tuple[str, ...], rounds: int) -> Counter[str]:
    """So many rounds, a few in each world."""
    counts: Counter[str] = Counter()
    most = DEATHS_PER_WORLD if ENGINE in order and MANAGERD not in order else ROUNDS_PER_WORLD
    for number, begun in enumerate(range(0, rounds, most)):
        folder = tmp_path / str(number)
        folder.mkdir()
        orders = [order] * min(most, rounds - begun)
        counts += asyncio.run(killed(folder, pool, make, orders, SEED + number))
    print(f"\n{' > '.join(order)}: {rounds} rounds, {dict(counts)}")
    return counts


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_whatever_is_killed_in_whatever_order_nothing_is_lost_or_orphaned(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    in_worlds(tmp_path, WIRE_POOL, wire_request, order, ROUNDS)


def test_kills_while_things_still_start_leave_one_engine(tmp_path: Path) -> None:
    """Between fork and record, record and readiness, readiness and fact: nothing stands still when it is hit."""

    async def scenario(folder: Path, rng: random.Random) -> None:
        async with world(folder, [WIRE_POOL], env=install(folder / "plugin")) as place:
            pools = Pools(place, "wire")
            load = Load(place.port, Ledger(), seed=SEED, make=wire_request, cancels=0.1)
            load.start(4)
            try:
                for _ in range(4):
                    if not place.pid:
                        await place.start()
                    await asyncio.sleep(rng.uniform(0, 1))  # no condition: anywhere
                    for victim in rng.sample(ALL, rng.randrange(1, 4)):
                        await pools.kill(victim)
                if not place.pid:
                    await place.start()
                engine = await pools.whole()
                await load.goes_on(30)
                assert list(engine_pids(place.data)) == [engine.pid]
                await finish(place, load)
            finally:
                await load.abort()
            assert engine_pids(place.data) == {}

    for number in range(max(2, ROUNDS // 2)):
        (tmp_path / str(number)).mkdir()
        asyncio.run(scenario(tmp_path / str(number), random.Random(SEED * 1000 + number)))


def test_a_pool_managerd_that_hangs_is_replaced_and_the_engine_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path, [WIRE_POOL], env=install(tmp_path / "plugin")) as place:
            pools = Pools(place, "wire")
            load = Load(place.port, Ledger(), seed=SEED, make=wire_request, cancels=0.1)
            await place.start()
            engine = await pools.whole()
            load.start(4)
            try:
                hangs = managerd_pid(place.data)
                os.kill(hangs, signal.SIGSTOP)
                await load.goes_on(100)
                async with asyncio.timeout(PATIENCE_S):
                    while managerd_pid(place.data) in (0, hangs):
                        await asyncio.sleep(0.05)
                assert await pools.whole() == engine
                await load.goes_on(30)
                await finish(place, load)
            finally:
                await load.abort()

    asyncio.run(scenario())


@pytest.mark.real_llama
@pytest.mark.parametrize("order", [(MANAGERD,), (SERVER, MANAGERD), ALL], ids=" ".join)
def test_real_llama_cpp_is_kept_or_started_again(tmp_path: Path, order: tuple[str, ...]) -> None:
    in_worlds(tmp_path, HAIKU_POOL, haiku_request, order, LLAMA_ROUNDS)


def test_a_stand_in_with_a_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    """The record names a process id that is somebody else's by now."""

    async def scenario() -> None:
        async with world(tmp_path, [WIRE_POOL], env=install(tmp_path / "plugin")) as place:
            pools = Pools(place, "wire")
            await place.start()
            engine = await pools.whole()
            for victim in (SERVER, MANAGERD, ENGINE):
                await pools.kill(victim)
            stand_in = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            try:
                record = place.data / "engines" / "wire.json"
                identities.write(record, msgspec.structs.replace(engine, pid=stand_in.pid))
                await place.start()
                again = await pools.whole()
                assert again.pid not in (engine.pid, stand_in.pid)
                assert again.generation > engine.generation
                assert await place.stop() == 0
                assert stand_in.poll() is None, "it has nothing to do with the pool"
            finally:
                stand_in.communicate(b"\n")

    asyncio.run(scenario())


@pytest.mark.parametrize("with_managerd", [False, True], ids=["server", "server and pool-managerd"])
@pytest.mark.parametrize("point", ["facts-folded", "facts-not-acknowledged"])
def test_facts_that_come_again_are_folded_once(tmp_path: Path, point: str, with_managerd: bool) -> None:
    """Killed between the folding of facts, their commit and their acknowledgement, by either side."""

    async def scenario() -> None:
        async with world(tmp_path, [WIRE_POOL], env=install(tmp_path / "plugin")) as place:
            pools = Pools(place, "wire")
            load = Load(place.port, Ledger(), seed=SEED, make=wire_request, cancels=0.1)
            load.start(4)
            try:
                for passing in (3, 1, 1, 1):
                    await place.start(crash=f"{point}:{passing}")
                    assert await place.ended() == -signal.SIGKILL
                    assert place.crashed_at() == point
                    if with_managerd:
                        await pools.kill(MANAGERD)
                await place.start()
                engine = await pools.whole()
                await load.goes_on(30)
                assert list(engine_pids(place.data)) == [engine.pid]
                await finish(place, load)
            finally:
                await load.abort()
            store = place.open_store()
            try:
                assert audit_outbox(store) > 0
            finally:
                store.close()

    asyncio.run(scenario())


@pytest.mark.postgresql
def test_a_stopped_server_that_wakes_up_commands_nothing_and_ends(tmp_path: Path, database: Callable[[], str]) -> None:
    """Another one took its journal over meanwhile; what it still held of the engine was taken from it."""
    url = database()

    async def scenario() -> None:
        env, settings = install(tmp_path / "plugin"), {"journal": {"url": url}}
        async with world(tmp_path, [WIRE_POOL], settings=settings, env=env) as place:
            pools = Pools(place, "wire")
            await place.start()
            engine = await pools.whole()
            # It decodes for so long that its slot is still busy when the next server asks for it.
            task = {"model_ref": "haiku", "prompt": "[[mock tokens=100000 rate=50]]", "recovery": "strict"}
            assert (await place.call("POST", "/v1/tasks", task)).status == 202
            while not await busy(engine.port):
                await asyncio.sleep(0.02)
            old, old_port = place.pid, place.port
            os.kill(old, signal.SIGSTOP)
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                    )
                place.port = quiet_port()
                place.config.write_text(place.config.read_text().replace(f":{old_port}", f":{place.port}"))
                await place.start()
                after = await pools.whole()
                assert after.generation > engine.generation, "its slots stayed busy with what nobody waits for"
                assert list(engine_pids(place.data)) == [after.pid]
            finally:
                os.kill(old, signal.SIGCONT)
            assert await place.zygote.ended(old) != 0, "it lost its journal, and says so"
            await asyncio.sleep(0.5)  # no condition: time for what it might still do
            assert pools.identity() == after, "nothing that it said was heard"
            assert (await place.call("GET", "/readyz")).status == 200
            assert await place.stop() == 0

    asyncio.run(scenario())


async def busy(port: int) -> int:
    """Slots of an engine that run something."""
    from .http_client import call

    slots = (await call(port, "GET", "/slots")).body
    return sum(slot["is_processing"] for slot in slots)
