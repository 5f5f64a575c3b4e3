"""SHA-256 over what passes by, and over the list of a model's files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from .errors import StagingError

PIECE_BYTES: Final = 1024 * 1024
_DIGEST: Final = re.compile(r"^(?:sha256:)?([0-9a-fA-F]{64})$")


def plain(digest: str) -> str:
    """A SHA-256 as 64 small hex digits; "" stays "".

    Raises:
        StagingError: ``bad-reference``: it is none.
    """
    if not digest:
        return ""
    found = _DIGEST.match(digest)
    if found is None:
        raise StagingError("bad-reference", f"got {digest!r} as a digest; it is sha256: and 64 hex digits")
    return found[1].lower()


class Digester:
    """Digests of a file while it is written: SHA-256, and git's object id, which needs the size first."""

    def __init__(self, size_bytes: int = -1) -> None:
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False) if size_bytes >= 0 else None

    def update(self, piece: bytes | memoryview) -> None:
        """Bytes that follow."""
        self._sha256.update(piece)
        if self._git is not None:
            self._git.update(piece)

    @property
    def sha256(self) -> str:
        """64 hex digits."""
        return self._sha256.hexdigest()

    @property
    def git_sha1(self) -> str:
        """40 hex digits; "" when the size was not known."""
        return self._git.hexdigest() if self._git is not None else ""


def digest_of_files(files: Iterable[tuple[str, str]]) -> str:
    """``sha256:…`` of a model: of its file when it is one, else of the sorted lines ``digest  path``.

    Args:
        files: ``(path, digest)`` of each.
    """
    listed = sorted(files)
    if len(listed) == 1:
        return listed[0][1]
    text = "".join(f"{digest}  {path}\n" for path, digest in listed)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
