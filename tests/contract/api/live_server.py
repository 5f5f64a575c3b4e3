"""A whole server in this process: real journal on SQLite, real services, the mock engine or a llama.cpp server, real HTTP on a loopback port."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from llama_orch.api.app import create_app
from llama_orch.api.auth import Secrets
from llama_orch.api.logs import EventLog
from llama_orch.api.server import serve
from llama_orch.api.tls import server_context
from llama_orch.core.engine_ports import Engine, EngineProperties
from llama_orch.core.journal.journal import Journal, JournalOptions
from llama_orch.core.services.container import Services, build_services
from llama_orch.core.settings import PoolSettings, Settings
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.engines.mock import MockEngine
from llama_orch.plugins.manager import PluginManager

from ...support.host import StandInHost

T = TypeVar("T")


class Clock:
    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class Directory:
    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}
        self.known: dict[str, EngineProperties] = {}

    def engine(self, pool_id: str) -> Engine | None:
        return self.engines.get(pool_id)

    def properties(self, pool_id: str) -> EngineProperties | None:
        return self.known.get(pool_id)


class LiveServer:
    """A server on a thread of its own."""

    def __init__(
        self, folder: Path, settings: Settings, log: EventLog | None = None, secrets: Secrets | None = None
    ) -> None:
        self.folder = folder
        self.secrets = secrets
        self.settings = settings
        self.log = log
        self.url = ""
        self.services: Services
        #: by pool; those with a URL are llama.cpp servers and stand elsewhere
        self.engines: dict[str, MockEngine] = {}
        self._loop: asyncio.AbstractEventLoop
        self._up = threading.Event()
        self._stop: asyncio.Event
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)

    def start(self) -> LiveServer:
        self._thread.start()
        assert self._up.wait(30), "the server did not come up"
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server did not end"
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function on the server's loop."""

        async def run() -> T:
            return function(*args)

        return self.run(run())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._run())
        except BaseException as error:
            self._failure = error
            self._up.set()

    def _engine(self, pool: PoolSettings) -> Engine:
        if pool.provisioning.url:
            return LlamaCpp({"url": pool.provisioning.url})
        options = {"slots": pool.slots or 4, "ctx": pool.ctx or 4096, **pool.provisioning.options}
        mock = self.engines[pool.id] = MockEngine(options)
        return mock

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        manager = PluginManager(entry_points=False)
        store = manager.journal_stores()["sqlite"](f"sqlite:///{self.folder / 'journal.db'}", {})
        journal = Journal(store, Clock(), JournalOptions(version="test"))
        await journal.open()
        directory = Directory()
        self.services = services = build_services(
            journal,
            settings=self.settings,
            engines=directory,
            policy=manager.placement_policies()["default"],
            clock=Clock(),
            api_version="0.0.0-test",
        )
        app = create_app(services, self.settings, version="0.0.0-test", secrets=self.secrets)
        if self.log is not None:
            self.log.subscribe(journal)
        services.start()
        self.host = StandInHost(services)
        services.pools.declare(self.settings)
        for pool in self.settings.pools:
            directory.engines[pool.id] = engine = self._engine(pool)
            directory.known[pool.id] = properties = await engine.properties()
            self.host.ready(pool.id, properties, decode_mtok_s=0)

        def ready(url: str) -> None:
            self.url = url
            self._up.set()

        try:
            tls = server_context(self.settings.tls)
            await serve(app, self.settings, stop=self._stop, ready=ready, grace_s=2, tls=tls)
        finally:
            await services.close()
            await journal.close()


def mock_settings(**changes: Any) -> Settings:
    pools = changes.pop("pools", [PoolSettings(id="m", engine="mock", model="mock", aliases=["mock-alias"])])
    return Settings(bind="127.0.0.1:0", pools=pools, **changes)
