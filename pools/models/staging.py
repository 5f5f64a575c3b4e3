"""From a reference to a model that is here: the one way in, for the daemon and for the command line (MOD-1, MOD-2).

Blocks, and belongs in a thread of its own where a loop runs. Any number of processes may ask for one model at the same
time: one fetches, the others wait for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Final

import msgspec

from .cache import Cache
from .digests import digest_of_files, plain
from .errors import StagingError
from .in_place import stage_in_place
from .locks import Locks
from .metadata import describe
from .names import refuse_collisions
from .partial import PartialFile
from .provenance import StagedModel, append_provenance, handoff_of, staged_of
from .records import ModelFile, Record
from .references import Reference, parse
from .sources import source_of
from .transfer import (
    NO_ROOM,
    WAITS_S,
    Listing,
    Meter,
    Progress,
    RemoteFile,
    Source,
    digest_in_pieces,
    fetch,
    refuse_cancelled,
    retried,
)

_MAX_FILES: Final = 10_000
#: what went wrong may be better next time: what was fetched stays for it
_TAKEN_UP_AGAIN: Final = frozenset({"interrupted", "unreachable", "cancelled", "cache-full", "unauthorized"})


def stage(
    ref: str,
    *,
    cache: Cache,
    base_dir: Path | None = None,
    expected_digest: str = "",
    strict: bool = False,
    offline: bool = False,
    progress: Callable[[Progress], None] | None = None,
    cancel: Event | None = None,
    hold_into: Locks | None = None,
    source: Callable[[Reference], Source] = source_of,
    waits_s: Sequence[float] = WAITS_S,
) -> StagedModel:
    """See that a model is here, fetching what is missing or has changed at its source.

    Args:
        ref: a reference, see :mod:`.references`; aliases are resolved already.
        cache: where it goes. Its provenance goes to ``provenance.jsonl`` beside the cache's folder.
        base_dir: relative paths are relative to it.
        expected_digest: ``sha256:…`` of the model; another one is refused. It may stand in the reference instead.
        strict: content that is here already is read again and held against its digests.
        offline: use what is here, ask nobody.
        progress: hears how far it is, in this thread.
        cancel: set it to end this soon.
        hold_into: takes locks that keep the model here until they are released.
        source: makes the source of a reference.
        waits_s: seconds before each further attempt when a connection fails.

    Returns:
        Where it is and what it is. Without a digest to hold it against, ``warnings`` say so.

    Raises:
        StagingError: with a stable cause; nothing is left behind but, where it says so, what can be taken up again.
    """
    reference = parse(ref, base_dir=base_dir)
    wanted = plain(expected_digest) or reference.sha256
    if wanted and reference.sha256 and wanted != reference.sha256:
        raise StagingError("bad-reference", f"{reference.text}: two digests are given, and they differ")
    cancel = cancel or Event()
    refuse_cancelled(cancel)
    try:
        if reference.kind == "file":
            staged = stage_in_place(
                reference, cache=cache, wanted=wanted, strict=strict, progress=progress, cancel=cancel
            )
            if hold_into is not None:
                hold_into.take(cache.hold(reference.id))
        else:
            # Who asks nobody changes nothing, and need not wait until others are done.
            with contextlib.nullcontext() if offline else cache.stage_lock(reference.id, cancel):
                staging = _Staging(reference, cache, wanted, cancel, waits_s)
                with _discarding(cache, reference.id, changes=not offline):
                    staged = staging.run(lambda: source(reference), strict=strict, offline=offline, progress=progress)
                if hold_into is not None:
                    hold_into.take(cache.hold(reference.id))
        if staged.changed:
            append_provenance(cache.root.parent / "provenance.jsonl", staged, cache.now_ns() // 1_000_000)
    except OSError as error:
        cause = "disk-full" if error.errno in NO_ROOM else "disk-failed"
        where = error.filename or cache.root
        raise StagingError(cause, f"{where}: {error.strerror or error}") from error
    return staged


@contextlib.contextmanager
def _discarding(cache: Cache, id: str, *, changes: bool) -> Iterator[None]:
    """What cannot be taken up again does not stay."""
    try:
        yield
    except StagingError as error:
        if changes and (error.cause not in _TAKEN_UP_AGAIN or not cache.has_partial(id)):
            cache.discard_partial(id)
        raise
    except OSError as error:
        if changes and error.errno in NO_ROOM:
            cache.discard_partial(id)
        raise


class _Staging:
    """One model on its way; the caller holds its stage lock."""

    def __init__(
        self, reference: Reference, cache: Cache, wanted: str, cancel: Event, waits_s: Sequence[float]
    ) -> None:
        self._reference = reference
        self._cache = cache
        self._wanted = wanted
        self._cancel = cancel
        self._waits_s = waits_s
        self._warnings: list[str] = []

    def run(
        self,
        source: Callable[[], Source],
        *,
        strict: bool,
        offline: bool,
        progress: Callable[[Progress], None] | None,
    ) -> StagedModel:
        record = self._here(strict=strict, progress=progress)
        if record is not None and self._wanted and record.verification != "verified":
            return self._now_verified(record)
        if record is not None and (offline or record.immutable or self._wanted):
            return self._staged(record)
        if offline:
            raise StagingError("offline", f"{self._reference.text} is not here, and nothing may be fetched")
        try:
            place = source()
            listing = retried(place.listing, cancel=self._cancel, waits_s=self._waits_s if record is None else ())
        except StagingError as error:
            if record is None or error.cause not in {"unreachable", "interrupted", "offline", "missing-package"}:
                raise
            self._warnings.append(f"It could not be asked whether there is a newer one: {error.message}")
            return self._staged(record)
        if record is not None and _is_same(record, listing):
            return self._staged(record)
        with Locks() as shared:
            return self._fetch_all(place, listing, record, shared, progress)

    def _here(self, *, strict: bool, progress: Callable[[Progress], None] | None) -> Record | None:
        """The model if it is here, whole and the wanted one.

        Raises:
            StagingError: ``digest-mismatch``: the reference says that it can be no other, and it is.
        """
        record = self._cache.record(self._reference.id)
        if record is None or not self._cache.is_whole(record):
            return None
        if self._wanted and record.digest != f"sha256:{self._wanted}":
            return None
        if strict and not self._unspoilt(record, progress):
            return None
        return record

    def _now_verified(self, record: Record) -> StagedModel:
        """It came without a digest, and now one is given, and it is this one."""
        record = msgspec.structs.replace(record, verification="verified")
        self._cache.commit(record, {}, handoff=handoff_of(record, self._cache.path_of(record)))
        return self._staged(record, changed=True)

    def _unspoilt(self, record: Record, progress: Callable[[Progress], None] | None) -> bool:
        """Read everything again; content that is not what its name says is thrown away."""
        meter = Meter(progress, record.size_bytes)
        for file in record.files:
            blob = self._cache.blob(file.digest)
            meter.file(file.path, 0, phase="verify")
            if digest_in_pieces(blob, meter, self._cancel) != file.digest:
                self._warnings.append(f"{file.path} was damaged on the disk; it was fetched again.")
                blob.unlink(missing_ok=True)
                return False
        return True

    def _fetch_all(
        self,
        source: Source,
        listing: Listing,
        before: Record | None,
        shared: Locks,
        progress: Callable[[Progress], None] | None,
    ) -> StagedModel:
        files = listing.files
        if not files or len(files) > _MAX_FILES:
            raise StagingError("bad-model", f"{self._reference.text} holds {len(files)} files")
        refuse_collisions([file.path for file in files])
        known = {} if before is None else {file.path: file for file in before.files}
        here: dict[str, ModelFile] = {}
        for file in files:
            found = self._shared(file, known.get(file.path), shared, alone=len(files) == 1)
            if found is not None:
                here[file.path] = found
        missing = [file for file in files if file.path not in here]
        total = sum(max(file.size_bytes, 0) for file in missing)
        self._cache.make_room(self._reference.id, total)
        self._drop_foreign_parts(missing)
        meter = Meter(progress, total)
        arrived: dict[str, Path] = {}
        for file in missing:
            here[file.path], path = self._fetch(source, file, meter, alone=len(files) == 1)
            arrived[here[file.path].digest] = path
        meter.finish()
        return self._commit(listing, [here[file.path] for file in files], arrived, meter.fetched_bytes)

    def _shared(self, file: RemoteFile, known: ModelFile | None, shared: Locks, *, alone: bool) -> ModelFile | None:
        """The file if its content is here already, whoever brought it."""
        sha256 = file.sha256 or (self._wanted if alone else "")
        unchanged = known is not None and bool(file.etag) and known.etag == file.etag
        if not sha256 and not unchanged:
            return None
        digest = f"sha256:{sha256}" if sha256 else known.digest if known is not None else ""
        lock = self._cache.hold_blob(digest, file.size_bytes)
        if lock is None:
            return None
        shared.add(lock)
        return ModelFile(
            path=file.path,
            digest=digest,
            size_bytes=self._cache.blob(digest).stat().st_size,
            etag=file.etag,
            verified=bool(sha256) or (known is not None and known.verified),
        )

    def _drop_foreign_parts(self, missing: Sequence[RemoteFile]) -> None:
        """Remove parts of files that this model does not have any more."""
        folder = self._cache.partial(self._reference.id) / "files"
        wanted = {folder / file.path for file in missing}
        for path in list(folder.rglob("*")):
            if (path.is_symlink() or not path.is_dir()) and path not in wanted:
                path.unlink()

    def _fetch(self, source: Source, file: RemoteFile, meter: Meter, *, alone: bool) -> tuple[ModelFile, Path]:
        """Bring one file here and hold it against what is known of it; again from its start if a part was spoilt."""
        folder = self._cache.partial(self._reference.id)
        path = folder / "files" / file.path
        wanted = file.sha256 or (self._wanted if alone else "")
        for last in (False, True):
            partial = PartialFile(
                path,
                folder / "notes",
                content=file.content or wanted,
                boot=self._cache.boot,
                size_bytes=file.size_bytes,
            )
            with contextlib.closing(partial):
                resumed = partial.resumed_bytes
                meter.file(file.path, resumed)
                fetch(
                    source,
                    file,
                    partial,
                    meter=meter,
                    cancel=self._cancel,
                    room=lambda size: self._cache.make_room(self._reference.id, size),
                    waits_s=self._waits_s,
                )
                if file.size_bytes < 0:
                    self._cache.make_room(self._reference.id, partial.size)
                digester = partial.digester
                right = (not wanted or digester.sha256 == wanted) and (
                    not file.git_sha1 or digester.git_sha1 == file.git_sha1
                )
                if right:
                    partial.finish()
                    return ModelFile(
                        path=file.path,
                        digest=f"sha256:{digester.sha256}",
                        size_bytes=partial.size,
                        etag=file.etag,
                        verified=bool(wanted or file.git_sha1),
                    ), path
                if last or not resumed:
                    break
                meter.forget(partial.size)
                partial.restart()
        raise StagingError(
            "digest-mismatch",
            f"{file.path}: expected {'sha256:' + wanted if wanted else 'git object ' + file.git_sha1},"
            f" got {'sha256:' + digester.sha256 if wanted else digester.git_sha1}",
        )

    def _commit(
        self, listing: Listing, files: list[ModelFile], arrived: dict[str, Path], fetched_bytes: int
    ) -> StagedModel:
        digest = digest_of_files((file.path, file.digest) for file in files)
        if self._wanted and digest != f"sha256:{self._wanted}":
            raise StagingError(
                "digest-mismatch", f"{self._reference.text}: expected sha256:{self._wanted}, got {digest}"
            )
        metadata = describe(self._laid_out(files), [file.path for file in files])
        verified = bool(self._wanted) or all(file.verified for file in files)
        if not verified:
            self._warnings.append("No digest was given that it could be held against: it is whole, and unverified.")
        now_ms = self._cache.now_ns() // 1_000_000
        record = Record(
            id=self._reference.id,
            ref=self._reference.text,
            source_url=listing.source_url,
            revision=listing.revision,
            immutable=listing.immutable,
            digest=digest,
            size_bytes=sum(file.size_bytes for file in files),
            files=files,
            verification="verified" if verified else "unverified",
            metadata=metadata,
            staged_ms=now_ms,
        )
        handoff = handoff_of(record, self._cache.path_of(record))
        self._cache.commit(record, arrived, handoff=handoff)
        return self._staged(record, fetched_bytes=fetched_bytes, changed=True)

    def _laid_out(self, files: list[ModelFile]) -> Path:
        """A folder with all files under their names, before they are in the cache."""
        folder = self._cache.partial(self._reference.id) / "files"
        for file in files:
            path = folder / file.path
            if not path.exists():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.symlink_to(self._cache.blob(file.digest))
        return folder

    def _staged(self, record: Record, *, fetched_bytes: int = 0, changed: bool = False) -> StagedModel:
        return staged_of(
            record,
            self._cache.path_of(record),
            fetched_bytes=fetched_bytes,
            changed=changed,
            warnings=self._warnings,
        )


def _is_same(record: Record, listing: Listing) -> bool:
    """Whether what is here is what the source has now."""
    if listing.revision and listing.revision == record.revision:
        return True
    here = {file.path: (file.etag, file.size_bytes) for file in record.files}
    return all(file.etag for file in listing.files) and here == {
        file.path: (file.etag, file.size_bytes) for file in listing.files
    }
