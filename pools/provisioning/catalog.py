"""The engine catalog: what was prepared on this host, one record per install (ENG-2).

``<data directory>/engine-catalog/`` holds ``NAME.json`` (the record), ``NAME/`` (the files, for what has some),
``logs/NAME.log`` (of a build), and hidden working directories. Only a record counts as an install, and it is written
last, in one step: after a crash at any moment an install is whole, or not there. One writer per name, by ``flock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from .building import end_builders

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
#: raised when what an install holds changes its meaning: older ones are then made anew
_FORMAT: Final = 1


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One install."""

    name: str
    engine: str
    #: "binary" | "source" | "container"
    mode: str
    #: digest of what was asked for: the same again is the same install
    key: str
    version: str = ""
    #: of the archive, the sources ("git:…") or the image
    digest: str = ""
    flags: tuple[str, ...] = ()
    #: "cpu" | "cuda" | …
    build: str = "unknown"
    #: its files; "" = it has none here
    path: str = ""
    #: the server, below ``path``
    program: str = ""
    #: long options that the program's help names
    options: tuple[str, ...] = ()
    #: where it came from, without credentials
    source: str = ""
    #: of a container: "podman" or "docker"
    runtime: str = ""
    image: str = ""
    warnings: tuple[str, ...] = ()
    #: Unix time, milliseconds
    installed_at_ms: int = 0


class EngineCatalog:
    """The catalog in a directory, which is made when something is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    # --- reading

    def records(self) -> list[EngineRecord]:
        """All installs that are whole, oldest first."""
        found = [self.get(path.stem) for path in self.directory.glob("[!.]*.json")]
        return sorted((record for record in found if record), key=lambda record: (record.installed_at_ms, record.name))

    def get(self, name: str) -> EngineRecord | None:
        """One install; ``None`` when there is none, or its files are gone."""
        if not _NAME.fullmatch(name):
            return None
        try:
            record = msgspec.json.decode((self.directory / f"{name}.json").read_bytes(), type=EngineRecord)
        except (OSError, msgspec.MsgspecError):
            return None
        if record.name != name or (record.path and not (Path(record.path) / record.program).is_file()):
            return None
        return record

    def log_path(self, name: str) -> Path:
        """Where the log of a build is kept."""
        return self.directory / "logs" / f"{name}.log"

    # --- writing

    @contextlib.contextmanager
    def working(self, name: str) -> Iterator[Path]:
        """An empty directory to prepare an install in, for one at a time; it is gone behind the block.

        What an earlier try left, its processes too, is cleared away first.
        """
        self._make()
        with self._locked(name):
            staging = self.directory / f".staging-{name}"
            end_builders(self.marker(name))
            _clear(staging)
            staging.mkdir(mode=0o700)
            try:
                yield staging
            finally:
                _clear(staging)

    def marker(self, name: str) -> str:
        """Marks the processes that build an install, so that they are found again."""
        place = hashlib.sha256(os.fsencode(self.directory.resolve())).hexdigest()[:16]
        return f"build-{place}/{name}/"

    def part(self, digest: str) -> Path:
        """A file to fetch into; it stays when fetching breaks off, and is gone on."""
        folder = self.directory / "downloads"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{digest}.part"

    def add(self, record: EngineRecord, tree: Path | None) -> EngineRecord:
        """Make an install count, within :meth:`working` of its name. :param tree: its files; they are moved."""
        if tree is not None:
            place = self.directory / record.name
            _sync_tree(tree)
            _clear(place)
            tree.replace(place)
            record = msgspec.structs.replace(record, path=str(place))
        handle, temporary = tempfile.mkstemp(dir=self.directory, prefix=f".{record.name}.")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.directory / f"{record.name}.json")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync(self.directory)
        return record

    def remove(self, name: str) -> bool:
        """Forget an install and delete its files; whether there was one."""
        if not _NAME.fullmatch(name) or not self.directory.is_dir():
            return False
        with self._locked(name):
            record = self.directory / f"{name}.json"
            there = record.exists()
            record.unlink(missing_ok=True)
            _sync(self.directory)
            _clear(self.directory / name)
            self.log_path(name).unlink(missing_ok=True)
        return there

    # --- inside

    def _make(self) -> None:
        for folder in (self.directory, self.directory / "logs", self.directory / ".locks"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        (self.directory / ".locks").mkdir(mode=0o700, exist_ok=True)
        handle = os.open(self.directory / ".locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def key_of(engine: str, mode: str, inputs: Sequence[str]) -> str:
    """Digest of what is asked for."""
    return hashlib.sha256(msgspec.json.encode([_FORMAT, engine, mode, list(inputs)])).hexdigest()


def name_of(engine: str, mode: str, key: str) -> str:
    """Name of an install in the catalog."""
    return f"{engine}-{mode}-{key[:12]}"


def _clear(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(tree: Path) -> None:
    """Onto the disk, before anything says that it is there."""
    for folder, _, files in os.walk(tree):
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                _sync(path)
        _sync(Path(folder))
