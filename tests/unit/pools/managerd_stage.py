"""pool-managerd on a stage: its real server and outbox on a real socket, with pools that do what the test says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llama_orch.core.engine_ports import EngineProperties
from llama_orch.core.events.pool import PoolReady, PoolUnready
from llama_orch.core.settings import ManagerSettings, PoolSettings
from llama_orch.pools.connection import Lines, SocketPlace
from llama_orch.pools.desired import DesiredPool, PoolSink
from llama_orch.pools.fence import Fence
from llama_orch.pools.logs import BoundedLog
from llama_orch.pools.managerd import Managerd
from llama_orch.pools.outbox import DirectoryFiles, Files, Outbox
from llama_orch.pools.protocol import (
    MAX_LINE,
    PROTOCOL,
    Ack,
    Desired,
    Fact,
    FromManager,
    Hello,
    Ping,
    Pong,
    Welcome,
    from_manager,
)

PATIENCE_S = 30.0
M = TypeVar("M")
PROPERTIES = EngineProperties(engine_version="1", model_name="m", slots=2, ctx=64)
_runs = itertools.count(1)


class FakePools:
    """Pools that are ready at once, and keep what was asked of them."""

    def __init__(self, sink: PoolSink) -> None:
        self.sink = sink
        self.applied: list[tuple[int, list[DesiredPool]]] = []
        self.stopped: bool | None = None
        self.url = "http://127.0.0.1:9"

    async def apply(self, pools: Sequence[DesiredPool], *, epoch: int, manager: ManagerSettings) -> None:
        self.applied.append((epoch, list(pools)))

    def states(self) -> list[tuple[Any, EngineProperties | None]]:
        wanted = self.applied[-1][1] if self.applied else []
        return [(ready(pool.settings.id, url=self.url), PROPERTIES) for pool in wanted]

    async def stop(self, *, kill_engines: bool) -> None:
        self.stopped = kill_engines


def ready(pool_id: str, generation: int = 1, url: str = "") -> PoolReady:
    return PoolReady(
        pool_id=pool_id, replica_id="r0", generation=generation, engine_version="1", slots=2, ctx=64, url=url
    )


def unready(pool_id: str, cause: str = "engine-exited") -> PoolUnready:
    return PoolUnready(pool_id=pool_id, cause=cause)


def desired(*names: str, epoch: int = 1, revision: int = 1) -> Desired:
    pools = [DesiredPool(settings=PoolSettings(id=name, model="m"), model="m") for name in names]
    return Desired(epoch=epoch, revision=revision, pools=pools)


class Client:
    """Whoever speaks to it."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.facts: list[Fact] = []

    async def hear(self, kind: type[M]) -> M:
        """The next message of a kind; facts on the way are kept."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = await self.lines.line()
                assert line, "the connection ended"
                message = from_manager(line)
                if isinstance(message, Fact):
                    self.facts.append(message)
                if isinstance(message, kind):
                    return message

    async def settled(self) -> list[Fact]:
        """All that it sent before it answered."""
        self.lines.send(Ping())
        await self.hear(Pong)
        facts, self.facts = self.facts, []
        return facts

    async def ended(self) -> bool:
        """Wait for the connection's end."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.lines.line():
                pass
        return True

    def ack(self, fact: Fact) -> None:
        self.lines.send(Ack(incarnation=fact.incarnation, n=fact.n))


class Program:
    """One run of it."""

    def __init__(
        self,
        directory: Path,
        *,
        files: Files | None = None,
        linger_ms: int | None = None,
        uid: Callable[[], int] = os.getuid,
        key: str = "",
    ) -> None:
        self.directory = directory
        self.pools: FakePools | None = None
        self.outbox = Outbox(
            files or DirectoryFiles(directory / "outbox"), boot_id="boot", incarnation=f"run-{next(_runs):06d}"
        )
        self.fence = Fence(directory / "fence.json", key)
        self.managerd = Managerd(
            directory,
            self._make,
            self.outbox,
            self.fence,
            BoundedLog((directory / "log").open("a"), form="human"),
            boot_id="boot",
            version="1",
            engine_logs=directory / "engines",
            linger_ms=linger_ms,
            uid=uid,
        )
        self.task: asyncio.Task[None] | None = None

    def _make(self, sink: PoolSink) -> FakePools:
        self.pools = FakePools(sink)
        return self.pools

    async def start(self, **network: Any) -> list[str]:
        where = await self.managerd.listen(**network)
        self.task = asyncio.get_running_loop().create_task(self.managerd.run())
        return where

    async def ended(self) -> None:
        """Wait until it ended."""
        assert self.task is not None
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(self.task)

    def say(self) -> str:
        """What its log says."""
        return (self.directory / "log").read_text()

    async def connect(self) -> Client:
        """A connection that has said nothing."""
        with SocketPlace(self.directory) as place:
            reader, writer = await asyncio.open_unix_connection(place.path, limit=MAX_LINE)
        return Client(Lines(reader, writer, "test"))

    async def greet(self, epoch: int = 1, owner: str = "journal", **more: Any) -> tuple[Client, FromManager]:
        """A connection and the answer to its Hello."""
        client = await self.connect()
        client.lines.send(Hello(protocol=PROTOCOL, owner=owner, epoch=epoch, **more))
        async with asyncio.timeout(PATIENCE_S):
            return client, from_manager(await client.lines.line())

    async def command(self, epoch: int = 1, **more: Any) -> Client:
        """A connection that commands."""
        client, answer = await self.greet(epoch, **more)
        assert isinstance(answer, Welcome), answer
        return client


@contextlib.asynccontextmanager
async def program(directory: Path, **options: Any) -> AsyncIterator[Program]:
    """A running program; it is ended behind the block."""
    directory.mkdir(parents=True, exist_ok=True)
    made = Program(directory, **options)
    await made.start()
    try:
        yield made
    finally:
        made.managerd.stop(kill_engines=False)
        await made.ended()


async def until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition in another task."""
    async with asyncio.timeout(PATIENCE_S):
        while not (value := condition()):
            await asyncio.sleep(0.005)
        return value
