"""Models on this host's disk: content stored once, names that lead to it, and a size that is kept (MOD-3).

::

    blobs/sha256-…       content, each once, whatever names it
    names/ID.json        one model: its files' digests, where it came from, what it is
    trees/ID/DIGEST/…    its files under their names, as links to blobs: what an engine opens
    handoff/ID.json      what the engine provisioner reads
    partial/ID/…         what is on its way
    locks/…              who fetches, who uses

A model appears by the rename of its record, last of all, and goes with it, first of all. What a crash leaves between
is content that nothing names: the next :meth:`Cache.collect` takes it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Final

import msgspec

from ..identity import process_table
from .errors import StagingError
from .eviction import Candidate, choose
from .locks import Lock, Locks, try_lock, wait_lock
from .records import Record, encode_record, read_record, sync_directory, write_whole

#: left free on the disk
SPARE_BYTES: Final = 64 * 1024 * 1024
#: what is on its way and was not touched for so long is given up
PARTIAL_AGE_MS: Final = 14 * 24 * 3600 * 1000


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """Something that goes to make room, or went."""

    #: "model" | "content" | "partial" | "links"
    kind: str
    #: reference, digest or name
    what: str
    #: freed on the disk
    size_bytes: int
    reason: str
    #: of a model
    id: str = ""


class Cache:
    """The models of one data directory. Every process of its user may work with it at the same time.

    Args:
        root: its folder; made when it is first written to.
        limit_bytes: how large blobs and parts may become together; 0 = as large as the disk allows.
        now_ns: wall clock, nanoseconds since 1970.
        free_bytes: room on the disk of a path.
        boot: changes with every boot of this host.
    """

    def __init__(
        self,
        root: Path,
        *,
        limit_bytes: int = 0,
        now_ns: Callable[[], int] = time.time_ns,
        free_bytes: Callable[[Path], int] | None = None,
        boot: str | None = None,
    ) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.now_ns = now_ns
        self.boot = process_table().boot_id() if boot is None else boot
        self._free_bytes = free_bytes or _free_bytes

    # --- looking

    def record(self, id: str) -> Record | None:
        """What is known of a model; ``None`` when it is not here."""
        return read_record(self.root / "names" / f"{id}.json")

    def records(self) -> list[Record]:
        """All models, by reference."""
        found = [read_record(path) for path in (self.root / "names").glob("*.json")]
        return sorted((record for record in found if record is not None), key=lambda one: one.ref)

    def path_of(self, record: Record) -> Path:
        """What an engine is given: a file, or a folder."""
        folder = Path(record.ref.removeprefix("file:")) if record.in_place else self.tree_of(record)
        if not record.metadata.entry or (record.in_place and not folder.is_dir()):
            return folder
        return folder / record.metadata.entry

    def tree_of(self, record: Record) -> Path:
        """The folder with a fetched model's files under their names."""
        return self.root / "trees" / record.id / record.digest.removeprefix("sha256:")[:16]

    def handoff_path(self, id: str) -> Path:
        """Where the handoff of a model stands."""
        return self.root / "handoff" / f"{id}.json"

    def used_ns(self, record: Record) -> int:
        """When the model was last held for use, or came."""
        try:
            return (self.root / "locks" / f"{record.id}.use").stat().st_mtime_ns
        except FileNotFoundError:
            return record.staged_ms * 1_000_000

    def blob(self, digest: str) -> Path:
        """Where the content of a digest lies, or would."""
        return self.root / "blobs" / digest.replace(":", "-")

    def tell_once(self, id: str, what: str) -> bool:
        """Whether this was not told of a model before; from now on it was. For events of models that others fetched."""
        path = self.root / "handoff" / f"{id}.told"
        try:
            if path.read_text("utf-8") == what:
                return False
        except (OSError, UnicodeDecodeError):
            pass  # nothing was told yet
        write_whole(path, what.encode())
        return True

    def is_whole(self, record: Record) -> bool:
        """All of a model's files are there, with their sizes."""
        if record.in_place:
            return False
        for file in record.files:
            try:
                if self.blob(file.digest).stat().st_size != file.size_bytes:
                    return False
            except OSError:
                return False
        return self.path_of(record).exists()

    def used_bytes(self, *, without_partial: str = "") -> int:
        """Bytes of all content, and of what is on its way with what it will become."""
        return sum(self._blob_sizes().values()) + sum(
            self._partial_bytes(path) for path in self._partials() if path.name != without_partial
        )

    def in_use(self, id: str) -> bool:
        """Somebody holds the model for use."""
        path = self.root / "locks" / f"{id}.use"
        return path.exists() and not _is_free(path)

    def being_fetched(self, id: str) -> bool:
        """Somebody works on the model."""
        path = self.root / "locks" / f"{id}.stage"
        return path.exists() and not _is_free(path)

    # --- working with a model

    def stage_lock(self, id: str, cancel: Event | None = None) -> Lock:
        """The right to fetch or change a model, once nobody else has it. :raises StagingError: ``cancelled``."""
        self._make_folders()
        return wait_lock(self.root / "locks" / f"{id}.stage", cancel=cancel)

    def hold(self, id: str) -> Locks:
        """Keep a model here for as long as it is used: hold it before an engine starts, let go when it is gone.

        Hand :attr:`Locks.descriptors` to the engine's process, and the model stays held while that lives.

        Raises:
            StagingError: ``not-found``: it is not here (any more).
        """
        self._make_folders()
        held = Locks()
        try:
            with self._alone():
                record = self.record(id)
                if record is None:
                    raise StagingError("not-found", "the model is not in the cache any more")
                path = self.root / "locks" / f"{id}.use"
                held.add(wait_lock(path, shared=True))
                now = self.now_ns()
                os.utime(path, ns=(now, now))
                for digest in {file.digest for file in record.files if not record.in_place}:
                    held.add(self._hold_blob(digest, record.ref))
        except BaseException:
            held.release()
            raise
        return held

    def hold_blob(self, digest: str, size_bytes: int) -> Lock | None:
        """Keep content here while a model that shares it is staged; ``None`` when it is not here with this size."""
        lock = try_lock(self.blob(digest), shared=True, create=False)
        if lock is not None and size_bytes not in {-1, os.fstat(lock.fileno()).st_size}:
            lock.release()
            return None
        return lock

    def partial(self, id: str) -> Path:
        """The folder of what is on its way; the holder of the stage lock works there."""
        return self.root / "partial" / id

    def make_room(self, id: str, total_bytes: int) -> list[Removal]:
        """See that a model of this size can be fetched, removing what may go when there is a limit.

        Raises:
            StagingError: ``disk-full`` or ``cache-full``, with the numbers; then nothing was removed.
        """
        folder = self.partial(id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            here = self._partial_content(id)
            used = self.used_bytes(without_partial=id)
            excess = used + total_bytes - self.limit_bytes if self.limit_bytes else 0
            going = self._removals(excess) if excess > 0 else []
            freed = sum(removal.size_bytes for removal in going)
            if freed < excess:
                raise StagingError(
                    "cache-full",
                    f"the model needs {total_bytes} bytes, the cache may hold {self.limit_bytes}, and {used - freed}"
                    " of them are in use, pinned or being fetched",
                    needed_bytes=total_bytes,
                    limit_bytes=self.limit_bytes,
                    kept_bytes=used - freed,
                )
            free = self._free_bytes(self.root)
            if total_bytes - here + SPARE_BYTES > free + freed:
                raise StagingError(
                    "disk-full",
                    f"{total_bytes - here} bytes are to come, and the disk of {self.root} has {free} free",
                    needed_bytes=total_bytes - here,
                    free_bytes=free,
                )
            done = [removal for removal in going if self._remove(removal)]
            write_whole(folder / "total", str(total_bytes).encode())
            return done

    def commit(self, record: Record, arrived: Mapping[str, Path], *, handoff: bytes) -> None:
        """Make a model appear, or a new revision of it. The caller holds its stage lock, and locks on shared content.

        Args:
            record: what it is; the pin of the one before is kept.
            arrived: digest -> file with that content, on the same disk, synced. They are moved.
            handoff: for the engine provisioner.
        """
        with self._alone():
            for digest, path in arrived.items():
                blob = self.blob(digest)
                if blob.exists():
                    path.unlink()
                else:
                    path.chmod(0o400)
                    path.rename(blob)
            sync_directory(self.root / "blobs")
            before = self.record(record.id)
            if before is not None and before.pinned != record.pinned:
                record = msgspec.structs.replace(record, pinned=before.pinned)
            if not record.in_place:
                self._link(record)
            write_whole(self.handoff_path(record.id), handoff)
            write_whole(self.root / "names" / f"{record.id}.json", encode_record(record))
            if before is not None and not before.in_place:
                if before.digest != record.digest and not self.in_use(record.id):
                    shutil.rmtree(self.tree_of(before), ignore_errors=True)
                self._drop_blobs({file.digest for file in before.files})
            shutil.rmtree(self.partial(record.id), ignore_errors=True)

    def has_partial(self, id: str) -> bool:
        """Something of a model came that can be taken up again."""
        return self._partial_content(id) > 0

    def discard_partial(self, id: str) -> None:
        """Throw away what is on its way. The caller holds the stage lock."""
        shutil.rmtree(self.partial(id), ignore_errors=True)

    def pin(self, id: str, *, pinned: bool) -> Record:
        """Keep a model whatever else needs room, or not any more. :raises StagingError: ``not-found``."""
        with self._alone():
            record = self.record(id)
            if record is None:
                raise StagingError("not-found", "the model is not here")
            if record.pinned != pinned:
                record = msgspec.structs.replace(record, pinned=pinned)
                write_whole(self.root / "names" / f"{id}.json", encode_record(record))
            return record

    def remove(self, id: str) -> int:
        """Remove a model and the content that no other one shares; returns the bytes that this freed.

        Raises:
            StagingError: ``not-found``, or ``busy`` while it is loaded or fetched.
        """
        with self._alone():
            record = self.record(id)
            if record is None:
                raise StagingError("not-found", "the model is not here")
            if self.in_use(id):
                raise StagingError("busy", f"{record.ref} is loaded")
            if self.being_fetched(id):
                raise StagingError("busy", f"{record.ref} is being fetched")
            return self._remove_model(record)

    def collect(self, *, dry_run: bool = False) -> list[Removal]:
        """Remove what nothing names, what was given up, and what is over the limit; or only say what that would be."""
        if not self.root.exists():
            return []
        with self._alone():
            going = self._leftovers()
            excess = self.used_bytes() - self.limit_bytes if self.limit_bytes else 0
            excess -= sum(removal.size_bytes for removal in going)
            going += self._removals(excess, without={removal.what for removal in going})
            return going if dry_run else [removal for removal in going if self._remove(removal)]

    # --- inside

    def _alone(self) -> Lock:
        """The right to move and remove things: held for moments, never while something is fetched."""
        self._make_folders()
        return wait_lock(self.root / "lock")

    def _make_folders(self) -> None:
        for name in ("blobs", "names", "trees", "handoff", "partial", "locks"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def _hold_blob(self, digest: str, ref: str) -> Lock:
        lock = try_lock(self.blob(digest), shared=True, create=False)
        if lock is None:
            raise StagingError("not-found", f"content of {ref} is not in the cache any more")
        return lock

    def _link(self, record: Record) -> None:
        """The model's files under their names; readers see all of them or none."""
        tree = self.tree_of(record)
        if tree.exists():
            if all((tree / file.path).exists() for file in record.files):
                return
            shutil.rmtree(tree)
        making = tree.with_name(f".{tree.name}")
        shutil.rmtree(making, ignore_errors=True)
        for file in record.files:
            link = making / file.path
            link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(self.blob(file.digest), link.parent))
        making.rename(tree)
        sync_directory(tree.parent)

    def _blob_sizes(self) -> dict[str, int]:
        return {path.name.replace("-", ":", 1): size for path, size in _files(self.root / "blobs")}

    def _partials(self) -> list[Path]:
        return sorted(path for path in (self.root / "partial").glob("*") if path.is_dir())

    def _partial_content(self, id: str) -> int:
        return sum(size for _, size in _files(self.partial(id) / "files"))

    def _partial_bytes(self, folder: Path) -> int:
        here = self._partial_content(folder.name)  # notes beside it do not count
        try:
            total = int((folder / "total").read_text("ascii"))
        except (OSError, ValueError):
            return here
        return max(here, total if self.being_fetched(folder.name) else 0)

    def _understood(self) -> bool:
        """Every record can be read; else nobody knows what content is still named."""
        return all(read_record(path) is not None for path in (self.root / "names").glob("*.json"))

    def _leftovers(self) -> list[Removal]:
        """What no record names, and what was given up."""
        found: list[Removal] = []
        records = {record.id: record for record in self.records()}
        oldest_ns = self.now_ns() - PARTIAL_AGE_MS * 1_000_000
        for folder in self._partials():
            if not self.being_fetched(folder.name) and _touched_ns(folder) < oldest_ns:
                found.append(self._partial_removal(folder, "given up"))
        if not self._understood():
            return found
        named = {file.digest for record in records.values() for file in record.files if not record.in_place}
        for digest, size in sorted(self._blob_sizes().items()):
            if digest not in named and _is_free(self.blob(digest)):
                found.append(Removal(kind="content", what=digest, size_bytes=size, reason="no model has it"))
        for tree in sorted((self.root / "trees").glob("*/*")):
            record = records.get(tree.parent.name)
            if (record is None or self.tree_of(record) != tree) and not (
                self.in_use(tree.parent.name) or self.being_fetched(tree.parent.name)
            ):
                what = f"{tree.parent.name}/{tree.name}"
                found.append(Removal(kind="links", what=what, size_bytes=0, reason="of a revision before"))
        return found

    def _removals(self, excess_bytes: int, without: set[str] | None = None) -> list[Removal]:
        """What goes to free so much: parts that nobody fetches first, then models, least recently used first."""
        going: list[Removal] = []
        for folder in sorted(self._partials(), key=_touched_ns):
            if excess_bytes <= 0:
                return going
            if not self.being_fetched(folder.name) and folder.name not in (without or ()):
                removal = self._partial_removal(folder, "over the limit, and nobody fetches it")
                going.append(removal)
                excess_bytes -= removal.size_bytes
        if excess_bytes <= 0:
            return going
        records = {record.id: record for record in self.records() if not record.in_place}
        sizes = self._blob_sizes()
        candidates = [
            Candidate(
                id=record.id,
                used_ns=self.used_ns(record),
                blobs=frozenset(file.digest for file in record.files),
                kept_because="pinned"
                if record.pinned
                else "in use"
                if self.in_use(record.id)
                else "being fetched"
                if self.being_fetched(record.id)
                else "",
            )
            for record in records.values()
        ]
        free = {digest: size for digest, size in sizes.items() if _is_free(self.blob(digest))}
        chosen, _ = choose(candidates, free, excess_bytes)
        gone: set[str] = set()
        staying = {blob for one in candidates if one.id not in chosen for blob in one.blobs}
        for model_id in chosen:
            mine = {file.digest for file in records[model_id].files} - staying - gone
            gone |= mine
            going.append(
                Removal(
                    kind="model",
                    what=records[model_id].ref,
                    id=model_id,
                    size_bytes=sum(free.get(digest, 0) for digest in mine),
                    reason="over the limit, least recently used",
                )
            )
        return going

    def _partial_removal(self, folder: Path, reason: str) -> Removal:
        return Removal(kind="partial", what=folder.name, size_bytes=self._partial_bytes(folder), reason=reason)

    def _remove(self, removal: Removal) -> bool:
        """Do it; what somebody began to use in the meantime stays. The caller is alone."""
        if removal.kind == "model":
            record = self.record(removal.id)
            if record is None or record.pinned or self.in_use(record.id) or self.being_fetched(record.id):
                return False
            self._remove_model(record)
        elif removal.kind == "content":
            self._drop_blobs({removal.what})
        elif removal.kind == "links":
            shutil.rmtree(self.root / "trees" / removal.what, ignore_errors=True)
        else:
            with try_lock(self.root / "locks" / f"{removal.what}.stage", shared=False) or Locks() as lock:
                if not isinstance(lock, Lock):
                    return False
                shutil.rmtree(self.root / "partial" / removal.what, ignore_errors=True)
        return True

    def _remove_model(self, record: Record) -> int:
        (self.root / "names" / f"{record.id}.json").unlink(missing_ok=True)
        sync_directory(self.root / "names")
        shutil.rmtree(self.root / "trees" / record.id, ignore_errors=True)
        self.handoff_path(record.id).unlink(missing_ok=True)
        (self.root / "handoff" / f"{record.id}.told").unlink(missing_ok=True)
        return self._drop_blobs({file.digest for file in record.files}) if not record.in_place else 0

    def _drop_blobs(self, digests: set[str]) -> int:
        """Remove content that no model names and nobody holds; returns its bytes."""
        if not self._understood():
            return 0
        named = {file.digest for record in self.records() if not record.in_place for file in record.files}
        freed = 0
        for digest in digests - named:
            lock = try_lock(self.blob(digest), shared=False, create=False)
            if lock is not None:
                with lock:
                    freed += os.fstat(lock.fileno()).st_size
                    self.blob(digest).unlink()
        return freed


def _is_free(path: Path) -> bool:
    lock = try_lock(path, shared=False, create=False)
    if lock is None:
        return False
    lock.release()
    return True


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for below, _, names in os.walk(folder):
        for name in names:
            path = Path(below, name)
            try:
                yield path, path.lstat().st_size
            except FileNotFoundError:
                continue


def _touched_ns(folder: Path) -> int:
    return max((path.lstat().st_mtime_ns for path, _ in _files(folder)), default=0)


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free
