"""orchestratord's side of the pools: what shall run goes to the hosts, what happened goes to the journal (RCV-3).

Decisions are committed before a host hears of them, facts before a host may forget them. The engines themselves are
spoken to directly: a client is made from what a ready pool tells, and lives as long as that engine is ready.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from ..core.devices import HostSample
from ..core.engine_ports import Engine, EngineFactory, EngineProperties, LauncherFactory
from ..core.errors import CorruptJournalError, OrchError
from ..core.events.pool import PoolReady, PoolRetired, PoolUnready
from ..core.journal.journal import Journal
from ..core.projections.pools import UNLOADED
from ..core.projections.projection import Recorded
from ..core.registry import decode_payload
from ..core.settings import HostSettings, Settings
from .connection import Lines, SocketPlace
from .desired import DesiredPool
from .link import GRACE_S, Commander, Link
from .protocol import MAX_LINE, Desired, Fact, GpuSample, Progress, Welcome
from .starting import Starter
from .tunnel import Forwarder, client_context, read_key
from .wanting import MOVING, client_config, wanted_pools

_log = logging.getLogger(__name__)
LOCAL = "local"
#: events after which nothing runs on the engine any more that a pool had before its reload
_LEFT = frozenset({"pool.handed_over", "pool.retired"})


class FactService(Protocol):
    """What the journal's side does with facts; see :class:`~llama_orch.core.services.pools.PoolService`."""

    def received(self, host: str, boot_id: str, incarnation: str, facts: Sequence[tuple[int, object]]) -> int: ...

    def connected(self, host: str, boot_id: str, incarnation: str, version: str) -> None: ...

    def lost(self, host: str, detail: str, *, grace_over: bool) -> None: ...


class _Served(msgspec.Struct):
    """An engine that can be spoken to."""

    host: str
    generation: int
    #: on its host
    url: str
    client: Engine
    properties: EngineProperties
    forwarder: Forwarder | None = None


class PoolClients:
    """The hosts and their engines, as one server sees them.

    Args:
        data_dir: of the server; the local pool-managerd looks after its engines.
        engines: engine factories by name.
        launchers: engines that are started as processes, by name.
        starter: of the local pool-managerd; ``None`` = somebody else starts it.
        linger_ms: how long it lives without a server.
        grace_s: how long pools stay as they are while a host does not answer.
    """

    def __init__(
        self,
        journal: Journal,
        settings: Settings,
        *,
        data_dir: Path,
        engines: Mapping[str, EngineFactory],
        launchers: Mapping[str, LauncherFactory],
        starter: Starter | None,
        linger_ms: int,
        version: str,
        grace_s: float = GRACE_S,
    ) -> None:
        self._journal = journal
        self._settings = settings
        self._engines = engines
        self._launched = frozenset(launchers)
        self._linger_ms = linger_ms
        self._version = version
        self._hear_sample: Callable[[HostSample], None] | None = None
        self._service: FactService | None = None
        self._serving: dict[str, _Served] = {}
        #: engines of pools that were reloaded, while tasks still run on them
        self._leaving: dict[str, list[_Served]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._desired: dict[str, list[DesiredPool]] = {}
        self._revision = 0
        #: revision in which what is wanted of a pool changed last
        self._changed: dict[str, int] = {}
        self._owner = ""
        self._stopping = False
        self._links = {LOCAL: Link(LOCAL, _local_dialer(data_dir / "pools"), self, starter=starter, grace_s=grace_s)}
        for host in settings.hosts:
            self._links[host.id] = Link(
                host.id, _remote_dialer(host), self, key=read_key(Path(host.key_file)), grace_s=grace_s
            )

    # --- the engines, for the services

    def engine(self, pool_id: str) -> Engine | None:
        """The pool's engine; ``None`` while it is not ready."""
        served = self._serving.get(pool_id)
        return served.client if served is not None else None

    def properties(self, pool_id: str) -> EngineProperties | None:
        """What the pool's engine said of itself when it became ready."""
        served = self._serving.get(pool_id)
        return served.properties if served is not None else None

    # --- life

    async def start(self, service: FactService, hear_sample: Callable[[HostSample], None]) -> None:
        """Connect to all hosts; what happens is told to the service, and each host's devices as they are to the other.

        :raises JournalUnavailableError: the journal's first frame cannot be committed.
        """
        self._service, self._hear_sample = service, hear_sample
        await self._journal.committed(self._journal.head.next_seq)
        self._owner = await asyncio.to_thread(owner_of_journal, self._journal)
        self._journal.on_committed(self._note)
        self._journal.on_rebuilt(self._rebuilt)
        for link in self._links.values():
            link.start(self._commander())
        self._want()

    async def stop(self, *, end_engines: bool) -> None:
        """Connect no more; with ``end_engines`` the engines end too, else they run on for the next server."""
        self._stopping = True
        await asyncio.gather(*(link.stop(end_engines=end_engines) for link in self._links.values()))
        for pool_id in list(self._serving):
            self._drop(pool_id)
        for served in [one for several in self._leaving.values() for one in several]:
            self._close(served)
        self._leaving.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _commander(self) -> Commander:
        return Commander(owner=self._owner, epoch=self._journal.epoch, version=self._version, linger_ms=self._linger_ms)

    def _rebuilt(self) -> None:
        """The journal was opened anew, with a new epoch: what was commanded before may never have been decided."""
        self._revision, self._desired, self._changed = 0, {}, {}
        for link in self._links.values():
            link.command(self._commander())
        self._want()

    # --- what shall be

    def _note(self, records: list[Recorded]) -> None:
        for record in records:
            if record.name in _LEFT:
                for served in self._leaving.pop(record.payload.pool_id, []):
                    self._close(served)
        if not self._stopping and any(record.name in MOVING for record in records):
            self._want()

    def _want(self, *, anew: bool = False) -> None:
        """Tell the hosts what follows from head, once all of that is committed."""
        head = self._journal.head
        wanted = wanted_pools(head.pools.by_id, self._settings, self._launched)
        if wanted == self._desired and self._revision and not anew:
            return
        before = {pool.settings.id: pool for pools in self._desired.values() for pool in pools}
        self._revision += 1
        self._desired = wanted
        for pool in (pool for pools in wanted.values() for pool in pools):
            if _gist(before.get(pool.settings.id)) != _gist(pool):
                self._changed[pool.settings.id] = self._revision
        revision, epoch = self._revision, self._journal.epoch

        def send(error: BaseException | None) -> None:
            if error is None and (revision, epoch) == (self._revision, self._journal.epoch):
                for host, link in self._links.items():
                    link.want(
                        Desired(
                            epoch=epoch,
                            revision=revision,
                            pools=wanted.get(host, []),
                            manager=self._settings.manager,
                        )
                    )

        self._journal.when_committed(head.next_seq, send)

    # --- what happened

    def welcome(self, link: Link, welcome: Welcome) -> None:
        """A host obeys."""
        assert self._service is not None
        # What it is told first is no older than what is known of its engines: their generations count on.
        link.forget()
        self._want(anew=True)
        self._service.connected(link.host, welcome.boot_id, welcome.incarnation, welcome.version)

    def lost(self, link: Link, detail: str, *, grace_over: bool) -> None:
        """A host does not answer."""
        assert self._service is not None
        self._service.lost(link.host, detail, grace_over=grace_over)

    def sample(self, link: Link, sample: GpuSample) -> None:
        """How a host's devices are."""
        if self._hear_sample is not None:
            told = msgspec.json.decode(sample.sample, type=HostSample)
            self._hear_sample(msgspec.structs.replace(told, host=link.host))

    def progress(self, link: Link, progress: Progress) -> None:
        """How far something is."""
        _log.debug("%s: %s %d/%d %s", progress.pool_id, progress.phase, progress.done, progress.total, progress.unit)

    async def facts(self, link: Link, facts: Sequence[Fact]) -> None:
        """Fold them, once each, and acknowledge them when that is committed.

        :raises JournalUnavailableError: the journal takes nothing now.
        """
        assert self._service is not None
        at = 0
        while at < len(facts):
            incarnation = facts[at].incarnation
            run = [fact for fact in facts[at:] if fact.incarnation == incarnation]
            at += len(run)
            last = self._journal.head.outboxes.last(link.host, incarnation)
            fresh = [fact for fact in run if fact.n > last]
            events = [(fact.n, event) for fact in fresh if (event := await self._take(link, fact)) is not None]
            if not events and fresh:
                self._send_ack(link, incarnation, run[-1].n, self._journal.head.next_seq)
                continue
            seq = self._service.received(link.host, run[0].boot_id, incarnation, events)
            for _, event in events:
                if isinstance(event, PoolUnready | PoolRetired):
                    self._unready(event.pool_id, events)
            self._send_ack(link, incarnation, run[-1].n, seq)

    def _send_ack(self, link: Link, incarnation: str, n: int, seq: int) -> None:
        def ack(error: BaseException | None) -> None:
            if error is None:
                link.ack(incarnation, n)
            else:
                link.abort()  # what was folded is void: it has to come again

        self._journal.when_committed(seq, ack)

    async def _take(self, link: Link, fact: Fact) -> object | None:
        """The event of a fact, with a client for the engine that it names; ``None`` = it says nothing any more."""
        try:
            event = decode_payload(fact.name, fact.version, fact.payload)
        except (CorruptJournalError, msgspec.MsgspecError) as error:
            _log.warning("%s told what is not understood here: %s", link.host, error)
            return None
        if isinstance(event, PoolReady) and not await self._ready(link, fact, event):
            return None
        if isinstance(event, PoolUnready) and event.cause == UNLOADED and self._stale(fact, event.pool_id):
            return None  # it was told before it was decided to load it
        told: object = event
        return told

    def _stale(self, fact: Fact, pool_id: str) -> bool:
        """It was told before something else was wanted of the pool."""
        return fact.epoch != self._journal.epoch or fact.revision < self._changed.get(pool_id, 0)

    async def _ready(self, link: Link, fact: Fact, event: PoolReady) -> bool:
        """Whether the engine that became ready can be spoken to, and is still wanted as it was told."""
        desired = next((p for p in self._desired.get(link.host, []) if p.settings.id == event.pool_id), None)
        if self._stale(fact, event.pool_id) or desired is None or fact.properties is None:
            return False  # how the pool is now is told behind it
        known = self._serving.get(event.pool_id)
        if known is not None and (known.generation, known.url) == (event.generation, event.url):
            known.properties = fact.properties
            return True
        url, forwarder = event.url, None
        if event.url and link.host != LOCAL:
            forwarder = Forwarder(lambda: link.dial(event.pool_id))
            # What stands for the engine here is asked as the engine is: the same scheme, and path.
            url = urlsplit(event.url)._replace(netloc=urlsplit(await forwarder.open()).netloc).geturl()
        try:
            client = self._engines[desired.settings.engine](client_config(desired, url, self._launched))
        except (OrchError, KeyError) as error:
            _log.error("pool %s: its engine cannot be spoken to: %s", event.pool_id, error)
            if forwarder is not None:
                await forwarder.close()
            return False
        if desired.next is not None and known is not None:
            self._leaving.setdefault(event.pool_id, []).append(self._serving.pop(event.pool_id))
        self._drop(event.pool_id)
        self._serving[event.pool_id] = _Served(
            link.host, event.generation, event.url, client, fact.properties, forwarder
        )
        return True

    def _unready(self, pool_id: str, events: Sequence[tuple[int, object]]) -> None:
        """The pool's engine is not ready any more, unless it is again in the same batch."""
        about = [e for _, e in events if isinstance(e, PoolReady | PoolUnready) and e.pool_id == pool_id]
        if not about or not isinstance(about[-1], PoolReady):
            self._drop(pool_id)

    def _drop(self, pool_id: str) -> None:
        served = self._serving.pop(pool_id, None)
        if served is not None:
            self._close(served)

    def _close(self, served: _Served) -> None:
        for work in (served.client.close(), served.forwarder.close() if served.forwarder is not None else None):
            if work is not None:
                task = asyncio.get_running_loop().create_task(work)
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)


def owner_of_journal(journal: Journal) -> str:
    """A name of the journal that no other one has: the hash of its first frame. Blocks; call it in a thread."""
    first = journal.store.frames_at([1])
    return first[0].hash.hex()[:32] if first else "journal"


def _gist(pool: DesiredPool | None) -> Any:
    """What of a wish moves engines; the rest may change while facts are on their way."""
    return None if pool is None else msgspec.structs.replace(pool, generation_floor=0)


def _local_dialer(directory: Path) -> Callable[[], Any]:
    async def dial() -> Lines:
        with SocketPlace(directory) as place:
            reader, writer = await asyncio.open_unix_connection(place.path, limit=MAX_LINE)
        return Lines(reader, writer, LOCAL)

    return dial


def _remote_dialer(host: HostSettings) -> Callable[[], Any]:
    name, _, port = host.address.rpartition(":")

    async def dial() -> Lines:
        context = client_context(host.ca_file)
        reader, writer = await asyncio.open_connection(name.strip("[]"), int(port), ssl=context, limit=MAX_LINE)
        return Lines(reader, writer, host.id)

    return dial
