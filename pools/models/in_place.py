"""Models that lie on this host already, and are used where they lie: read once, then known by size, time and inode."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Event

from ...core.gguf import GgufError, parts_of
from .cache import Cache
from .digests import digest_of_files
from .errors import StagingError
from .metadata import ModelMetadata, describe
from .provenance import StagedModel, handoff_of, staged_of
from .records import ModelFile, Record
from .references import Reference
from .transfer import Meter, Progress, digest_in_pieces

_READ_BY_ENGINES = frozenset({".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken"})


def stage_in_place(
    reference: Reference,
    *,
    cache: Cache,
    wanted: str,
    strict: bool,
    progress: Callable[[Progress], None] | None,
    cancel: Event,
) -> StagedModel:
    """A file or folder of this host as a model. Parameters and errors as :func:`~.staging.stage` has them."""
    try:
        folder, names = files_of(Path(reference.path))
        stats = {name: os.stat(folder / name) for name in names}  # noqa: PTH116 - its fields are compared as they are
    except OSError as error:
        raise StagingError(
            "not-found", f"{reference.path}: {error.strerror or error}", remedy="Name a file that you may read."
        ) from error
    with cache.stage_lock(reference.id, cancel):
        before = cache.record(reference.id)
        known = {file.path: file for file in before.files} if before is not None and before.in_place else {}
        metadata = before.metadata if before is not None and _all_known(known, stats) else describe(folder, names)
        meter = Meter(progress, sum(stat.st_size for stat in stats.values()))
        files: list[ModelFile] = []
        for name in names:
            if not strict and _is_known(known.get(name), stats[name]):
                files.append(known[name])
            else:
                files.append(_read(folder, name, stats[name], meter, cancel))
        meter.finish()
        digest = digest_of_files((file.path, file.digest) for file in files)
        if wanted and digest != f"sha256:{wanted}":
            raise StagingError("digest-mismatch", f"{reference.path}: expected sha256:{wanted}, got {digest}")
        return _remember(reference, cache, before, metadata, files, digest, verified=bool(wanted))


def files_of(path: Path) -> tuple[Path, list[str]]:
    """A model's folder, and its files below that, sorted; all parts when the path is one of a split file.

    Raises:
        StagingError: ``bad-model``: a part is missing, or a folder holds no model.
        OSError: it cannot be looked at.
    """
    if not path.is_dir():
        path.stat()
        try:
            return path.parent, sorted(part.name for part in parts_of(path))
        except GgufError as error:
            raise StagingError("bad-model", str(error)) from error
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
    weights = [name for name in names if name.lower().endswith(".gguf")]
    chosen = weights or [name for name in names if Path(name).suffix in _READ_BY_ENGINES]
    if not chosen:
        raise StagingError("bad-model", f"{path}: the folder holds no model's files")
    return path, chosen


def _read(folder: Path, name: str, before: os.stat_result, meter: Meter, cancel: Event) -> ModelFile:
    meter.file(name, 0, phase="verify")
    digest = digest_in_pieces(folder / name, meter, cancel)
    after = (folder / name).stat()
    if (after.st_size, after.st_mtime_ns, after.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
        raise StagingError("changed", f"{folder / name} changed while it was read")
    return ModelFile(
        path=name,
        digest=digest,
        size_bytes=after.st_size,
        modified_ns=after.st_mtime_ns,
        inode=f"{after.st_dev}:{after.st_ino}",
    )


def _remember(
    reference: Reference,
    cache: Cache,
    before: Record | None,
    metadata: ModelMetadata,
    files: list[ModelFile],
    digest: str,
    *,
    verified: bool,
) -> StagedModel:
    verified = verified or (before is not None and before.digest == digest and before.verification == "verified")
    record = Record(
        id=reference.id,
        ref=reference.text,
        source_url=reference.text,
        digest=digest,
        size_bytes=sum(file.size_bytes for file in files),
        files=files,
        verification="verified" if verified else "unverified",
        metadata=metadata,
        in_place=True,
        pinned=before is not None and before.pinned,
        staged_ms=before.staged_ms if before is not None else cache.now_ns() // 1_000_000,
    )
    changed = record != before
    if changed:
        cache.commit(record, {}, handoff=handoff_of(record, cache.path_of(record)))
    warnings = [] if verified else ["No digest was given that it could be held against: it is whole, and unverified."]
    return staged_of(record, cache.path_of(record), fetched_bytes=0, changed=changed, warnings=warnings)


def _is_known(file: ModelFile | None, stat: os.stat_result) -> bool:
    return file is not None and (file.size_bytes, file.modified_ns, file.inode) == (
        stat.st_size,
        stat.st_mtime_ns,
        f"{stat.st_dev}:{stat.st_ino}",
    )


def _all_known(known: dict[str, ModelFile], stats: dict[str, os.stat_result]) -> bool:
    return known.keys() == stats.keys() and all(_is_known(known[name], stat) for name, stat in stats.items())
