"""orchestratord's side: what was decided goes out once it is committed, what happened comes in once (RCV-3)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from llama_orch.core.events.manager import ManagerConnected, ManagerLost, OutboxReceived
from llama_orch.core.events.pool import PoolLoading, PoolReady, PoolUnready
from llama_orch.core.journal.history import facts_of
from llama_orch.core.journal.journal import Journal, JournalOptions
from llama_orch.core.services.container import build_services
from llama_orch.core.settings import PoolSettings, ProvisioningSettings, Settings
from llama_orch.plugins.engines.mock import MockEngine
from llama_orch.plugins.policy.placement import DefaultPolicy
from llama_orch.pools.client import PoolClients
from llama_orch.pools.protocol import Fact

from ...support.store import Disk, MemoryStore
from .conftest import SystemClock, plan_mock_server, run
from .managerd_stage import PROPERTIES, Program, ready, unready, until

NAMES = {"mock": MockEngine, "wire": MockEngine}
_ids = itertools.count()


class Server:
    """A journal, its services, and the clients under test."""

    def __init__(self, data: Path, disk: Disk, settings: Settings, *, grace_s: float = 30.0) -> None:
        self.disk = disk
        self.settings = settings
        self.journal = Journal(MemoryStore(disk), SystemClock(), JournalOptions(version="1"))
        self.clients = PoolClients(
            self.journal,
            settings,
            data_dir=data,
            engines=NAMES,
            launchers={"wire": plan_mock_server},
            starter=None,
            linger_ms=60_000,
            version="1",
            grace_s=grace_s,
        )
        self.services: Any = None

    async def start(self) -> None:
        await self.journal.open()
        self.services = build_services(
            self.journal,
            settings=self.settings,
            engines=self.clients,
            policy=DefaultPolicy(),
            clock=SystemClock(),
            api_version="1",
            new_id=lambda: f"id-{next(_ids)}",
            new_seed=lambda: 1,
        )
        self.services.pools.declare(self.settings)
        await self.clients.start(self.services.pools, self.services.gpus.receive)

    async def close(self) -> None:
        await self.clients.stop(end_engines=False)
        await self.journal.close()

    def crash(self) -> None:
        """The process is gone: nothing of it reaches the disk any more."""
        self.disk.held_by = None

    def events(self, *kinds: type) -> list[Any]:
        """What the journal holds, committed."""
        records = [record for frame in self.disk.frames for record in facts_of(frame)]
        return [record.payload for record in records if isinstance(record.payload, kinds)]

    @property
    def pool(self) -> Any:
        return self.journal.head.pools.by_id["a"]


def pool(engine: str = "mock") -> Settings:
    provisioning = ProvisioningSettings(mode="external" if engine == "mock" else "package")
    return Settings(pools=[PoolSettings(id="a", engine=engine, model="m", provisioning=provisioning)])


@contextlib.asynccontextmanager
async def server(data: Path, settings: Settings, disk: Disk | None = None, **options: Any) -> AsyncIterator[Server]:
    made = Server(data, disk or Disk(), settings, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def host(data: Path, **options: Any) -> AsyncIterator[Program]:
    """A pool-managerd of the data directory; it may be killed within."""
    (data / "pools").mkdir(exist_ok=True, parents=True)
    made = Program(data / "pools", **options)
    await made.start()
    try:
        yield made
    finally:
        made.managerd.stop(kill_engines=False)
        await made.ended()


def test_an_engine_that_is_told_ready_can_be_spoken_to_until_it_is_told_unready(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with host(tmp_path) as it, server(tmp_path, pool()) as here:
            await until(lambda: here.pool.ready)
            assert here.clients.engine("a") is not None
            properties = here.clients.properties("a")
            assert properties is not None
            assert properties.slots == 2
            assert it.pools is not None
            it.pools.sink.fact(unready("a"))
            await until(lambda: not here.pool.ready)
            assert here.pool.cause == "engine-exited"
            await until(lambda: here.clients.engine("a") is None)
            assert len(here.events(ManagerConnected)) == 1

    run(scenario)


def test_clients_and_their_streams_outlive_a_pool_managerd_that_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, pool()) as here:
            async with host(tmp_path):
                await until(lambda: here.pool.ready)
                engine = here.clients.engine("a")
            await until(lambda: here.events(ManagerLost))
            assert here.pool.ready, "streams do not go through it"
            async with host(tmp_path):
                await until(lambda: len(here.events(ManagerConnected)) == 2)
                await until(lambda: len(here.events(PoolReady)) == 2)
                assert here.clients.engine("a") is engine

    run(scenario)


def test_pools_are_unready_when_it_stays_away_and_ready_again_when_it_returns(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, pool(), grace_s=0.2) as here:
            async with host(tmp_path):
                await until(lambda: here.pool.ready)
            await until(lambda: not here.pool.ready)
            assert here.pool.cause == "manager-lost"
            async with host(tmp_path):
                await until(lambda: here.pool.ready)

    run(scenario)


def test_a_host_hears_of_a_decision_once_it_is_committed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with host(tmp_path) as it, server(tmp_path, pool("wire")) as here:
            await until(lambda: it.pools and it.pools.applied)
            assert it.pools is not None
            assert it.pools.applied[-1][1][0].wanted is False
            here.disk.always = "refused"
            here.journal.append([PoolLoading(pool_id="a", devices=["cpu"])], actor="t", correlation="")
            await until(lambda: here.journal.status == "refusing")
            assert [pools[0].wanted for _, pools in it.pools.applied] == [False]
            here.disk.always = ""
            await until(lambda: it.pools and it.pools.applied[-1][1][0].wanted)

    run(scenario)


def test_facts_are_acknowledged_once_they_are_committed_and_folded_once_however_often_they_come(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        disk = Disk()
        async with host(tmp_path) as it:
            first = Server(tmp_path, disk, pool())
            await first.start()
            await until(lambda: first.pool.ready and not it.outbox.pending)
            # Committed, and gone before it could say so.
            link = first.clients._links["local"]
            link.ack = lambda incarnation, n: None  # type: ignore[method-assign]
            assert it.pools is not None
            it.pools.sink.fact(unready("a", "odd"))
            await until(lambda: [e for e in first.events(PoolUnready) if e.cause == "odd"])
            assert it.outbox.pending
            first.crash()
            async with server(tmp_path, pool(), disk) as second:
                await until(lambda: not it.outbox.pending)
                assert len([e for e in second.events(PoolUnready) if e.cause == "odd"]) == 1
                numbers = [(e.incarnation, e.n) for e in second.events(OutboxReceived)]
                assert len(numbers) == len(set(numbers))
            with contextlib.suppress(Exception):
                await first.close()

    run(scenario)


def test_what_a_fact_says_that_crossed_a_decision_is_not_taken(tmp_path: Path) -> None:
    """Told ready under an older wish, the engine may be another by now; how it is follows."""

    async def scenario() -> None:
        async with host(tmp_path) as it, server(tmp_path, pool()) as here:
            await until(lambda: here.pool.ready)
            link = here.clients._links["local"]
            stale = Fact(
                incarnation=it.outbox.incarnation,
                n=1_000,
                boot_id="boot",
                epoch=here.journal.epoch - 1,
                revision=99,
                name="pool.ready",
                payload=msgspec.Raw(msgspec.json.encode(ready("a", generation=7))),
            )
            await here.clients.facts(link, [stale])
            assert here.pool.observed.generation == 1

    run(scenario)


def test_a_fact_that_a_newer_program_tells_is_left_out_and_the_rest_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with host(tmp_path) as it, server(tmp_path, pool()) as here:
            await until(lambda: here.pool.ready and not it.outbox.pending)
            new = Fact(incarnation="", n=0, boot_id="", name="pool.dreamt", payload=msgspec.Raw(b"{}"))
            told = msgspec.structs.replace(new, name="pool.unready")
            payload = msgspec.Raw(msgspec.json.encode(unready("a", "later")))
            it.managerd._delivery.tell(new)
            it.managerd._delivery.tell(msgspec.structs.replace(told, payload=payload))
            await until(lambda: here.pool.cause == "later")
            await until(lambda: not it.outbox.pending)

    run(scenario)


def test_a_journal_that_was_opened_anew_commands_with_its_new_epoch(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with host(tmp_path) as it, server(tmp_path, pool()) as here:
            await until(lambda: here.pool.ready)
            epoch = here.journal.epoch
            here.disk.commits.append("unknown")
            here.journal.append([PoolUnready(pool_id="a", cause="x")], actor="t", correlation="")
            await until(lambda: here.journal.epoch > epoch)
            await until(lambda: it.fence.held.epoch == here.journal.epoch)
            await until(lambda: here.pool.ready)

    run(scenario)


def test_a_newer_server_takes_the_host_over_and_the_older_one_loses_its_pools(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = Disk()
        async with host(tmp_path) as it:
            old = Server(tmp_path, disk, pool(), grace_s=0.2)
            await old.start()
            await until(lambda: old.pool.ready)
            old.crash()
            async with server(tmp_path, pool(), disk) as new:
                await until(lambda: new.pool.ready)
                await until(lambda: "FENCED" in old.clients._links["local"]._detail)
                assert it.fence.held.epoch == new.journal.epoch
            with contextlib.suppress(Exception):
                await old.close()

    run(scenario)


def test_a_host_that_comes_back_hears_which_generations_there_were(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, pool()) as here:
            async with host(tmp_path) as it:
                await until(lambda: here.pool.ready)
                assert it.pools is not None
                it.pools.sink.fact(ready("a", generation=5), PROPERTIES)
                await until(lambda: here.pool.observed.generation == 5)
            async with host(tmp_path) as it:
                await until(lambda: it.pools and it.pools.applied)
                assert it.pools is not None
                assert it.pools.applied[0][1][0].generation_floor == 5

    run(scenario)


def test_a_host_that_comes_back_while_the_journal_takes_nothing_is_taken_once_it_does(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, pool(), grace_s=0.05) as here:
            async with host(tmp_path):
                await until(lambda: here.pool.ready)
            here.disk.reopen_errors = 5
            here.disk.commits.append("unknown")
            here.journal.append([PoolUnready(pool_id="a", cause="x")], actor="t", correlation="")
            await until(lambda: here.journal.status == "reopening")
            async with host(tmp_path):
                await until(lambda: here.journal.status == "ok")
                await until(lambda: here.pool.ready)

    run(scenario)


def test_nobody_waits_for_a_host_that_is_not_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(20), server(tmp_path, pool()) as here:
            assert here.clients.engine("a") is None

    run(scenario)
