"""What is told of a staged model: a line that stays, a file for whoever starts engines, an event's fields (MOD-2)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import msgspec

from .metadata import ModelMetadata
from .records import ModelFile, Record


class StagedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is here, whole."""

    #: its name in the cache
    id: str
    ref: str
    #: what an engine is given: a file, or a folder
    path: str
    #: ``sha256:…`` of the file, or of the list of files
    digest: str
    size_bytes: int
    #: where it came from, without credentials
    source_url: str
    revision: str
    files: list[ModelFile]
    #: "verified": each file is the one that a digest named before it came; else "unverified"
    verification: str
    metadata: ModelMetadata
    #: fetched in this call; 0 = it was here
    fetched_bytes: int = 0
    #: something about it was written in this call: it came, changed, or was looked at for the first time
    changed: bool = False
    #: what a person should know, one sentence each
    warnings: list[str] = []

    def event_fields(self) -> dict[str, Any]:
        """Fields of the event ``model.staged``, all but the host's name."""
        return {
            "ref": self.ref,
            "source_url": self.source_url,
            "revision": self.revision,
            "digest": self.digest,
            "size_bytes": self.size_bytes,
            "files": len(self.files),
            "verification": self.verification,
            "architecture": self.metadata.architecture,
            "quantization": self.metadata.quantization,
            "parameters": self.metadata.parameters,
            "ctx_train": self.metadata.ctx_max,
            "fetched_bytes": self.fetched_bytes,
        }


def staged_of(record: Record, path: Path, *, fetched_bytes: int, changed: bool, warnings: list[str]) -> StagedModel:
    """What is told of a model that is here."""
    return StagedModel(
        id=record.id,
        ref=record.ref,
        path=str(path),
        digest=record.digest,
        size_bytes=record.size_bytes,
        source_url=record.source_url,
        revision=record.revision,
        files=record.files,
        verification=record.verification,
        metadata=record.metadata,
        fetched_bytes=fetched_bytes,
        changed=changed,
        warnings=warnings,
    )


class Handoff(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine provisioner reads: ``handoff/ID.json`` in the cache."""

    version: int = 1
    ref: str
    #: what the engine is given
    path: str
    digest: str
    size_bytes: int
    revision: str
    verification: str
    files: list[ModelFile]
    metadata: ModelMetadata


def handoff_of(record: Record, path: Path) -> bytes:
    """The handoff of a model, as it is written."""
    return (
        msgspec.json.format(
            msgspec.json.encode(
                Handoff(
                    ref=record.ref,
                    path=str(path),
                    digest=record.digest,
                    size_bytes=record.size_bytes,
                    revision=record.revision,
                    verification=record.verification,
                    files=record.files,
                    metadata=record.metadata,
                ),
                order="deterministic",
            ),
            indent=1,
        )
        + b"\n"
    )


def append_provenance(path: Path, staged: StagedModel, time_ms: int) -> None:
    """Add one line about a staged model to a file that only grows; durable when this returns, mode 0600.

    The line holds the fields of the event and ``time_ms``, with one entry per file and without the chat template.
    """
    line = {
        "time_ms": time_ms,
        **staged.event_fields(),
        "files": [
            {"path": file.path, "digest": file.digest, "size_bytes": file.size_bytes, "verified": file.verified}
            for file in staged.files
        ],
        "tokenizer": staged.metadata.tokenizer,
        "tokenizer_digest": staged.metadata.tokenizer_digest,
        "warnings": staged.warnings,
    }
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"  # a crash cut the last line
        file.write((b"\n" if torn else b"") + msgspec.json.encode(line, order="deterministic") + b"\n")
        os.fsync(descriptor)
