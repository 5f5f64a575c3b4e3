"""Snapshots: head as of one frame, in a file; derived, and never trusted further than its digest."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..errors import CorruptJournalError
from ..projections.head import Head

_FORMAT = 1


class Snapshot(msgspec.Struct, kw_only=True):
    """A dumped head, the frame it reaches and that frame's hash."""

    format: int
    frame_no: int
    frame_hash: bytes
    digest: str
    state: dict[str, Any]


def write_snapshot(folder: Path, head: Head, frame_no: int, frame_hash: bytes) -> Path:
    """Write a snapshot atomically (0600, fsynced) and remove all but the two newest, and what a killed writer left."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    snapshot = Snapshot(
        format=_FORMAT, frame_no=frame_no, frame_hash=frame_hash, digest=head.digest(), state=head.dump()
    )
    path = folder / f"{frame_no:020d}.snapshot"
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(zlib.compress(msgspec.msgpack.encode(snapshot), 1))
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    for old in [*sorted(folder.glob("*.snapshot"))[:-2], *folder.glob("*.part")]:
        old.unlink(missing_ok=True)
    return path


def read_snapshot(path: Path) -> Snapshot:
    """A snapshot whose state matches its digest. :raises CorruptJournalError: it does not, or is of another version."""
    try:
        snapshot = msgspec.msgpack.decode(zlib.decompress(path.read_bytes()), type=Snapshot)
    except (OSError, ValueError, zlib.error, msgspec.MsgspecError) as error:
        msg = f"snapshot {path.name} cannot be read: {error}"
        raise CorruptJournalError(msg) from error
    if snapshot.format != _FORMAT:
        msg = f"snapshot {path.name} has format {snapshot.format}, this program writes {_FORMAT}"
        raise CorruptJournalError(msg)
    return snapshot


def load_latest(folder: Path, frame_hash: Callable[[int], bytes | None]) -> tuple[Head, int] | None:
    """Head from the newest usable snapshot, or ``None``.

    :param frame_hash: function from a frame's number to its stored hash, or ``None`` when there is no such frame;
        a snapshot of a frame that the journal does not hold (power loss) is not used.
    """
    for path in sorted(folder.glob("*.snapshot"), reverse=True):
        try:
            snapshot = read_snapshot(path)
            if frame_hash(snapshot.frame_no) != snapshot.frame_hash:
                continue
            head = Head()
            head.load(snapshot.state)
            if head.digest() == snapshot.digest:
                return head, snapshot.frame_no
        except (CorruptJournalError, KeyError, TypeError, msgspec.ValidationError):
            continue
    return None
