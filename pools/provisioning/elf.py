"""Which shared libraries a program needs, read from its ELF header without running it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO, Final

_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRINGS = 1, 5
#: more than any program has
_MOST: Final = 4096
_LONGEST_NAME: Final = 512


def needed(path: Path) -> list[str]:
    """Names of the libraries that the loader will look for; none for what is no ELF file, or damaged.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        try:
            return _needed(file)
        except (struct.error, ValueError, OverflowError, OSError):  # positions that no file has
            return []


def is_program(path: Path) -> bool:
    """Whether it is a program or library of this kind. :raises OSError: it cannot be read."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _needed(file: IO[bytes]) -> list[str]:
    head = file.read(64)
    if head[:4] != b"\x7fELF" or len(head) < 64:
        return []
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    if wide:
        (table,) = struct.unpack_from(f"{order}Q", head, 32)
        size, count = struct.unpack_from(f"{order}HH", head, 54)
    else:
        (table,) = struct.unpack_from(f"{order}I", head, 28)
        size, count = struct.unpack_from(f"{order}HH", head, 42)
    loads: list[tuple[int, int, int]] = []
    dynamic = (0, 0)
    for number in range(min(count, _MOST)):
        entry = _at(file, table + number * size, size)
        if wide:
            kind, _flags, offset, address, _physical, length = struct.unpack_from(f"{order}IIQQQQ", entry)
        else:
            kind, offset, address, _physical, length = struct.unpack_from(f"{order}IIIII", entry)
        if kind == _LOAD:
            loads.append((address, offset, length))
        elif kind == _DYNAMIC:
            dynamic = (offset, length)
    pair = struct.Struct(f"{order}qQ" if wide else f"{order}iI")
    tags = list(pair.iter_unpack(_at(file, dynamic[0], min(dynamic[1], _MOST * pair.size) // pair.size * pair.size)))
    strings = next((value for tag, value in tags if tag == _STRINGS), None)
    if strings is None:
        return []
    base = next((offset + strings - address for address, offset, length in loads if 0 <= strings - address < length), 0)
    return [_text(file, base + value) for tag, value in tags if tag == _NEEDED]


def _at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _text(file: IO[bytes], offset: int) -> str:
    return _at(file, offset, _LONGEST_NAME).partition(b"\0")[0].decode("ascii", "replace")
