"""A file on its way here: written with its digest, and taken up again where it stopped.

Beside it stands a note: which content it is a part of, and up to where it surely is on the disk. A killed process
leaves what it wrote; a power loss may leave holes, so after one only the part that was synced counts.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import msgspec

from .digests import PIECE_BYTES, Digester
from .records import write_whole

#: how much a power loss costs at most
SYNC_EVERY_BYTES: Final = 256 * 1024 * 1024


class _Note(msgspec.Struct, frozen=True):
    #: names the content: an ETag, a commit's digest
    content: str
    synced_bytes: int
    boot: str


class PartialFile:
    """The beginning of a file.

    Args:
        path: where it grows.
        notes: folder for its note.
        content: names the content; a part of another one is thrown away. "" = nothing says whether a part belongs to
            it, so that it begins anew.
        size_bytes: of the whole, -1 = not known.
        boot: changes with every boot of this host.
    """

    def __init__(self, path: Path, notes: Path, *, content: str, boot: str, size_bytes: int = -1) -> None:
        self.path = path
        self._note = notes / f"{hashlib.sha256(str(path).encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.json"
        self._content = content
        self._expected = size_bytes
        self._boot = boot
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)
        self._synced = 0
        self.size = 0
        #: bytes that were here when it was opened
        self.resumed_bytes = 0
        self.digester = Digester(size_bytes)
        try:
            self._take_up()
        except BaseException:
            self._file.close()
            raise

    def write(self, piece: bytes) -> None:
        """Append. :raises OSError: the disk is full, or broken."""
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) :]
        self.digester.update(piece)
        self.size += len(piece)
        if self._content and self.size - self._synced >= SYNC_EVERY_BYTES:
            os.fsync(self._file.fileno())
            self._write_note(self.size)

    def restart(self, content: str | None = None) -> None:
        """Throw away what is here. :param content: names what comes now."""
        if content is not None:
            self._content = content
        self._file.seek(0)
        self._file.truncate(0)
        self.size = self.resumed_bytes = 0
        self.digester = Digester(self._expected)
        self._write_note(0)

    def finish(self) -> None:
        """All of it is here and on the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Leave it to be taken up again."""
        self._file.close()

    def _take_up(self) -> None:
        there = os.fstat(self._file.fileno()).st_size
        note = self._read_note()
        if note is None or not self._content or note.content != self._content or 0 <= self._expected < there:
            self.restart()
            return
        if note.boot != self._boot:
            there = min(there, note.synced_bytes)
            self._file.truncate(there)
        while self.size < there:
            piece = self._file.read(min(PIECE_BYTES, there - self.size))
            if not piece:
                break
            self.digester.update(piece)
            self.size += len(piece)
        self.resumed_bytes = self.size
        self._synced = note.synced_bytes

    def _read_note(self) -> _Note | None:
        try:
            return msgspec.json.decode(self._note.read_bytes(), type=_Note)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _write_note(self, synced_bytes: int) -> None:
        write_whole(self._note, msgspec.json.encode(_Note(self._content, synced_bytes, self._boot)))
        self._synced = synced_bytes
