"""Advisory locks (``flock``) on a host's own disk: they go with the process that holds them, however it ends.

A lock belongs to the open file. A child that inherits it holds it too, so that an engine keeps its model held while
nobody looks after it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from threading import Event
from typing import Final, Self

from .errors import StagingError

_LOOK_AGAIN_S: Final = 0.05


class Lock:
    """One held lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Its file's descriptor: hand it to a child, and the child holds the lock."""
        return self._descriptor

    def release(self) -> None:
        """Let go of it here; a child that inherited it holds it still."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()  # whoever forgot about it keeps nothing


class Locks:
    """Several held locks, let go of together."""

    def __init__(self, locks: Iterable[Lock] = ()) -> None:
        self._locks = list(locks)

    def add(self, lock: Lock) -> None:
        """Hold this one too."""
        self._locks.append(lock)

    def take(self, others: Locks) -> None:
        """Hold these too, in their place."""
        self._locks += others._locks
        others._locks = []

    @property
    def descriptors(self) -> tuple[int, ...]:
        """For ``pass_fds`` of a child that shall hold them as well."""
        return tuple(lock.fileno() for lock in self._locks)

    def release(self) -> None:
        """Let go of all."""
        while self._locks:
            self._locks.pop().release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def try_lock(path: Path, *, shared: bool, create: bool = True) -> Lock | None:
    """The lock, or ``None`` while somebody holds it the other way, or when there is no file and none is made.

    The file may be removed by whoever holds it alone; a lock on a file that is no longer there is none.
    """
    flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
    while True:
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            if create:
                raise
            return None
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            mine = os.fstat(descriptor)
            try:
                there = path.stat(follow_symlinks=False)
            except FileNotFoundError:
                os.close(descriptor)
                continue
            if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
                return Lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def wait_lock(path: Path, *, shared: bool = False, cancel: Event | None = None) -> Lock:
    """The lock, as soon as it is free.

    Raises:
        StagingError: ``cancelled``.
    """
    pause = cancel or Event()
    while True:
        lock = try_lock(path, shared=shared)
        if lock is not None:
            return lock
        if pause.wait(_LOOK_AGAIN_S):
            raise StagingError("cancelled", "cancelled while another process worked on the model")
