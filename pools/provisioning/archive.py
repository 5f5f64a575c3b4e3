"""Unpacks an archive that nobody has to trust: every name, link, kind, size and count is looked at before it is made.

Refused as a whole: names that are absolute, climb (``..``), hide control characters or come twice; links that lead out;
devices, pipes, encrypted members; more than the bounds. What is written belongs to its owner alone and has no special bits.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, cast

import msgspec

from .problems import ProvisionError, Stop, disk_problem, never

_PIECE: Final = 1024 * 1024
#: a header inside an archive that is longer names something absurd
_LONGEST_READ: Final = 2 * _PIECE
_TARGET_BYTES: Final = 4096
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_DRIVE: Final = re.compile(r"[A-Za-z]:")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of what comes out."""

    #: all files together, unpacked
    total_bytes: int = 16 * 1024**3
    members: int = 20_000
    depth: int = 16
    #: of one name
    name_bytes: int = 512


class _RefusedError(Exception):
    """The archive holds what is not unpacked."""


def unpack(archive: Path, into: Path, program: str, *, limits: Limits | None = None, stop: Stop = never) -> None:
    """Unpack a tar (plain, gzip, bzip2, xz), a zip, or a single program.

    Args:
        archive: its kind is told from its first bytes, whatever its name.
        into: an empty directory.
        program: name that a single program gets.
        limits: bounds of what comes out.
        stop: asked now and then; true = give up.

    Raises:
        ProvisionError: ``bad-archive``; ``into`` may hold a part then. ``cancelled``.
    """
    unpacking = _Unpacking(into, limits or Limits(), stop)
    try:
        with archive.open("rb") as file:
            head = file.read(512)
        if head.startswith(b"PK"):
            _unzip(archive, unpacking)
        elif head.startswith((b"\x7fELF", b"#!", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")):
            with archive.open("rb") as file:
                unpacking.file(program, file, executable=True)
        else:
            with archive.open("rb") as file:
                _untar(_plain(file, head), unpacking)
        unpacking.finish()
    except _RefusedError as error:
        raise ProvisionError("bad-archive", f"the archive is refused: {error}") from error
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        ValueError,
        LookupError,
        ArithmeticError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise ProvisionError("bad-archive", f"the archive is damaged, or none: {error}") from error
    except OSError as error:
        # A name that this disk does not take is the archive's doing.
        if error.errno in {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ELOOP, None}:
            raise ProvisionError("bad-archive", f"the archive cannot be unpacked: {error}") from error
        raise disk_problem(error) from error


def _plain(file: IO[bytes], head: bytes) -> IO[bytes]:
    """The tar behind its compression."""
    if head.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if head.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.BZ2File(file))
    if head.startswith(b"\xfd7zXZ\x00"):
        return cast("IO[bytes]", lzma.LZMAFile(file))
    if head[257:262] != b"ustar":
        raise _RefusedError("it is no tar, no zip and no program")
    return file


def _untar(plain: IO[bytes], unpacking: _Unpacking) -> None:
    with tarfile.open(fileobj=cast("Any", _Bounded(plain, unpacking.limits)), mode="r:") as tar:
        for member in tar:
            if member.isdir():
                unpacking.folder(member.name)
            elif member.issym():
                unpacking.link(member.name, member.linkname)
            elif member.islnk():
                unpacking.hard_link(member.name, member.linkname)
            elif member.isreg():
                source = tar.extractfile(member)
                assert source is not None, "a regular file has content"
                unpacking.file(member.name, source, executable=bool(member.mode & 0o111))
            else:
                raise _RefusedError(f"{_shown(member.name)} is no file, folder or link")


def _unzip(archive: Path, unpacking: _Unpacking) -> None:
    with zipfile.ZipFile(archive) as bundle:
        for info in bundle.infolist():
            mode = info.external_attr >> 16
            if info.flag_bits & 0x1:
                raise _RefusedError(f"{_shown(info.filename)} is encrypted")
            if not info.filename:
                raise _RefusedError("a member has no name")
            if info.is_dir():
                unpacking.folder(info.filename.rstrip("/"))
            elif stat.S_ISLNK(mode):
                with bundle.open(info) as source:
                    unpacking.link(info.filename, source.read(_TARGET_BYTES + 1).decode("utf-8"))
            elif stat.S_IFMT(mode) in {0, stat.S_IFREG}:
                with bundle.open(info) as source:
                    unpacking.file(info.filename, source, executable=bool(mode & 0o111))
            else:
                raise _RefusedError(f"{_shown(info.filename)} is no file, folder or link")


class _Unpacking:
    """Makes what may be made, and counts."""

    def __init__(self, into: Path, limits: Limits, stop: Stop) -> None:
        self._into = into
        self.limits = limits
        self._stop = stop
        self._members = 0
        self._bytes = 0
        #: made behind all files, so that none is written through one
        self._links: list[tuple[PurePosixPath, str]] = []

    def folder(self, name: str) -> None:
        if name.strip("/.") == "" and ".." not in name.split("/"):
            return  # the root itself
        self._parents(self._name(name) / "x")

    def file(self, name: str, source: IO[bytes], *, executable: bool) -> None:
        place = self._name(name)
        self._parents(place)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            handle = os.open(self._into / place, flags, 0o700 if executable else 0o600)
        except FileExistsError as error:
            raise _RefusedError(f"{_shown(name)} comes twice") from error
        with os.fdopen(handle, "wb") as target:
            while piece := source.read(_PIECE):
                if self._stop():
                    raise ProvisionError("cancelled", "unpacking was given up")
                self._bytes += len(piece)
                if self._bytes > self.limits.total_bytes:
                    raise _RefusedError(f"it holds more than {self.limits.total_bytes} bytes")
                target.write(piece)

    def link(self, name: str, target: str) -> None:
        place = self._name(name)
        if not target or len(target.encode()) > _TARGET_BYTES or _CONTROL.search(target):
            raise _RefusedError(f"the link {_shown(name)} has no proper target")
        if target.startswith("/") or _climbs(place.parent / target):
            raise _RefusedError(f"the link {_shown(name)} leads out, to {_shown(target)}")
        self._links.append((place, target))

    def hard_link(self, name: str, target: str) -> None:
        """A second name for a file that was unpacked already."""
        place, original = self._name(name), self._into / self._name(target)
        self._parents(place)
        if not original.is_file() or original.is_symlink():
            raise _RefusedError(f"{_shown(name)} is a second name of {_shown(target)}, which is no file before it")
        try:
            os.link(original, self._into / place, follow_symlinks=False)
        except FileExistsError as error:
            raise _RefusedError(f"{_shown(name)} comes twice") from error

    def finish(self) -> None:
        """Make the links, and see that none leads out by way of another."""
        for place, target in self._links:
            self._parents(place)
            try:
                (self._into / place).symlink_to(target)
            except FileExistsError as error:
                raise _RefusedError(f"{_shown(str(place))} comes twice") from error
        root = os.path.realpath(self._into)
        for place, target in self._links:
            try:
                end = os.path.realpath(self._into / place, strict=True)
            except OSError as error:
                raise _RefusedError(f"the link {_shown(str(place))} leads nowhere, to {_shown(target)}") from error
            if not end.startswith(f"{root}/"):
                raise _RefusedError(f"the link {_shown(str(place))} leads out, to {_shown(target)}")

    # --- inside

    def _name(self, name: str) -> PurePosixPath:
        self._members += 1
        if self._members > self.limits.members:
            raise _RefusedError(f"it holds more than {self.limits.members} members")
        if self._stop():
            raise ProvisionError("cancelled", "unpacking was given up")
        if not name or len(name.encode("utf-8", "surrogateescape")) > self.limits.name_bytes or _CONTROL.search(name):
            raise _RefusedError(f"{_shown(name)} is no proper name")
        place = PurePosixPath(name)
        if place.is_absolute() or _DRIVE.match(name):
            raise _RefusedError(f"{_shown(name)} is absolute")
        if ".." in place.parts:
            raise _RefusedError(f"{_shown(name)} climbs out")
        if not place.parts or len(place.parts) > self.limits.depth:
            raise _RefusedError(f"{_shown(name)} is no proper name")
        return place

    def _parents(self, place: PurePosixPath) -> None:
        """Make the folders that lead to it; each is one, and no link."""
        at = self._into
        for part in place.parts[:-1]:
            at = at / part
            try:
                at.mkdir(mode=0o700)
            except FileExistsError:
                if at.is_symlink() or not at.is_dir():
                    raise _RefusedError(f"{_shown(str(place))} stands in what is no folder") from None


class _Bounded:
    """Reads from a decompressor; more than the bound, or a header of absurd length, is refused."""

    def __init__(self, source: IO[bytes], limits: Limits) -> None:
        self._source = source
        # Headers and padding come on top of the files.
        self._most = limits.total_bytes + limits.members * 4096 + _PIECE

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _LONGEST_READ:
            raise _RefusedError(f"a header in it is {size} bytes long")
        return self._source.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position > self._most:
            raise _RefusedError(f"it holds more than {self._most} bytes")
        return self._source.seek(position)

    def tell(self) -> int:
        return self._source.tell()


def _climbs(path: PurePosixPath) -> bool:
    """Whether a relative path leaves where it begins, at any step."""
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def _shown(name: str) -> str:
    return ascii(name[:120])
