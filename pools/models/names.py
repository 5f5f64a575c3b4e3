"""Names of files as sources tell them: nothing that a source says decides where bytes are written."""

from __future__ import annotations

import unicodedata
from typing import Final

from .errors import StagingError

_MAX_PARTS: Final = 16
_MAX_PART_BYTES: Final = 200


def checked_path(name: str) -> str:
    """A file's name within its model, if it is a plain relative one with ``/`` between its parts.

    Raises:
        StagingError: ``hostile-name``: it is absolute, leads upwards, holds characters that are no part of names, or is
            too long.
    """
    parts = name.split("/")
    wrong = ""
    if len(parts) > _MAX_PARTS or any(len(part.encode("utf-8", "surrogatepass")) > _MAX_PART_BYTES for part in parts):
        wrong = "is too long"
    elif any(part in {"", ".", ".."} for part in parts):
        wrong = "leads elsewhere"
    elif "\\" in name or any(unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for character in name):
        wrong = "holds characters that are no part of a file's name"
    elif any(part != part.strip() or part.startswith("-") for part in parts):
        wrong = "begins or ends with a blank or a dash"
    if wrong:
        raise StagingError("hostile-name", f"the source names a file {name[:200]!r}, which {wrong}")
    return name


def refuse_collisions(names: list[str]) -> None:
    """Refuse names that one folder cannot hold together.

    Raises:
        StagingError: ``hostile-name``: one is there twice, or is a file and a folder.
    """
    seen = set(names)
    if len(seen) != len(names):
        raise StagingError("hostile-name", "the source names a file twice")
    for name in names:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in seen:
                raise StagingError(
                    "hostile-name", f"the source names {'/'.join(parts[:depth])[:200]!r} as file and as folder"
                )
