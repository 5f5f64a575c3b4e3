"""Real servers as processes: the mock engine inside, or real llama.cpp with the bundled model; and calls of the command
line, piped or at a terminal of their own.

Everything lives in a temporary directory, listens on a free port, and is waited for by condition: a server is up when
`server.json` names it, ready when `/readyz` says so, gone when its process is. A test that fails shows the logs.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from llama_orch.cli import server_file

from ..support.managerd import LINGER, end_pools

#: generous: the machine may be busy; nothing is asserted about it
PATIENCE_S = 120.0
COMMAND = (sys.executable, "-m", "llama_orch.cli.main")

MOCK_POOL = {"id": "mock", "engine": "mock", "model": "mock", "slots": 2}
HAIKU_POOL = {"id": "haiku", "engine": "llamacpp", "model": "haiku", "provisioning": {"threads": 1}}


def wait_until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Look again until the condition holds; its value."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"gave up waiting: {what}"
        time.sleep(0.01)


def _end_with_the_tests() -> None:
    """In a child: end when the process of the tests ends, however that happens (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@dataclass
class Done:
    """A finished call."""

    status: int
    out: str
    err: str = ""


@dataclass
class Home:
    """A user's home: its own configuration, data and environment."""

    root: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keep = {
            name: os.environ[name]
            for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
            if name in os.environ
        }
        self.environ = {
            **keep,
            "HOME": str(self.root),
            "LLORCH_DATA_DIR": str(self.data_dir),
            "COLUMNS": "120",
        } | LINGER

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    def configure(self, settings: Mapping[str, Any]) -> Path:
        """Write a configuration that every call of this home uses."""
        path = self.root / "config.yaml"
        path.write_text(yaml.safe_dump(dict(settings)), "utf-8")
        self.environ["LLORCH_CONFIG"] = str(path)
        return path

    def popen(self, *arguments: str, **named: Any) -> subprocess.Popen[bytes]:
        """A call that goes on."""
        environ = {**self.environ, **named.pop("environ", {})}
        return cast(
            "subprocess.Popen[bytes]", subprocess.Popen([*COMMAND, *arguments], cwd=self.root, env=environ, **named)
        )

    def popen_managerd(self) -> subprocess.Popen[bytes]:
        """A pool-managerd of one's own, as the system starts it."""
        argv = [sys.executable, "-m", "llama_orch.cli.managerd", "--data-dir", str(self.data_dir)]
        return subprocess.Popen(argv, cwd=self.root, env=self.environ, stderr=subprocess.DEVNULL)

    def call(self, *arguments: str, stdin: bytes | str = b"", environ: Mapping[str, str] | None = None) -> Done:
        """A call in a pipe."""
        process = self.popen(
            *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, environ=environ or {}
        )
        try:
            out, err = process.communicate(stdin.encode() if isinstance(stdin, str) else stdin, timeout=PATIENCE_S)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Done(process.returncode, out.decode(), err.decode())

    def json(self, *arguments: str, **named: Any) -> Any:
        """What a call with ``--json`` prints; it must succeed."""
        done = self.call(*arguments, "--json", **named)
        assert done.status == 0, done.err
        return json.loads(done.out)

    def at_terminal(self, *arguments: str, typed: Sequence[tuple[str, bytes]] = ()) -> Done:
        """A call at a terminal of 100 columns: each pair is what to wait for, and what is typed then."""
        terminal = Terminal(self, arguments)
        try:
            for expected, keys in typed:
                terminal.wait_for(expected)
                terminal.type(keys)
            return terminal.finish()
        finally:
            terminal.close()


class Terminal:
    """A call whose standard streams are a terminal."""

    def __init__(self, home: Home, arguments: Sequence[str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self._seen = 0
        self.shown = ""
        self._raw = b""

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = home.popen(
            *arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=own_terminal,
            environ={"TERM": "xterm-256color"},
        )
        os.close(theirs)

    def read(self) -> bool:
        """Take what is there; ``False`` once the other side is closed."""
        ready, _, _ = select.select([self._ours], [], [], 0.05)
        if not ready:
            return True
        try:
            piece = os.read(self._ours, 65_536)
        except OSError:
            return False
        self._raw += piece
        self.shown = self._raw.decode("utf-8", "replace")
        return bool(piece)

    def wait_for(self, text: str) -> None:
        """Wait until a text appears after what was waited for before."""

        def there() -> bool:
            self.read()
            return self.shown.find(text, self._seen) >= 0

        wait_until(there, f"{text!r} at the terminal, which shows {self.shown!r}")
        self._seen = self.shown.find(text, self._seen) + len(text)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def finish(self) -> Done:
        """Wait for the end."""
        wait_until(
            lambda: not self.read() or (self.process.poll() is not None and not self._more()), "the end of the call"
        )
        return Done(self.process.wait(PATIENCE_S), self.shown.replace("\r\n", "\n"))

    def _more(self) -> bool:
        return bool(select.select([self._ours], [], [], 0)[0])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._ours)


class Server:
    """A server process on a home's data directory; it can be killed and started again."""

    def __init__(self, home: Home, arguments: Sequence[str] = ()) -> None:
        self.home = home
        self._arguments = arguments
        self.log_path = home.root / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.out_path = home.root / "server.out"

    @property
    def url(self) -> str:
        found = server_file.read(self.home.data_dir)
        assert found is not None, "the server runs"
        return found.url

    @property
    def log(self) -> str:
        """Everything that all runs said."""
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    def start(self, *, ready: bool = True) -> Server:
        """Start it, and wait until it answers (and is ready)."""
        with self.log_path.open("ab") as log, self.out_path.open("wb") as out:
            process = self.home.popen(
                "serve", "--bind", "127.0.0.1:0", *self._arguments,
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True, preexec_fn=_end_with_the_tests,
            )  # fmt: skip
        self.process = process

        def up() -> bool:
            assert process.poll() is None, f"the server ended with {process.returncode}:\n{self.log[-3000:]}"
            found = server_file.read(self.home.data_dir)
            return found is not None and found.pid == process.pid

        wait_until(up, "the server's start")
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until tasks are served."""
        wait_until(lambda: self.status_of("/readyz") == 200, f"readiness; the log says:\n{self.log[-3000:]}")

    def status_of(self, path: str) -> int:
        """The HTTP status of a path; 0 when nothing answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def get(self, path: str) -> Any:
        """The JSON behind a path."""
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """Send JSON, get the answer's JSON."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            raw = answer.read()
            return json.loads(raw) if raw else None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; its engines live on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def restart(self) -> Server:
        """Start again on the same data."""
        return self.start()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End it whatever it does, and all its engines."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.terminate()
                self.process.wait(20)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        end_pools(self.home.data_dir)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home of one's own, without a configuration."""
    return Home(tmp_path)


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait for a condition."""
    return wait_until


@pytest.fixture
def new_server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Server]]:
    """Makes servers (not started yet) from settings; ends them with the test."""
    made: list[Server] = []

    def make(settings: Mapping[str, Any] | None = None, *arguments: str, home: Home | None = None) -> Server:
        home = home or Home(tmp_path_factory.mktemp("home"))
        if settings is not None:
            home.configure(settings)
        server = Server(home, arguments)
        made.append(server)
        return server

    yield make
    for server in made:
        server.close()
        print(f"--- log of {server.home.root.name}\n{server.log[-4000:]}")


@pytest.fixture(scope="module")
def mock_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the mock engine, shared by a module's tests."""
    home = Home(tmp_path_factory.mktemp("mock"))
    home.configure({"pools": [MOCK_POOL]})
    server = Server(home)
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="module")
def haiku_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with real llama.cpp and the bundled model, shared by a module's tests."""
    home = Home(tmp_path_factory.mktemp("haiku"))
    home.configure({"pools": [HAIKU_POOL]})
    server = Server(home)
    try:
        yield server.start()
    finally:
        server.close()
