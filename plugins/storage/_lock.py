"""The lock of a journal in a file: one process at a time, on a local disk (JRN-3)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from .. import JournalLockedError


class FileLock:
    """An ``flock`` on a file of its own; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def take(self) -> None:
        """Take the lock at once. :raises JournalLockedError: another process holds it."""
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(fd)
                msg = f"process {holder} holds {self._path}"
                raise JournalLockedError(msg) from None
            if self._still_named(fd):
                break
            os.close(fd)  # somebody replaced the file between the two calls
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Let go; the file stays, since removing it would race with whoever waits for it."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def _still_named(self, fd: int) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        mine = os.fstat(fd)
        return (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev)
