"""The head file: the last synced ``(seq, hash)``, kept apart from the frames, so that a cut tail shows.

Two slots are written in turn, each with a checksum: whatever is torn by a power loss, the other one stands. The
file is written only after what it names is on disk; so it may lag behind, but never runs ahead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from pathlib import Path

from ._files import identity

_SLOT = struct.Struct("<8sQQ32s")
_SLOT_BYTES = 512
_MAGIC = b"llorchH1"
_CHECK_BYTES = 32


def read_head(path: Path) -> tuple[int, bytes] | None:
    """The newest intact slot's ``(seq, hash)``, or ``None``."""
    found = _read(path)
    return None if found is None else (found[1], found[2])


class HeadFile:
    """The head file, open for writing by the one writer. Errors are those of the operating system."""

    def __init__(self, path: Path) -> None:
        newest = _read(path)
        self._path = path
        self._turn = 0 if newest is None else newest[0]
        self._fd = self._open()
        self._dirty = False

    def _open(self) -> int:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        there = os.fstat(fd)
        self._identity = (there.st_dev, there.st_ino)
        if there.st_size < 2 * _SLOT_BYTES:
            with contextlib.suppress(OSError):  # taken now, so that a full disk later does not matter
                os.pwrite(fd, bytes(2 * _SLOT_BYTES), 0)
            os.fsync(fd)
        return fd

    def write(self, seq: int, digest: bytes) -> None:
        """Note a head; safe from a killed process at once, from power loss after :meth:`sync`."""
        if identity(self._path) != self._identity:
            # The file was deleted or replaced: a note in it would be found by nobody.
            replaced, self._fd = self._fd, self._open()
            os.close(replaced)
        self._turn += 1
        body = _SLOT.pack(_MAGIC, self._turn, seq, digest)
        os.pwrite(self._fd, body + hashlib.sha256(body).digest(), (self._turn % 2) * _SLOT_BYTES)
        self._dirty = True

    def sync(self) -> None:
        """Make the note survive power loss."""
        if self._dirty:
            os.fdatasync(self._fd)
            self._dirty = False

    def close(self) -> None:
        """Close the file; what was written stays."""
        os.close(self._fd)


def _read(path: Path) -> tuple[int, int, bytes] | None:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    newest: tuple[int, int, bytes] | None = None
    for at in (0, _SLOT_BYTES):
        body = raw[at : at + _SLOT.size]
        check = raw[at + _SLOT.size : at + _SLOT.size + _CHECK_BYTES]
        if len(check) < _CHECK_BYTES or hashlib.sha256(body).digest() != check:
            continue
        magic, turn, seq, digest = _SLOT.unpack(body)
        if magic == _MAGIC and (newest is None or turn > newest[0]):
            newest = (turn, seq, digest)
    return newest
