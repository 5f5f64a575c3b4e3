"""Builds GGUF files byte by byte, the broken ones that no library would write included."""

from __future__ import annotations

import struct
from collections.abc import Sequence

KINDS = {"B": 0, "b": 1, "H": 2, "h": 3, "I": 4, "i": 5, "f": 6, "?": 7, "s": 8, "Q": 10, "q": 11, "d": 12}


def text(value: str) -> bytes:
    """A string as it stands in the file."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def scalar(code: str, value: float) -> bytes:
    """A typed value; ``code`` as :mod:`struct` has it."""
    return struct.pack(f"<I{code}", KINDS[code], value)


def string(value: str) -> bytes:
    """A typed string."""
    return struct.pack("<I", KINDS["s"]) + text(value)


def array(code: str, values: Sequence[object]) -> bytes:
    """A typed array; the code "s" is for strings."""
    body = b"".join(text(str(v)) for v in values) if code == "s" else struct.pack(f"<{len(values)}{code}", *values)
    return struct.pack("<IIQ", 9, KINDS[code], len(values)) + body


def entry(key: str, value: bytes) -> bytes:
    """A key and its value."""
    return text(key) + value


def tensor(name: str, dims: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's description; ``offset`` counts from the start of the weights."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file_of(
    entries: Sequence[bytes], tensors: Sequence[bytes], *, version: int = 3, alignment: int = 32, data: int = 0
) -> bytes:
    """A whole file with ``data`` zero bytes as its weights."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment if data else 0) + bytes(data)
