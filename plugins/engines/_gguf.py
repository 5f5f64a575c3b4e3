"""Reads the head of a GGUF file: its metadata, without the weights (ggml's docs/gguf.md, versions 2 and 3)."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

#: struct formats of the scalar types, by GGUF's type number
_SCALARS: Final[dict[int, str]] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
#: bounds, so that a broken file is refused and not read into memory
MAX_STRING_BYTES: Final = 64 * 1024 * 1024
MAX_ENTRIES: Final = 100_000
MAX_ELEMENTS: Final = 16_000_000


class GgufError(ValueError):
    """The file is no GGUF that this can read."""


class GgufHead(msgspec.Struct, frozen=True, kw_only=True):
    """What the head of a GGUF file says."""

    #: scalars and strings by key; arrays are left out
    metadata: dict[str, Any]
    #: SHA-256 over everything that makes the tokenizer, the chat template not included
    tokenizer_digest: str

    @property
    def context_length(self) -> int:
        """Tokens the model was trained for; 0 when the file does not say."""
        value = self.metadata.get(f"{self.metadata.get('general.architecture', '')}.context_length", 0)
        return value if isinstance(value, int) else 0


def read_head(path: Path) -> GgufHead:
    """The head of a file.

    Raises:
        GgufError: it is no GGUF, or a broken one.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if _take(file, 4) != b"GGUF":
            msg = f"{path}: this is no GGUF file"
            raise GgufError(msg)
        (version,) = struct.unpack("<I", _take(file, 4))
        if version not in (2, 3):
            msg = f"{path}: GGUF version {version} is not supported, only 2 and 3"
            raise GgufError(msg)
        _, entries = struct.unpack("<QQ", _take(file, 16))
        if entries > MAX_ENTRIES:
            msg = f"{path}: {entries} metadata entries are too many"
            raise GgufError(msg)
        metadata: dict[str, Any] = {}
        tokenizer = hashlib.sha256()
        for _ in range(entries):
            key = _string(file).decode("utf-8", "replace")
            (kind,) = struct.unpack("<I", _take(file, 4))
            start = file.tell()
            value = _value(file, kind)
            if value is not None:
                metadata[key] = value
            if key.startswith("tokenizer.") and key != "tokenizer.chat_template":
                stop = file.tell()
                file.seek(start)
                tokenizer.update(key.encode() + b"\0" + struct.pack("<IQ", kind, stop - start))
                tokenizer.update(_take(file, stop - start))
        return GgufHead(metadata=metadata, tokenizer_digest=f"sha256:{tokenizer.hexdigest()}")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind in _SCALARS:
        pattern = _SCALARS[kind]
        return struct.unpack(pattern, _take(file, struct.calcsize(pattern)))[0]
    if kind == _STRING:
        return _string(file).decode("utf-8", "replace")
    if kind == _ARRAY:
        inner, count = struct.unpack("<IQ", _take(file, 12))
        if count > MAX_ELEMENTS:
            msg = f"an array of {count} elements is too long"
            raise GgufError(msg)
        if inner in _SCALARS:
            _take(file, count * struct.calcsize(_SCALARS[inner]))
        elif inner == _STRING:
            for _ in range(count):
                _string(file)
        else:
            msg = f"arrays of type {inner} are not supported"
            raise GgufError(msg)
        return None
    msg = f"value type {kind} is not known"
    raise GgufError(msg)


def _string(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", _take(file, 8))
    if length > MAX_STRING_BYTES:
        msg = f"a string of {length} bytes is too long"
        raise GgufError(msg)
    return _take(file, length)


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        msg = "the file ends within its head"
        raise GgufError(msg)
    return data
