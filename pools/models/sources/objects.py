"""Stores that fsspec knows: ``s3:`` and others (``pip install 'llama-orch[s3]'``)."""

from __future__ import annotations

import contextlib
from typing import Any, Final
from urllib.parse import urlsplit

from ..errors import BrokenOffError, StagingError
from ..names import checked_path
from ..references import Reference, public
from ..transfer import Listing, RemoteFile

_BLOCK_BYTES: Final = 8 * 1024 * 1024
_MAX_FILES: Final = 10_000
#: packages that bring a scheme, where an extra of ours does
_EXTRAS: Final = {"s3": "s3", "s3a": "s3"}


class ObjectStream:
    """An open object, read in blocks one after the other."""

    def __init__(self, file: Any, offset: int, total: int, etag: str) -> None:
        self._file = file
        self.offset, self.total, self.etag = offset, total, etag

    def read(self, size: int) -> bytes:
        try:
            piece: bytes = self._file.read(size)
        except Exception as error:
            raise _told(error) from error
        return piece

    def interrupt(self) -> None:
        """A block is small, and the store's own time limits hold: nothing to cut short."""

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._file.close()


class ObjectSource:
    """An object that is a model's file, or a prefix below which its files lie."""

    def __init__(self, reference: Reference) -> None:
        scheme = urlsplit(reference.url).scheme
        remedy = f"python -m pip install 'llama-orch[{_EXTRAS.get(scheme, 'models')}]'"
        try:
            import fsspec
        except ImportError as error:
            raise StagingError(
                "missing-package", f"{scheme}: needs the package fsspec, which is not installed", remedy=remedy
            ) from error
        self._reference = reference
        try:
            self._fs, self._path = fsspec.core.url_to_fs(reference.url)
        except ImportError as error:
            raise StagingError(
                "missing-package",
                f"{scheme}: needs a package that is not installed: {str(error)[:200]}",
                remedy=remedy if scheme in _EXTRAS else "Install it into llama-orch's environment.",
            ) from error
        except ValueError as error:
            raise StagingError("unsupported", f"{public(reference.url)}: {str(error)[:200]}") from error

    def listing(self) -> Listing:
        try:
            self._fs.invalidate_cache()
            info = self._fs.info(self._path)
            if info.get("type") == "directory":
                found = self._fs.find(self._path, detail=True)
                prefix = self._path.rstrip("/") + "/"
                files = [self._file(path.removeprefix(prefix), one) for path, one in sorted(found.items())]
                files = [file for file in files if file.size_bytes != 0 or file.path]
            else:
                files = [self._file(self._path.rsplit("/", 1)[-1], info)]
        except StagingError:
            raise
        except Exception as error:
            raise _told(error) from error
        if not files or len(files) > _MAX_FILES:
            raise StagingError("not-found", f"{self._reference.text} holds {len(files)} files")
        return Listing(source_url=self._reference.text, files=files, revision=files[0].etag if len(files) == 1 else "")

    def open(self, file: RemoteFile, offset: int) -> ObjectStream:
        try:
            info = self._fs.info(file.locator)
            opened = self._fs.open(file.locator, "rb", block_size=_BLOCK_BYTES, cache_type="readahead")
            if offset:
                opened.seek(offset)
        except Exception as error:
            raise _told(error) from error
        return ObjectStream(opened, offset, _size(info), _etag(info))

    def _file(self, path: str, info: dict[str, Any]) -> RemoteFile:
        return RemoteFile(
            path=checked_path(path),
            size_bytes=_size(info),
            etag=_etag(info),
            sha256=self._reference.sha256 if info["name"] == self._path else "",
            locator=info["name"],
        )


def _size(info: dict[str, Any]) -> int:
    size = info.get("size")
    return size if isinstance(size, int) and size >= 0 else -1


def _etag(info: dict[str, Any]) -> str:
    for key in ("VersionId", "ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "modified", "created"):
        if info.get(key) and info[key] != "null":
            return f"{key}:{info[key]}".replace('"', "")
    return ""


def _told(error: Exception) -> StagingError | BrokenOffError:
    """A store's error in our words; its own text may hold addresses with keys and is cut to its kind."""
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return StagingError("not-found", "the store has no such object or bucket")
    if isinstance(error, PermissionError) or kind in {"NoCredentialsError", "ClientAuthenticationError"}:
        return StagingError("unauthorized", f"the store refuses access ({kind})")
    return BrokenOffError(f"the store failed: {kind}", cause="unreachable")
