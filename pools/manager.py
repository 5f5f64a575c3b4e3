"""All pools of the settings: their engines, until `pool-managerd` looks after them in a process of its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..core.errors import ConfigError
from ..core.ports import Clock, Engine, EngineFactory, EngineProperties, LauncherFactory
from ..core.settings import PoolSettings, Settings
from .hosts import ExternalHost, Host, ProcessHost
from .identity import ProcessTable, owner_of, process_table
from .lifecycle import Timing, Trouble
from .pool import Pool, PoolEvents
from .process import reap_marked

#: somebody else's engine is looked for at least so often, in milliseconds
EXTERNAL_BACKOFF_MS = 5_000


class PoolManager:
    """Starts, watches, adopts and ends the engines of all pools.

    Args:
        data_dir: identity records and logs go to its ``engines`` folder. Whoever holds the journal's lock there is
            the only one that may start a manager on it.
        engines: engine factories by name.
        launchers: launch planners by engine name.
        clock: monotonic time for backoff.
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
        table: ProcessTable | None = None,
    ) -> None:
        self._directory = data_dir / "engines"
        self._owner = owner_of(data_dir)
        self._engines = engines
        self._launchers = launchers
        self._clock = clock
        self._jitter = jitter
        self._timing = timing or Timing()
        self._table = table or process_table()
        self.pools: dict[str, Pool] = {}

    async def start(self, settings: Settings, events: PoolEvents) -> None:
        """Adopt what runs and still fits, end what does not, start the rest. Returns before engines are ready.

        Raises:
            ConfigError: a pool names an engine that no plugin offers.
        """
        pools = {pool.id: self._make(pool, settings, events) for pool in settings.pools}
        wanted = {f"{self._owner}/{name}/" for name in pools}
        for marker in {marker for _, marker in self._table.marked(f"{self._owner}/")}:
            if not any(marker.startswith(prefix) for prefix in wanted):
                reap_marked(self._table, marker, exact=True)
        self.pools = pools
        for pool in pools.values():
            pool.start()

    async def stop(self, *, kill_engines: bool) -> None:
        """End all pools; with ``kill_engines`` their engines too, else these live on and are adopted by the next."""
        pools = list(self.pools.values())
        await asyncio.gather(*(pool.stop() if kill_engines else pool.detach() for pool in pools))

    def engine(self, pool_id: str) -> Engine | None:
        """The pool's engine; ``None`` while it is not ready."""
        pool = self.pools.get(pool_id)
        return pool.engine if pool is not None else None

    def properties(self, pool_id: str) -> EngineProperties | None:
        """What the pool's engine said of itself when it became ready."""
        pool = self.pools.get(pool_id)
        return pool.properties if pool is not None else None

    # --- inside

    def _make(self, settings: PoolSettings, all_settings: Settings, events: PoolEvents) -> Pool:
        factory = self._engines.get(settings.engine)
        if factory is None:
            msg = f"pools.{settings.id}.engine: no plugin offers the engine {settings.engine!r}"
            raise ConfigError(
                msg, field="engine", got=settings.engine, remedy=f"Use one of: {', '.join(sorted(self._engines))}."
            )
        provisioning = settings.provisioning
        launcher = self._launchers.get(settings.engine)
        spawned = provisioning.mode == "package" and launcher is not None
        config: dict[str, Any] = {
            **provisioning.options,
            "model": settings.model,
            "alias": settings.model,
            "slots": settings.slots,
            "ctx": settings.ctx,
            "threads": provisioning.threads,
            "device": settings.devices,
            "options": provisioning.options,
            "launched": spawned,
        }
        if spawned:
            config["model_path"] = str(model_path(settings.model, all_settings.models))
        timing = self._timing
        if not spawned:
            timing = msgspec.structs.replace(
                timing, start_timeout_ms=0, backoff_last_ms=min(timing.backoff_last_ms, EXTERNAL_BACKOFF_MS)
            )

        def host(on_exit: Callable[[Trouble], None]) -> Host:
            if spawned and launcher is not None:
                return ProcessHost(
                    settings,
                    config,
                    launcher,
                    directory=self._directory,
                    owner=self._owner,
                    table=self._table,
                    on_exit=on_exit,
                )
            return ExternalHost(provisioning.url, on_exit)

        return Pool(
            settings.id,
            host,
            factory,
            config,
            events=events,
            timing=timing,
            clock=self._clock,
            jitter=self._jitter,
        )


def model_path(model: str, aliases: Mapping[str, str]) -> Path:
    """The file of a model: through ``models`` of the configuration, the bundled one, or a path (``file:`` or plain)."""
    model = aliases.get(model, model)
    if model == "haiku":
        from .. import haiku

        try:
            return haiku.model_path()
        except FileNotFoundError as error:
            # The launcher names the path in its own error, as for every model.
            return Path(str(error.filename or "haiku.gguf"))
    return Path(model.removeprefix("file:")).expanduser()
