"""Pools without a pool-managerd: their engines are looked after inside the process that asks for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..core.events.pool import PoolReady, PoolUnready
from ..core.ports import Clock, Engine, EngineFactory, EngineProperties, LauncherFactory
from ..core.settings import Settings
from .desired import DesiredPool
from .manager import PoolManager
from .outfitting import Outfitter
from .timing import Timing


class InProcessPools:
    """Looks after the pools of one configuration.

    Args:
        data_dir: see :class:`~llama_orch.pools.manager.PoolManager`.
        jitter: 0 to 1 at each call.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        engines: Mapping[str, EngineFactory],
        launchers: Mapping[str, LauncherFactory],
        clock: Clock,
        jitter: Callable[[], float] = random.random,
        timing: Timing | None = None,
    ) -> None:
        def make(settings: Settings, events: PoolEvents) -> PoolManager:
            return PoolManager(
                sink=_Teller(events),
                data_dir=data_dir,
                engines=engines,
                launchers=launchers,
                preparer=Outfitter(launchers, settings.models),
                clock=clock,
                jitter=jitter,
                timing=timing,
            )

        self._make = make
        self._manager: PoolManager | None = None

    async def start(self, settings: Settings, events: PoolEvents) -> None:
        """Adopt what runs and still fits, end what does not, start the rest. Returns before engines are ready."""
        self._manager = self._make(settings, events)
        await self._manager.apply([DesiredPool(settings=pool, model=pool.model) for pool in settings.pools])

    async def stop(self, *, kill_engines: bool) -> None:
        """End all pools; with ``kill_engines`` their engines too, else these live on and are adopted by the next."""
        if self._manager is not None:
            await self._manager.stop(kill_engines=kill_engines)

    def engine(self, pool_id: str) -> Engine | None:
        """The pool's engine; ``None`` while it is not ready."""
        return self._manager.engine(pool_id) if self._manager is not None else None

    def properties(self, pool_id: str) -> EngineProperties | None:
        """What the pool's engine said of itself when it became ready."""
        return self._manager.properties(pool_id) if self._manager is not None else None


class PoolEvents(Protocol):
    """Who hears what is observed of pools."""

    def ready(
        self, pool_id: str, properties: EngineProperties, *, generation: int, load_ms: int, decode_mtok_s: int
    ) -> None:
        """The engine loaded, is healthy and decoded; ``generation`` counts its starts."""
        ...

    def unready(self, pool_id: str, *, cause: str, detail: str, advice: str, retry_ms: int) -> None:
        """It cannot take tasks; ``retry_ms`` until the next try, 0 = not known."""
        ...


class _Teller:
    """What a manager tells, for who hears only of readiness."""

    def __init__(self, events: PoolEvents) -> None:
        self._events = events

    def fact(self, event: Any, properties: EngineProperties | None = None) -> None:
        if isinstance(event, PoolReady) and properties is not None:
            self._events.ready(
                event.pool_id,
                properties,
                generation=event.generation,
                load_ms=event.load_ms,
                decode_mtok_s=event.decode_mtok_s,
            )
        elif isinstance(event, PoolUnready):
            self._events.unready(
                event.pool_id,
                cause=event.cause,
                detail=event.detail,
                advice=event.advice,
                retry_ms=event.retry_ms,
            )

    def progress(self, pool_id: str, phase: str, done: int, total: int, unit: str) -> None:
        """Nobody looks."""
