"""What is known of a model that is here: one small JSON file each, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from .metadata import ModelMetadata

Verification = Literal["verified", "unverified"]


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model."""

    #: within the model, ``/`` between its parts
    path: str
    #: ``sha256:…``
    digest: str
    size_bytes: int
    #: what the source calls this content, to tell whether it is another one now
    etag: str = ""
    #: its digest was known before it came, and it is this one
    verified: bool = False
    #: of a file that stays where it is: when it was last written, nanoseconds
    modified_ns: int = 0
    #: of a file that stays where it is: device and inode
    inode: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    id: str
    #: the reference under which it was asked for
    ref: str
    #: where it came from, without credentials
    source_url: str
    #: commit, version or digest of the source's; "" where there is none
    revision: str = ""
    #: the revision can never be another content
    immutable: bool = False
    digest: str
    size_bytes: int
    files: list[ModelFile]
    verification: Verification
    metadata: ModelMetadata
    #: its files stay where they are, outside of the cache
    in_place: bool = False
    #: it is never removed to make room
    pinned: bool = False
    #: when it came here, milliseconds since 1970
    staged_ms: int = 0
    version: int = 1


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that whoever looks sees the old one or the new one, also after a power loss; mode 0600."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make names that were added or removed outlast a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_encode = msgspec.json.Encoder(order="deterministic").encode
_decoder = msgspec.json.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """As it is stored."""
    return msgspec.json.format(_encode(record), indent=1) + b"\n"


def read_record(path: Path) -> Record | None:
    """A stored record; ``None`` when there is none, or none that this version understands."""
    try:
        record = _decoder.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return record if record.version == 1 and record.id == path.stem else None
