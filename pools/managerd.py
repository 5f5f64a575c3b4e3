"""The server of pool-managerd: takes commands from the newest epoch, tells what happens, and ends when it is told to.

It survives every orchestratord: what runs goes on when the connection breaks, and what happens meanwhile waits in the
outbox. It decides nothing; :class:`~.desired.Pools` works towards what was wanted last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from ..core.engine_ports import EngineProperties
from ..core.events.pool import PoolReady
from ..core.projections.pools import UNLOADED
from ..core.registry import encode_payload, type_of
from ..core.settings import ManagerSettings
from .connection import SOCKET_NAME, Lines, SocketPlace, peer_uid
from .delivery import Delivery
from .desired import DesiredPool, Pools, PoolSink
from .fence import Fence
from .logs import BoundedLog, last_lines, newest_log
from .outbox import Outbox
from .protocol import (
    MAX_LINE,
    QUIET_S,
    Ack,
    Desired,
    Fact,
    GpuSample,
    Hello,
    LogLines,
    LogsRequest,
    Ping,
    Pong,
    Progress,
    ProtocolError,
    Refused,
    Stop,
    ToManager,
    Tunnel,
    Welcome,
    to_manager,
)
from .tunnel import relay

#: how long a connection may take for its first line
_HELLO_S: Final = 10.0
#: between two looks whether the data directory is still there
_LOOK_S: Final = 0.5

MakePools = Callable[[PoolSink], Pools]


class _Started(msgspec.Struct):
    pool_id: str
    generation: int


class Managerd:
    """One run of pool-managerd.

    Args:
        directory: ``pools`` of the data directory: socket, record of the fence, outbox.
        make_pools: makes what looks after engines; it is called once, when the first commands arrive, so that whoever
            connects does not wait for what that needs.
        linger_ms: end, and end the engines, when nobody was connected for so long; ``None`` = live until told.
        version: of the program.
        engine_logs: directory of the engines' logs.
        look: the latest sample of the host's devices, as JSON, given the milliseconds between two; it returns at once.
        uid: of the only user that may connect to the socket.
    """

    def __init__(
        self,
        directory: Path,
        make_pools: MakePools,
        outbox: Outbox,
        fence: Fence,
        log: BoundedLog,
        *,
        boot_id: str,
        version: str,
        engine_logs: Path,
        linger_ms: int | None,
        look: Callable[[int], bytes] | None = None,
        uid: Callable[[], int] = os.getuid,
    ) -> None:
        self._directory = directory
        self._make_pools = make_pools
        self._outbox = outbox
        self._delivery = Delivery(outbox, log, self._commanding)
        self._fence = fence
        self._log = log
        self._boot_id = boot_id
        self._version = version
        self._engine_logs = engine_logs
        self._lingers = linger_ms is not None
        self._linger_ms = linger_ms or 0
        self._pools: Pools | None = None
        self._commander: Lines | None = None
        self._desired: Desired | None = None
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._tunnels: set[Lines] = set()
        self._look_at_devices = look
        self._uid = uid
        self._greeted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._linger: asyncio.TimerHandle | None = None
        self._end: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    # --- life --------------------------------------------------------------------------------------------------------

    async def listen(self, address: tuple[str, int] | None = None, tls: ssl.SSLContext | None = None) -> list[str]:
        """Listen on the socket of the data directory, and on an address with TLS; where that is, in words.

        :raises OSError: it cannot.
        """
        with SocketPlace(self._directory) as place:
            (self._directory / SOCKET_NAME).unlink(missing_ok=True)  # whoever holds the lock is the only one
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(place.path)
                (self._directory / SOCKET_NAME).chmod(0o600)
                listener.listen(64)
            except OSError:
                listener.close()
                raise
        listener.setblocking(False)
        self._servers.append(await asyncio.start_unix_server(self._local, sock=listener, limit=MAX_LINE))
        said = [str(self._directory / SOCKET_NAME)]
        if address is not None:
            server = await asyncio.start_server(self._remote, *address, ssl=tls, limit=MAX_LINE)
            self._servers.append(server)
            said += [f"{name[0]}:{name[1]}" for name in (s.getsockname() for s in server.sockets)]
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._delivery.run()), loop.create_task(self._look())]
        if self._look_at_devices is not None:
            self._tasks.append(loop.create_task(self._report(self._look_at_devices)))
        for task in self._tasks:
            task.add_done_callback(self._over)
        self._wait_for_somebody()
        return said

    def stop(self, *, kill_engines: bool) -> None:
        """Let :meth:`run` end."""
        if not self._end.done():
            self._end.set_result(kill_engines)

    def _over(self, task: asyncio.Task[None]) -> None:
        """None of its tasks ends before the program does. One that failed is a defect: the next program does better
        than this one, and the engines go on meanwhile."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.say("error", "defect", f"pool-managerd has a defect and ends: {error!r}")
            self.stop(kill_engines=False)

    async def run(self) -> None:
        """Serve until told to stop, then end in order."""
        kill_engines = await self._end
        for server in self._servers:
            server.close()
        if self._linger is not None:
            self._linger.cancel()
        if self._pools is None and kill_engines:
            self._pools = self._make_pools(self)  # engines of an earlier run end too
        if self._pools is not None:
            await self._pools.stop(kill_engines=kill_engines)
        self._directory.joinpath(SOCKET_NAME).unlink(missing_ok=True)
        for task in [*self._tasks, *self._connections]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._connections, return_exceptions=True)

    async def _look(self) -> None:
        """Nobody can come back to a data directory that is gone."""
        told = (self._directory / SOCKET_NAME).stat()
        while True:
            await asyncio.sleep(_LOOK_S)
            self._log.tend()
            try:
                now = (self._directory / SOCKET_NAME).stat()
                there = (now.st_ino, now.st_dev) == (told.st_ino, told.st_dev)
            except OSError:
                there = False
            if not there:
                self._log.say("warning", "gone", "The data directory or its socket is gone; the engines end.")
                self.stop(kill_engines=True)
                return

    def _wait_for_somebody(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._lingers and self._commander is None:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(self._linger_ms / 1000, self._give_up)

    def _give_up(self) -> None:
        self._log.say("info", "lingered", f"Nobody was connected for {self._linger_ms} ms; the engines end.")
        self.stop(kill_engines=True)

    # --- what pools tell ---------------------------------------------------------------------------------------------

    def fact(self, event: Any, properties: EngineProperties | None = None) -> None:
        declared, desired = type_of(event), self._desired
        fact = Fact(
            incarnation="",
            n=0,
            boot_id="",
            epoch=desired.epoch if desired else self._fence.held.epoch,
            revision=desired.revision if desired else 0,
            name=declared.name,
            version=declared.version,
            payload=msgspec.Raw(encode_payload(event)),
            properties=properties,
        )
        self._delivery.tell(fact)

    def progress(self, pool_id: str, phase: str, done: int, total: int, unit: str) -> None:
        self._mention(Progress(pool_id=pool_id, phase=phase, done=done, total=total, unit=unit))

    async def _report(self, look: Callable[[int], bytes]) -> None:
        """How the devices are, for whoever listens: at once when somebody begins to, then once a period."""
        while True:
            manager = self._desired.manager if self._desired is not None else ManagerSettings()
            sample = look(manager.sample_ms)
            self._mention(GpuSample(sample=msgspec.Raw(sample)))
            self._greeted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(manager.sample_ms / 1000):
                    await self._greeted.wait()

    def _commanding(self) -> Lines | None:
        return self._commander

    @property
    def host(self) -> str:
        """Name that the configuration has for this host."""
        return self._fence.held.host

    def _mention(self, message: Progress | GpuSample) -> None:
        if self._commander is not None and not self._commander.full:
            self._commander.send(message)

    # --- connections -------------------------------------------------------------------------------------------------

    def _local(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(self._greet(reader, writer))

    def _remote(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername") or ("?", 0)
        self._begin(self._connected(Lines(reader, writer, f"{peer[0]}:{peer[1]}"), from_network=True))

    def _begin(self, connection: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(connection)
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = peer_uid(writer.get_extra_info("socket"))
        lines = Lines(reader, writer, "local" if uid is None else f"uid {uid}")
        if uid is not None and uid != self._uid():
            lines.send(Refused(code="AUTH", message=f"user {uid} is not the user of this program"))
            await lines.close()
            return
        await self._connected(lines, from_network=False)

    async def _connected(self, lines: Lines, *, from_network: bool) -> None:
        try:
            await self._serve(lines, from_network=from_network)
        except ProtocolError as error:
            self._log.say("warning", "protocol", f"{lines.name}: {error}")
        except (OSError, TimeoutError):
            pass
        finally:
            if self._commander is lines:
                self._commander = None
                self._log.say("info", "disconnected", f"{lines.name} is gone; the engines go on.")
                self._wait_for_somebody()
            lines.abort()

    async def _serve(self, lines: Lines, *, from_network: bool) -> None:
        async with asyncio.timeout(_HELLO_S):
            line = await lines.line()
        if not line:
            return
        hello = to_manager(line)
        if not isinstance(hello, Hello | Tunnel):
            msg = f"a connection begins with Hello, not with {type(hello).__name__}"
            raise ProtocolError(msg)
        refused = self._fence.refuses(hello, from_network=from_network, occupied=self._commander is not None)
        if refused is None and isinstance(hello, Hello):
            refused = self._admit(lines, hello)
        elif refused is None and isinstance(hello, Tunnel):
            refused = await self._tunnel(lines, hello)
        if refused is not None:
            self._log.say("warning", "refused", f"{lines.name}: {refused.message}", code=refused.code)
            lines.send(refused)
            await lines.close()
            return
        if isinstance(hello, Hello):
            await self._obey(lines)

    def _admit(self, lines: Lines, hello: Hello) -> Refused | None:
        """It commands from now on; whoever did before is told nothing more, and hears no more."""
        higher = hello.epoch > self._fence.held.epoch
        try:
            other_journal = self._fence.admit(hello)
        except OSError as error:
            return Refused(code="UNWRITABLE", message=f"the epoch cannot be remembered: {error}")
        if other_journal:
            self._outbox.forget()
        old, self._commander = self._commander, lines
        if old is not None:
            self._log.say("warning", "taken-over", f"{lines.name} with epoch {hello.epoch} takes over from {old.name}.")
            old.abort()
        if higher or other_journal:
            for tunnel in list(self._tunnels):
                tunnel.abort()
        self._linger_ms = hello.linger_ms
        self._wait_for_somebody()
        self._log.say("info", "connected", f"{lines.name} commands with epoch {hello.epoch}.", epoch=hello.epoch)
        lines.send(
            Welcome(
                boot_id=self._boot_id,
                incarnation=self._outbox.incarnation,
                version=self._version,
                next_n=self._outbox.next_n,
                lingers=self._lingers,
            )
        )
        self._delivery.send_all()
        self._greeted.set()
        return None

    async def _obey(self, lines: Lines) -> None:
        first = True
        while True:
            async with asyncio.timeout(3 * QUIET_S):
                line = await lines.line()
            if not line or self._commander is not lines:
                return
            message = to_manager(line)
            match message:
                case Desired():
                    await self._want(message, tell_all=first)
                    first = False
                case Stop(kill_engines=kill_engines):
                    self._log.say("info", "stop", f"{lines.name} ends it.", kill_engines=kill_engines)
                    self.stop(kill_engines=kill_engines)
                    await asyncio.sleep(3600)  # the end of the connection says that all is done
                case _:
                    self._answer(lines, message)

    def _answer(self, lines: Lines, message: ToManager) -> None:
        match message:
            case Ack(incarnation=incarnation, n=n):
                self._delivery.ack(incarnation, n)
            case Ping():
                lines.send(Pong())
            case LogsRequest(pool_id=pool_id, lines=count):
                told = last_lines(newest_log(self._engine_logs, pool_id), count) if _plain(pool_id) else []
                lines.send(LogLines(pool_id=pool_id, lines=told))
            case _:
                msg = f"{type(message).__name__} is not said here"
                raise ProtocolError(msg)

    async def _want(self, desired: Desired, *, tell_all: bool) -> None:
        if self._commander is None or desired.epoch != self._fence.held.epoch:
            return
        before = {pool.settings.id: pool for pool in self._desired.pools} if self._desired is not None else {}
        self._desired = desired
        known = self._pools is not None
        pools = self._pools or self._make_pools(self)
        self._pools = pools
        await pools.apply(self._counted_on(desired.pools), epoch=desired.epoch, manager=desired.manager)
        wanted = {pool.settings.id for pool in desired.pools if pool.wanted}
        changed = {pool.settings.id for pool in desired.pools if before.get(pool.settings.id) != pool}
        for event, properties in pools.states():
            if isinstance(event, PoolReady):
                # A change may have crossed what was told before it: what is told now names this revision.
                tells = tell_all or event.pool_id in changed
            else:
                # What is new here tells by itself how it is, once it knows.
                tells = tell_all and known and not (event.cause == UNLOADED and event.pool_id in wanted)
            if tells:
                self.fact(event, properties)

    def _counted_on(self, pools: list[DesiredPool]) -> list[DesiredPool]:
        """Generations go on behind those that wait in the outbox: the journal does not know of them yet."""
        highest: dict[str, int] = {}
        for entry in self._outbox.pending:
            if entry.fact.name == "pool.ready":
                told = msgspec.json.decode(entry.fact.payload, type=_Started)
                highest[told.pool_id] = max(told.generation, highest.get(told.pool_id, 0))
        return [
            msgspec.structs.replace(pool, generation_floor=max(pool.generation_floor, highest.get(pool.settings.id, 0)))
            for pool in pools
        ]

    async def _tunnel(self, lines: Lines, hello: Tunnel) -> Refused | None:
        states = self._pools.states() if self._pools is not None else []
        url = next((getattr(event, "url", "") for event, _ in states if event.pool_id == hello.pool_id), "")
        if not url or hello.epoch != self._fence.held.epoch:
            return Refused(code="UNKNOWN", message=f"no engine of a pool {hello.pool_id!r} is ready here")
        self._tunnels.add(lines)
        try:
            await relay(lines, url)
        finally:
            self._tunnels.discard(lines)
        return None


def _plain(name: str) -> bool:
    return bool(name) and "/" not in name and not name.startswith(".")
