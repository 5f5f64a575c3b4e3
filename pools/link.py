"""orchestratord's connection to the pool-managerd of one host: it comes back by itself, and starts the program at need."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec

from ..core.errors import JournalUnavailableError
from .connection import Lines
from .protocol import (
    PROTOCOL,
    QUIET_S,
    Ack,
    Desired,
    Fact,
    FromManager,
    GpuSample,
    Hello,
    Ping,
    Pong,
    Progress,
    ProtocolError,
    Refused,
    Stop,
    Tunnel,
    Welcome,
    from_manager,
)
from .starting import ManagerdStartError, Starter

_log = logging.getLogger(__name__)
#: pools stay as they are for so long while nobody answers: their streams do not go through pool-managerd
GRACE_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.05
_LAST_PAUSE_S: Final = 2.0
#: how long a connection may take, with its greeting
_GREETING_S: Final = 10.0
#: how long an orderly end of the program may take
_END_S: Final = 15.0

Dial = Callable[[], Awaitable[Lines]]


class Commander(msgspec.Struct, frozen=True, kw_only=True):
    """By which right commands are given."""

    owner: str
    epoch: int
    version: str = ""
    linger_ms: int = 600_000


class LinkEvents(Protocol):
    """Who hears of a host; all on the event loop."""

    def welcome(self, link: Link, welcome: Welcome) -> None:
        """It obeys."""
        ...

    def lost(self, link: Link, detail: str, *, grace_over: bool) -> None:
        """Nobody answers any more; called once more when the grace is over."""
        ...

    async def facts(self, link: Link, facts: Sequence[Fact]) -> None:
        """Whole batches of facts. :raises JournalUnavailableError: they have to come again."""
        ...

    def sample(self, link: Link, sample: GpuSample) -> None:
        """How its GPUs are."""
        ...

    def progress(self, link: Link, progress: Progress) -> None:
        """How far something is."""
        ...


class Link:
    """One host.

    Args:
        host: its name in the configuration.
        dial: opens a connection.
        starter: starts the program when nobody answers; ``None`` = somebody else does.
        key: that it asks for, over the network.
    """

    def __init__(
        self,
        host: str,
        dial: Dial,
        events: LinkEvents,
        *,
        starter: Starter | None = None,
        key: str = "",
        grace_s: float = GRACE_S,
    ) -> None:
        self.host = host
        self._dial = dial
        self._events = events
        self._starter = starter
        self._key = key
        self._grace_s = grace_s
        self._commander: Commander | None = None
        self._desired: Desired | None = None
        self._lines: Lines | None = None
        self._welcome: Welcome | None = None
        self._task: asyncio.Task[None] | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._stopping = False
        self._detail = ""
        self._told = ""
        self._heard = 0.0
        self._facts: list[Fact] = []
        self._some = asyncio.Event()

    # --- what the server does

    def start(self, commander: Commander) -> None:
        """Connect, and stay connected."""
        self._commander = commander
        self._wait_for_grace()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def command(self, commander: Commander) -> None:
        """From now on commands are given by another right: the connection begins anew."""
        self._commander, self._desired = commander, None
        self.abort()

    def want(self, desired: Desired) -> None:
        """All that shall be; sent now, and on every connection to come."""
        self._desired = desired
        self._send_desired()

    def forget(self) -> None:
        """What was wanted is out of date; nothing is said until there is something newer."""
        self._desired = None

    def ack(self, incarnation: str, n: int) -> None:
        """Facts are in the journal."""
        if self._lines is not None:
            self._lines.send(Ack(incarnation=incarnation, n=n))

    def abort(self) -> None:
        """Break the connection off: whatever was not acknowledged comes again on the next one."""
        if self._lines is not None:
            self._lines.abort()

    async def dial(self, pool_id: str) -> tuple[Lines, Tunnel]:
        """A connection that may become a tunnel to a pool's engine, and what it has to begin with."""
        commander = self._commander
        assert commander is not None
        hello = Tunnel(protocol=PROTOCOL, owner=commander.owner, epoch=commander.epoch, pool_id=pool_id, key=self._key)
        return await self._dial(), hello

    async def stop(self, *, end_engines: bool) -> None:
        """Connect no more. With ``end_engines`` the engines are gone behind it, as far as the host answers."""
        if self._grace is not None:
            self._grace.cancel()
        self._stopping = True
        lines, self._desired = self._lines, None
        if end_engines and lines is not None and self._welcome is not None and self._commander is not None:
            if self._welcome.lingers:
                lines.send(Stop(kill_engines=True))
            else:  # it belongs to somebody else; its engines were ours
                lines.send(Desired(epoch=self._commander.epoch, revision=2**52, pools=[]))
                await lines.close()
            if self._task is not None:
                await asyncio.wait([self._task], timeout=_END_S)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._starter is not None:
            self._starter.close()

    # --- inside

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._once()
                pause_s = _FIRST_PAUSE_S
            except (OSError, TimeoutError, ProtocolError, ManagerdStartError, JournalUnavailableError) as error:
                self._detail = str(error) or type(error).__name__
            except Exception as error:
                # A defect must not leave the host alone for ever: it is told, and tried again.
                _log.exception("the connection to pool-managerd of %s", self.host)
                self._detail = repr(error)
            if self._stopping:
                return
            if self._starter is not None:
                self._starter.reap()
            self._tell(self._detail)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(pause_s * 2, _LAST_PAUSE_S)

    async def _once(self) -> None:
        """One connection, from its beginning to its end."""
        async with asyncio.timeout(_GREETING_S + (30 if self._starter else 0)):
            lines = await self._connect()
        commander = self._commander
        assert commander is not None
        consumer: asyncio.Task[None] | None = None
        try:
            lines.send(
                Hello(
                    protocol=PROTOCOL,
                    owner=commander.owner,
                    epoch=commander.epoch,
                    host=self.host,
                    version=commander.version,
                    linger_ms=commander.linger_ms,
                    key=self._key,
                )
            )
            answer = await self._answer(lines)
            if isinstance(answer, Refused):
                msg = f"{answer.code}: {answer.message}"
                raise ProtocolError(msg)
            if not isinstance(answer, Welcome):
                msg = f"a greeting is answered by Welcome, not by {type(answer).__name__}"
                raise ProtocolError(msg)
            if commander is not self._commander:
                return  # another right came in between
            if self._starter is not None and answer.lingers and answer.version != commander.version:
                await self._replace(lines)  # an older version of the program; the new one adopts its engines
                return
            self._lines, self._welcome = lines, answer
            if self._grace is not None:
                self._grace.cancel()
                self._grace = None
            self._told = ""
            self._events.welcome(self, answer)
            self._facts = []
            consumer = asyncio.get_running_loop().create_task(self._consume(lines))
            await self._listen(lines)
        finally:
            if consumer is not None:
                consumer.cancel()
                await asyncio.gather(consumer, return_exceptions=True)
            if self._lines is lines:
                self._lines = None
                self._wait_for_grace()
            lines.abort()

    async def _connect(self) -> Lines:
        """A connection, to a program that is started for it where need be."""
        if self._starter is None:
            return await self._dial()
        try:
            await self._starter.ready()
            return await self._dial()
        except (FileNotFoundError, ConnectionRefusedError):
            self._starter.begin()
            await self._starter.ready()
            return await self._dial()

    async def _answer(self, lines: Lines) -> FromManager:
        try:
            async with asyncio.timeout(_GREETING_S):
                return from_manager(await lines.line())
        except TimeoutError:
            if self._starter is not None:
                self._starter.end_hung()  # what takes its place adopts the engines
            raise

    @staticmethod
    async def _replace(lines: Lines) -> None:
        lines.send(Stop(kill_engines=False))
        async with asyncio.timeout(_END_S):
            while await lines.line():
                pass

    async def _listen(self, lines: Lines) -> None:
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        watch = loop.create_task(self._ask(lines))
        try:
            while line := await lines.line():
                self._heard = loop.time()
                self._hear(from_manager(line))
        finally:
            watch.cancel()
        self._detail = "the connection ended"

    async def _ask(self, lines: Lines) -> None:
        """One that hangs is as good as gone."""
        loop = asyncio.get_running_loop()
        while loop.time() - self._heard < 2 * QUIET_S:
            lines.send(Ping())
            await asyncio.sleep(QUIET_S)
        self._detail = f"no answer within {2 * QUIET_S:g} s"
        lines.abort()

    def _hear(self, message: FromManager) -> None:
        match message:
            case Fact():
                self._facts.append(message)
                if not message.more:
                    self._some.set()
            case GpuSample():
                self._events.sample(self, message)
            case Progress():
                self._events.progress(self, message)
            case Pong():
                pass
            case Refused(code=code, message=said):
                self._detail = f"{code}: {said}"
            case _:
                msg = f"{type(message).__name__} is not said here"
                raise ProtocolError(msg)

    async def _consume(self, lines: Lines) -> None:
        """Whole batches, in order. What the journal does not take comes again on another connection."""
        while True:
            await self._some.wait()
            self._some.clear()
            whole = max((at for at, fact in enumerate(self._facts, 1) if not fact.more), default=0)
            facts, self._facts = self._facts[:whole], self._facts[whole:]
            if not facts:
                continue
            try:
                await self._events.facts(self, facts)
            except Exception as error:
                _log.warning("facts of %s wait: %s", self.host, error)
                await asyncio.sleep(_LAST_PAUSE_S / 2)
                lines.abort()
                return

    def _send_desired(self) -> None:
        if self._lines is not None and self._desired is not None:
            self._lines.send(self._desired)

    # --- how it is told

    def _tell(self, detail: str) -> None:
        if detail != self._told:
            self._told = detail
            _log.warning("pool-managerd of %s: %s", self.host, detail)
            with contextlib.suppress(JournalUnavailableError):  # it is told again when the grace is over
                self._events.lost(self, detail, grace_over=False)

    def _wait_for_grace(self) -> None:
        if self._grace is None:
            self._grace = asyncio.get_running_loop().call_later(self._grace_s, self._give_up)

    def _give_up(self) -> None:
        self._grace = None
        if self._lines is None:
            try:
                self._events.lost(self, self._detail or "nobody answers", grace_over=True)
            except JournalUnavailableError:
                self._wait_for_grace()
