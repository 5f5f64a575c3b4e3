"""The files of a journal on a local disk: its lock, who stands under its name, and its rescue when it was deleted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path

from .. import JournalLockedError

_NETWORK = {"afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"}


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
        mine = os.fstat(fd)
        return identity(self._path) == (mine.st_dev, mine.st_ino)


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file under this name, or ``None`` when there is none. Opens nothing."""
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino


def network_file_system(mounts: str, folder: Path) -> str:
    """The type of file system that a folder is on when that is one of a network, else "".

    Locks and memory maps of SQLite's log do not hold between machines, and often not at all, on such file systems.
    :param mounts: what ``/proc/self/mountinfo`` says; no text (other systems) means that nothing is known.
    """
    nearest, found = -1, ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        point = Path(fields.split()[4].replace("\\040", " "))
        if folder.is_relative_to(point) and len(point.parts) >= nearest:
            nearest, found = len(point.parts), rest.split()[0]
    return found if found in _NETWORK else ""


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive power loss."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rescue(connection: sqlite3.Connection, path: Path) -> None:
    """Write a database that was deleted under an open connection back to its name, complete or not at all.

    The log and index that may still stand beside it belong to the deleted file and go first.
    :raises OSError, sqlite3.Error: it cannot be written; the connection still holds everything.
    """
    copy = path.with_name(f"{path.name}.rescue")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy.unlink(missing_ok=True)
    fd = os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        target = sqlite3.connect(copy)
        try:
            connection.backup(target)
        finally:
            target.close()
        os.fsync(fd)
    finally:
        os.close(fd)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    copy.rename(path)
    sync_directory(path.parent)
