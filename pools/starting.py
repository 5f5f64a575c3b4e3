"""Starts pool-managerd beside a server when none runs: in a session of its own, so that it outlives the server."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .connection import SocketPlace
from .logs import OWN_LOG_BYTES, cut, last_lines

#: of ``pools`` in the data directory: held for as long as one runs
LOCK_NAME: Final = "managerd.lock"
LOG_NAME: Final = "managerd.log"
#: how long a start may take until it is given up
_PATIENCE_S: Final = 30.0


class ManagerdStartError(Exception):
    """It could not be started."""


class Lock:
    """Held by the one pool-managerd of a data directory; names its process.

    :raises BlockingIOError: another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise
        # Of one length, so that one write replaces what the last holder wrote.
        os.pwrite(self._file, b'{"pid": %19d}\n' % os.getpid(), 0)

    def release(self) -> None:
        """Another one may start."""
        os.close(self._file)


def running(directory: Path) -> int:
    """Process of the pool-managerd that holds the lock; 0 = none runs."""
    try:
        file = os.open(directory / LOCK_NAME, os.O_RDWR)
    except OSError:
        return 0
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with contextlib.suppress(ValueError, KeyError):
            return int(json.loads(os.pread(file, 256, 0))["pid"])
        return -1
    finally:
        os.close(file)
    return 0


class Starter:
    """Starts one for a data directory.

    Args:
        directory: ``pools`` of the data directory.
        linger_ms: how long it lives when nobody connects.
        environment: what of it is not this project's own is passed on.
    """

    def __init__(
        self, data_dir: Path, *, linger_ms: int, environment: Mapping[str, str], command: tuple[str, ...] = ()
    ) -> None:
        self._data_dir = data_dir
        self._directory = data_dir / "pools"
        self._linger_ms = linger_ms
        self._environment = {n: v for n, v in environment.items() if not n.startswith("LLORCH_")}
        self._command = command or (sys.executable, "-m", "llama_orch.cli.managerd")
        self._child: subprocess.Popen[bytes] | None = None
        self._told = -1

    def begin(self) -> None:
        """Start it if nobody listens, and return at once. :raises ManagerdStartError: that cannot be done."""
        self._forget()
        if self._answers():
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            log_path = self._directory / LOG_NAME
            cut(log_path, OWN_LOG_BYTES)
            log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            msg = f"its directory {self._directory} cannot be written: {error.strerror}"
            raise ManagerdStartError(msg) from error
        told, tell = os.pipe()
        try:
            self._child = subprocess.Popen(
                [
                    *self._command,
                    "--data-dir",
                    str(self._data_dir),
                    "--linger-ms",
                    str(self._linger_ms),
                    "--ready-fd",
                    str(tell),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(tell,),
                cwd="/",
                env=self._environment,
            )
        except OSError as error:
            os.close(told)
            msg = f"{self._command[0]}: {error.strerror}"
            raise ManagerdStartError(msg) from error
        finally:
            os.close(tell)
            os.close(log)
        self._told = told

    async def ready(self) -> None:
        """Wait until what was begun listens, or another one does. :raises ManagerdStartError: it ended instead."""
        if self._told < 0:
            return
        loop, told, self._told = asyncio.get_running_loop(), self._told, -1
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(told, _note, readable)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await readable
            said = os.read(told, 16)
        except TimeoutError as error:
            msg = f"it did not listen within {_PATIENCE_S:g} s"
            raise ManagerdStartError(msg) from error
        finally:
            loop.remove_reader(told)
            os.close(told)
        if not said:
            words = " / ".join(last_lines(self._directory / LOG_NAME, 3))
            raise ManagerdStartError(words or "it ended without a word")

    def end_hung(self) -> None:
        """End one that listens and does not answer; it holds the lock, so its process id is nobody else's."""
        pid = running(self._directory)
        if pid > 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Take note of a child that ended, so that nothing of it remains."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None

    def close(self) -> None:
        """Leave it alone; it lives on."""
        self._forget()
        if self._child is not None:
            self.reap()
        if self._child is not None:
            # Popen warns when it is forgotten with its process alive; here that is the intention.
            self._child.returncode = 0
            self._child = None

    def _forget(self) -> None:
        if self._told >= 0:
            os.close(self._told)
            self._told = -1
        self.reap()

    def _answers(self) -> bool:
        try:
            with SocketPlace(self._directory) as place, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(place.path)
        except OSError:
            return False
        return True


def _note(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
