"""All pools of a host: their engines are brought to what is desired, and what is observed of them is told."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from ..core.engine_ports import Engine, EngineFactory, EngineProperties, LauncherFactory
from ..core.events.pool import PoolUnready
from ..core.ports import Clock
from ..core.settings import ManagerSettings
from . import causes
from . import identity as identities
from .desired import DesiredPool, PoolSink
from .hosts import ExternalHost, Host, ProcessHost, end_recorded
from .identity import ProcessTable, owner_of, process_table
from .lifecycle import Trouble
from .oom import OomKills
from .outfitting import Outfitter, is_launched
from .pool import Pool
from .preparing import SETTLE_S, Memory, Order, Prepared, Preparer, order_digest
from .process import reap_marked
from .provisioning.catalog import EngineCatalog
from .provisioning.container import end_strays
from .timing import Timing
from .worker import Worker, WorkerEvents

#: somebody else's engine is looked for at least so often, in milliseconds
EXTERNAL_BACKOFF_MS = 5_000
#: preparations (downloads, builds) that run side by side
PREPARATIONS = 8


class PoolManager:
    """Starts, watches, adopts and ends the engines of all pools.

    Args:
        sink: who hears what is observed.
        data_dir: identity records and logs go to its ``engines`` folder; no two managers may look after one folder.
        engines: engine factories by name.
        launchers: launch planners by engine name.
        preparer: makes engines and models available; without it they have to be there.
        clock: monotonic time for backoff.
        memory: what memory there is; ``None`` = it is not looked whether an engine fits.
        jitter: 0 to 1 at each call.
    """

    def __init__(
        self,
        *,
        sink: PoolSink,
        data_dir: Path,
        engines: Mapping[str, EngineFactory],
        launchers: Mapping[str, LauncherFactory],
        clock: Clock,
        preparer: Preparer | None = None,
        memory: Memory | None = None,
        jitter: Callable[[], float] = random.random,
        timing: Timing | None = None,
        table: ProcessTable | None = None,
        oom: OomKills | None = None,
    ) -> None:
        self._sink = sink
        self._data_dir = data_dir
        self._directory = data_dir / "engines"
        self._owner = owner_of(data_dir)
        self._engines = engines
        self._launchers = launchers
        self._preparer = preparer or Outfitter(launchers, {})
        self._clock = clock
        self._memory = memory
        self._jitter = jitter
        self._timing = timing or Timing()
        self._table = table or process_table()
        self._oom = oom or OomKills()
        self._executor = ThreadPoolExecutor(PREPARATIONS, thread_name_prefix="prepare")
        self._ended_ns: int | None = None
        self._refused: dict[str, PoolUnready] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._taken_over = False
        self.pools: dict[str, Pool] = {}

    # --- desired.Pools

    async def apply(
        self, pools: Sequence[DesiredPool], *, epoch: int = 0, manager: ManagerSettings | None = None
    ) -> None:
        """From now on this is wanted; see :class:`~llama_orch.pools.desired.Pools`. Returns before engines are ready."""
        wanted = {pool.settings.id: pool for pool in pools}
        if manager is not None:
            self._preparer.configure(manager)
        if not self._taken_over:
            self._taken_over = True
            self._reap_strangers(wanted)
            self._executor.submit(self._end_stray_containers)
        for pool_id in [name for name in self.pools if name not in wanted]:
            self._leave(self.pools.pop(pool_id))
        self._refused = {}
        for pool_id, desired in wanted.items():
            if desired.settings.engine not in self._engines:
                self._refuse(desired)
                continue
            pool = self.pools.get(pool_id)
            if pool is None:
                pool = self.pools[pool_id] = Pool(pool_id, self, self._preparer, self._memory, self._sink)
            pool.apply(desired, epoch)

    def states(self) -> list[tuple[Any, EngineProperties | None]]:
        """Every pool as it stands now."""
        told: list[tuple[Any, EngineProperties | None]] = []
        for pool in self.pools.values():
            state = pool.state()
            told.append((state.event, state.properties))
        return [*told, *((event, None) for event in self._refused.values())]

    async def stop(self, *, kill_engines: bool) -> None:
        """End looking after pools; with ``kill_engines`` every engine of this data directory is gone behind it."""
        pools = list(self.pools.values())
        await asyncio.gather(*(pool.stop() if kill_engines else pool.detach() for pool in pools), *self._leaving)
        if kill_engines:
            self._reap_strangers({})
        self._executor.shutdown(wait=False, cancel_futures=True)

    # --- engines inside this process

    def engine(self, pool_id: str) -> Engine | None:
        """The pool's engine; ``None`` while it is not ready."""
        pool = self.pools.get(pool_id)
        return pool.engine if pool is not None else None

    def properties(self, pool_id: str) -> EngineProperties | None:
        """What the pool's engine said of itself when it became ready."""
        pool = self.pools.get(pool_id)
        return pool.properties if pool is not None else None

    # --- pool.Workshop

    def worker(
        self,
        pool_id: str,
        seat_name: str,
        order: Order,
        prepare: Callable[[threading.Event, bool], Prepared],
        events: WorkerEvents,
        next_generation: Callable[[], int],
        *,
        any_port: bool,
        epoch: int,
    ) -> Worker:
        """A worker that is not started yet."""
        settings = order.settings
        launched = is_launched(order, self._launchers)
        timing = self._timing
        if not launched:
            last_ms = min(timing.backoff_last_ms, EXTERNAL_BACKOFF_MS)
            timing = msgspec.structs.replace(timing, start_timeout_ms=0, backoff_last_ms=last_ms, breaker_failures=0)

        def host(on_exit: Callable[[Trouble], None]) -> Host:
            if not launched:
                return ExternalHost(settings.provisioning.url, on_exit, next_generation)
            return ProcessHost(
                pool_id,
                seat_name,
                self._launchers[settings.engine],
                port=0 if any_port else settings.provisioning.port,
                order=order_digest(order),
                directory=self._directory,
                owner=self._owner,
                table=self._table,
                on_exit=on_exit,
                next_generation=next_generation,
                oom=self._oom,
            )

        return Worker(
            host,
            self._engines[settings.engine],
            prepare,
            events=events,
            timing=timing,
            clock=self._clock,
            jitter=self._jitter,
            executor=self._executor,
            epoch=epoch,
        )

    def seat_of(self, pool_id: str, names: tuple[str, ...], order: Order) -> str | None:
        """Which of these seats has an engine of this order running."""
        digest = order_digest(order)
        for name in names:
            known = identities.read(self._record(name))
            if known is not None and known.order == digest and identities.alive(known, self._table):
                return name
        return None

    def clear(self, pool_id: str, name: str) -> None:
        """End what an earlier run of this program left in a seat."""
        known = identities.read(self._record(name))
        if known is not None:
            end_recorded(known, self._table)
            identities.forget(self._record(name))

    def last_generation(self, pool_id: str, names: tuple[str, ...]) -> int:
        """The highest generation that was recorded."""
        found = [known.generation for name in names if (known := identities.read(self._record(name))) is not None]
        return max(found, default=0)

    def ended(self) -> None:
        """An engine ended just now."""
        self._ended_ns = time.monotonic_ns()

    def settle_s(self) -> float:
        """How long free memory may still look taken: only shortly after an engine ended."""
        if self._ended_ns is None:
            return 0.0
        return max(0.0, SETTLE_S - (time.monotonic_ns() - self._ended_ns) / 1e9)

    # --- inside

    def _record(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    def _refuse(self, desired: DesiredPool) -> None:
        settings = desired.settings
        detail = f"pools.{settings.id}.engine: no plugin offers the engine {settings.engine!r}"
        advice = f"Use one of: {', '.join(sorted(self._engines))}."
        trouble = causes.trouble("bad-configuration", detail, advice)
        event = PoolUnready(
            pool_id=settings.id, cause=trouble.cause, detail=trouble.detail, advice=advice, permanent=True, failures=1
        )
        self._refused[settings.id] = event
        self._sink.fact(event)

    def _leave(self, pool: Pool) -> None:
        task = asyncio.get_running_loop().create_task(pool.stop())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _end_stray_containers(self) -> None:
        """As below, of containers, which bear no mark that can be seen from here. Blocks."""
        end_strays(
            EngineCatalog(self._data_dir / "engine-catalog"), self._owner, self._containers, environment=os.environ
        )

    def _containers(self) -> list[str]:
        """Names of the containers that stand in a record."""
        found = [identities.read(path) for path in self._directory.glob("*.json")]
        return [known.stop_argv[-1] for known in found if known is not None and known.stop_argv]

    def _reap_strangers(self, wanted: Mapping[str, DesiredPool]) -> None:
        """End engines of this data directory that no pool of these has, or that stand in no record."""
        recorded = set()
        for path in self._directory.glob("*.json"):
            known = identities.read(path)
            if known is None:
                continue
            if known.pool_id in wanted:
                recorded.add(known.marker)
            else:
                end_recorded(known, self._table)
                identities.forget(path)
        for marker in {marker for _, marker in self._table.marked(f"{self._owner}/")} - recorded:
            reap_marked(self._table, marker, exact=True)
