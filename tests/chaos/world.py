"""One small world for a test: a data directory, an engine that outlives the server, and a server that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from llama_orch.plugins import JournalStore
from llama_orch.plugins.storage.postgresql import PostgresqlStore
from llama_orch.plugins.storage.sqlite import SqliteStore

from ..support.managerd import LINGER, end_pools
from .http_client import BROKEN, Answer, call
from .load import PATIENCE_S

_ZYGOTE = Path(__file__).with_name("zygote.py")


def quiet_port() -> int:
    """A free port below the range that outgoing connections take theirs from: while the server is down, a client that
    tries to reach it must not meet itself."""
    while True:
        port = random.randrange(11_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


class Zygote:
    """Forks servers from an interpreter that has everything imported."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = (
            {name: value for name, value in os.environ.items() if not name.startswith("LLORCH_")} | LINGER | dict(env)
        )
        self._process: asyncio.subprocess.Process | None = None
        self._started: asyncio.Queue[int] = asyncio.Queue()
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(_ZYGOTE), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._env
        )
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            if "status" in told:
                self._end_of(told["pid"]).set_result(told["status"])
            else:
                self._started.put_nowait(told["pid"])

    def _end_of(self, pid: int) -> asyncio.Future[int]:
        return self._ended.setdefault(pid, asyncio.get_running_loop().create_future())

    async def fork(self, **request: object) -> int:
        """A new server's process id."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        return await asyncio.wait_for(self._started.get(), PATIENCE_S)

    async def ended(self, pid: int) -> int:
        """The server's exit status, or minus the signal that ended it."""
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.shield(self._end_of(pid))

    async def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 5)
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()


class MockEngine:
    """The mock behind llama.cpp's wire, as a process that nobody but the test ends."""

    def __init__(self, *, slots: int = 4, ctx: int = 4096) -> None:
        self.port = quiet_port()
        self._arguments = ["--port", str(self.port), "--slots", str(slots), "--ctx", str(ctx)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llama_orch.plugins.engines._mock_server", *self._arguments],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(*BROKEN):
                    if (await call(self.port, "GET", "/health")).status == 200:
                        return
                await asyncio.sleep(0.02)

    async def slots_busy(self) -> int:
        """Slots that run something now."""
        slots = (await call(self.port, "GET", "/slots")).body
        return sum(slot["is_processing"] for slot in slots)

    async def tokens_said(self) -> int:
        """Tokens that the engine produced since it started."""
        text: str = (await call(self.port, "GET", "/metrics")).body
        return int(float(text.rsplit(maxsplit=1)[-1]))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class World:
    """A server with its data directory. Use :func:`world`."""

    def __init__(
        self, folder: Path, pools: list[dict[str, Any]], settings: dict[str, Any], env: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = quiet_port()
        self.log = folder / "server.log"
        self.config = folder / "config.yaml"
        told = {
            "bind": f"127.0.0.1:{self.port}",
            "data_dir": str(self.data),
            # JSON is YAML; patience so that the order of the queue is known: nothing but class and number decides
            "admission": {"batch_patience_ms": 31_536_000_000},
            "pools": pools,
        }
        self.config.write_text(json.dumps(told | settings))
        self.zygote = Zygote(env)
        self.pid = 0
        self._journal_url = str(settings.get("journal", {}).get("url", ""))

    def open_store(self) -> JournalStore:
        """The journal, for reading."""
        if self._journal_url:
            return PostgresqlStore(self._journal_url, {"head_path": str(self.data / "journal.head")})
        return SqliteStore(f"sqlite:///{self.data / 'journal.db'}", {})

    async def start(self, crash: str = "") -> int:
        """Start the server, not waiting for it; with ``crash`` it dies at that point."""
        (self.folder / "crashed").unlink(missing_ok=True)
        argv = ["serve", "--config", str(self.config)]
        self.pid = await self.zygote.fork(argv=argv, crash=crash, folder=str(self.folder), log=str(self.log))
        return self.pid

    async def ready(self) -> None:
        """Wait until the server answers and its pools are ready."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(*BROKEN):
                    if (await self.call("GET", "/readyz")).status == 200:
                        return
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        await self.ended()

    async def ended(self) -> int:
        """Wait for the server's end; its status."""
        status = await self.zygote.ended(self.pid)
        self.pid = 0
        return status

    async def stop(self) -> int:
        """SIGTERM, and wait; the exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return await self.ended()

    async def command(self, *argv: str) -> int:
        """Run a command of the command line on this data directory; its exit status."""
        request = {"argv": [*argv, "--config", str(self.config)], "folder": str(self.folder), "log": str(self.log)}
        return await self.zygote.ended(await self.zygote.fork(**request))

    async def stuck(self) -> str:
        """What a server that hangs is doing."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        await asyncio.sleep(0.5)  # for the other process to write it; only when a test has failed already
        said = []
        for path in ("/readyz", "/metrics"):
            with contextlib.suppress(TimeoutError, *BROKEN):
                async with asyncio.timeout(2):
                    said.append(str((await self.call("GET", path)).body))
        return "\n".join([*said, self.log.read_text()[-8000:]])

    def crashed_at(self) -> str:
        """The point at which the last server died; "" when it did not."""
        note = self.folder / "crashed"
        return note.read_text() if note.exists() else ""

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request to the server."""
        return await call(self.port, method, path, body, **headers)

    def engine_pid(self, pool_id: str) -> int:
        """The engine process that the pool's record names."""
        return int(self._engine(pool_id)["pid"])

    def engine_port(self, pool_id: str) -> int:
        """The port that this engine listens on."""
        return int(self._engine(pool_id)["port"])

    def _engine(self, pool_id: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.data / "engines" / f"{pool_id}.json").read_text())
        return told

    def memory_kib(self, field: str = "VmRSS") -> int:
        """The server's memory; ``VmHWM`` is its highest so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field + ":"))


def mock_pool(engine: MockEngine, *, slots: int = 4, **more: Any) -> dict[str, Any]:
    """A pool on the mock."""
    provisioning = {"mode": "external", "url": f"http://127.0.0.1:{engine.port}"}
    return {"id": "mock", "engine": "llamacpp", "model": "mock", "slots": slots, "provisioning": provisioning, **more}


HAIKU_POOL: dict[str, Any] = {
    "id": "haiku",
    "engine": "llamacpp",
    "model": "haiku",
    "slots": 2,
    "provisioning": {"threads": 1},
}


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    pools: list[dict[str, Any]],
    *,
    settings: dict[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[World]:
    """A world; its server, and the engines that this one started, are gone behind the block."""
    made = World(folder, pools, settings or {}, env or {})
    try:
        await made.zygote.start()
        yield made
    finally:
        if made.pid:
            await made.kill()
        await made.zygote.close()
        end_pools(made.data)


@contextlib.asynccontextmanager
async def mock_engine(**settings: int) -> AsyncIterator[MockEngine]:
    """A running mock engine."""
    engine = MockEngine(**settings)
    try:
        await engine.start()
        yield engine
    finally:
        engine.kill()
