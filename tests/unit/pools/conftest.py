"""What tests of pools share: a fast engine process, a clock, and somebody who hears."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from llama_orch.core.engine_ports import EngineProperties, LaunchPlan
from llama_orch.core.events.pool import PoolReady, PoolUnready
from llama_orch.core.settings import PoolSettings, ProvisioningSettings
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.engines.mock import MockEngine
from llama_orch.pools.desired import DesiredPool
from llama_orch.pools.identity import owner_of, process_table
from llama_orch.pools.manager import PoolManager
from llama_orch.pools.outfitting import Outfitter
from llama_orch.pools.timing import Timing

PATIENCE_S = 60.0
TIMING = Timing(
    backoff_first_ms=10,
    backoff_last_ms=50,
    grace_ms=2_000,
    health_interval_ms=20,
    start_poll_ms=5,
    start_timeout_ms=30_000,
    preload_timeout_ms=20_000,
    permanent_ms=100,
    open_first_ms=100,
    open_last_ms=200,
)


class SystemClock:
    """The machine's own time."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class Heard:
    """Keeps what pools tell; tests wait for it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        #: all of it, in order
        self.story: list[tuple[str, str]] = []
        self.phases: list[str] = []
        self._changed = asyncio.Event()

    def fact(self, event: Any, properties: EngineProperties | None = None) -> None:
        if isinstance(event, PoolReady):
            what, more = "ready", {"properties": properties, **msgspec.to_builtins(event)}
        elif isinstance(event, PoolUnready):
            what, more = event.cause, msgspec.to_builtins(event)
        else:
            what, more = type(event).__name__, msgspec.to_builtins(event)
        self.told.append((getattr(event, "pool_id", ""), what, more))
        self.story.append((getattr(event, "pool_id", ""), what))
        self._changed.set()

    def progress(self, pool_id: str, phase: str, done: int, total: int, unit: str) -> None:
        self.phases.append(phase)

    async def next(self, pool_id: str, what: str) -> dict[str, Any]:
        """Wait until a pool tells this; what it told before is forgotten."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for n, (pool, told, more) in enumerate(self.told):
                    if (pool, told) == (pool_id, what):
                        del self.told[: n + 1]
                        return more
                self._changed.clear()
                await self._changed.wait()


def plan_mock_server(config: Mapping[str, Any]) -> LaunchPlan:
    """The launcher of these tests: the mock on llama.cpp's wire, as a process of its own."""
    port = int(config["port"])
    argv = [sys.executable, "-m", "llama_orch.plugins.engines._mock_server", "--port", str(port), "--slots", "2"]
    return LaunchPlan(
        argv=(*argv, *config["options"].get("arguments", [])),
        url=f"http://127.0.0.1:{port}",
        log_causes=(("port-taken", "port-taken", "Use another port."),),
    )


def managed(data_dir: Path, heard: Heard, *, timing: Timing = TIMING, **more: Any) -> PoolManager:
    """A manager whose engine `wire` is a fast process, and `mock` lives inside this one."""
    launchers = more.pop("launchers", {"wire": plan_mock_server})
    return PoolManager(
        sink=heard,
        data_dir=data_dir,
        engines={"wire": LlamaCpp, "mock": MockEngine},
        launchers=launchers,
        preparer=more.pop("preparer", Outfitter(launchers, {})),
        clock=SystemClock(),
        jitter=lambda: 0.0,
        timing=timing,
        **more,
    )


def pool(name: str = "a", engine: str = "wire", *arguments: str, **provisioning: Any) -> PoolSettings:
    """Settings of one pool; ``arguments`` go to the mock server's command line."""
    options = {"arguments": list(arguments)} if arguments else {}
    return PoolSettings(
        id=name,
        engine=engine,
        model="m",
        provisioning=ProvisioningSettings(**{"options": options, **provisioning}),
    )


def desired(*pools: PoolSettings, **more: Any) -> list[DesiredPool]:
    """These pools, all wanted."""
    return [DesiredPool(settings=one, model=one.model, **more) for one in pools]


def pids(data_dir: Path) -> list[int]:
    """Living engine processes of a data directory."""
    return [pid for pid, _ in process_table().marked(owner_of(data_dir) + "/")]


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory; no engine of it outlives the test."""
    yield tmp_path
    for pid in pids(tmp_path):
        os.kill(pid, signal.SIGKILL)


def run(test: Callable[[], Any]) -> None:
    """Run an asynchronous test, bounded in time, on the event loop that the server uses."""

    async def bounded() -> None:
        async with asyncio.timeout(2 * PATIENCE_S):
            await test()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
