"""Reads the head of a GGUF file: metadata and tensor infos, never the weights (ggml's ``docs/gguf.md``).

Versions 2 and 3 in little-endian byte order, in one file or split into ``NAME-00001-of-0000N.gguf``. Version 1 (before
August 2023) and big-endian files are refused by name. Every count and length of the file is held against a bound and
against the file's size before it is believed: a hostile file costs time linear in its size and at most
:data:`MAX_KEPT_BYTES` of memory, and ends in :class:`GgufError`.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from .ggml import FILE_TYPES, TENSOR_TYPES

#: struct formats of the scalar types, by GGUF's type number
_SCALARS: Final[dict[int, struct.Struct]] = {
    kind: struct.Struct(f"<{code}")
    for kind, code in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")

#: bounds on what a head may say; real files stay far below
MAX_ENTRIES: Final = 16_384
MAX_TENSORS: Final = 65_536
MAX_HEAD_BYTES: Final = 256 * 1024 * 1024
#: of what is kept in memory, counted generously
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
MAX_KEY_BYTES: Final = 65_535
MAX_NAME_BYTES: Final = 1_024
MAX_DIMS: Final = 4
MAX_PARTS: Final = 1_024
#: strings above this are skipped as arrays are
_MAX_TEXT_BYTES: Final = 4 * 1024 * 1024
_MAX_ALIGNMENT: Final = 1024 * 1024
_PIECE_BYTES: Final = 256 * 1024
#: what Python's objects of an entry, an element and a tensor take, rounded up
_ENTRY_BYTES: Final = 512
_ELEMENT_BYTES: Final = 64
_TENSOR_BYTES: Final = 640

#: ends of the keys whose arrays say something per layer; read by default
PER_LAYER: Final = (
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.sliding_window_pattern",
    ".feed_forward_length",
)
_PART: Final = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.ASCII | re.DOTALL)

Scalar = int | float | bool | str


class GgufError(ValueError):
    """The file is no GGUF that this can read; the text says which file, what is wrong and where."""


class TensorInfo(msgspec.Struct, frozen=True, gc=False):
    """One tensor of the file."""

    name: str
    #: elements per dimension, the contiguous one first
    dims: tuple[int, ...]
    #: ggml's type number
    type: int
    #: of its first byte in the part that holds it
    offset: int
    #: without padding; of a type that is not known here, the room up to the next tensor
    size_bytes: int

    @property
    def elements(self) -> int:
        """Product of the dimensions."""
        product = 1
        for dim in self.dims:
            product *= dim
        return product


class GgufHead(msgspec.Struct, frozen=True, kw_only=True):
    """What the head of a GGUF file, or of all parts of a split one, says."""

    version: int
    #: scalars and strings by key
    metadata: dict[str, Scalar]
    #: elements of the arrays that were read
    arrays: dict[str, tuple[Scalar, ...]]
    #: number of elements of every array
    lengths: dict[str, int]
    tensors: tuple[TensorInfo, ...]
    #: SHA-256 over everything that makes the tokenizer, the chat template not included
    tokenizer_digest: str
    #: where the weights begin, in the first part
    data_offset: int
    #: all parts together
    file_bytes: int

    @property
    def architecture(self) -> str:
        """``general.architecture``, or ""."""
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    @property
    def context_length(self) -> int:
        """Tokens the model was trained for; 0 when the file does not say."""
        return self.number("context_length")

    @property
    def weights_bytes(self) -> int:
        """All tensors together."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Elements of all tensors together."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def quantization(self) -> str:
        """Name of the file's quantization, such as ``Q4_K_M``; where it does not say, the type of most of its bytes."""
        kind = self.metadata.get("general.file_type")
        if isinstance(kind, int) and kind in FILE_TYPES:
            return FILE_TYPES[kind]
        sizes: dict[int, int] = {}
        for tensor in self.tensors:
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size_bytes
        if not sizes:
            return ""
        most = max(sizes, key=lambda type_number: (sizes[type_number], -type_number))
        return TENSOR_TYPES[most][0] if most in TENSOR_TYPES else f"type-{most}"

    def number(self, key: str) -> int:
        """The whole number under a key of the architecture (``{architecture}.{key}``); 0 when there is none."""
        value = self.metadata.get(f"{self.architecture}.{key}", 0)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def read_head(path: Path, *, keep: Collection[str] = PER_LAYER) -> GgufHead:
    """The head of one file. Blocks: call it in a thread where a loop runs.

    Args:
        path: the file.
        keep: ends of the keys whose arrays are read; of the others only the length is known.

    Raises:
        GgufError: it is no GGUF, a broken one, or one that ends before its last tensor does.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # opening a pipe would wait for its writer
        raise GgufError(f"{path}: this is no regular file")
    with path.open("rb", buffering=0) as file:
        return parse_head(file, file_bytes=os.fstat(file.fileno()).st_size, name=str(path), keep=keep)


def read_model(path: Path, *, keep: Collection[str] = PER_LAYER) -> GgufHead:
    """As :func:`read_head`; of a split file all parts, whichever of them is named.

    Raises:
        GgufError: as :func:`read_head`, or a part is missing or does not belong to the others.
        OSError: a part cannot be read.
    """
    files = parts_of(path)
    first = read_head(files[0], keep=keep)
    if len(files) == 1:
        count = first.metadata.get("split.count", 1)
        if count not in (0, 1):
            raise GgufError(
                f"{path}: it says that it is one of {count} parts; they are found by names ending in -00001-of-{count:05}.gguf"
            )
        return first
    tensors = list(first.tensors)
    file_bytes = first.file_bytes
    for number, file in enumerate(files):
        head = first if number == 0 else read_head(file, keep=keep)
        told = (head.metadata.get("split.no"), head.metadata.get("split.count"))
        if told != (number, len(files)):
            raise GgufError(f"{file}: it says that it is part {told[0]} (from 0) of {told[1]}, its name says otherwise")
        if number:
            tensors += head.tensors
            file_bytes += head.file_bytes
        if len(tensors) > MAX_TENSORS:
            raise GgufError(f"{file}: more than {MAX_TENSORS} tensors in all parts together")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise GgufError(f"{files[0]}: a tensor is in more than one part")
    told_tensors = first.metadata.get("split.tensors.count", len(tensors))
    if told_tensors != len(tensors):
        raise GgufError(f"{files[0]}: the parts hold {len(tensors)} tensors together, it says {told_tensors}")
    return msgspec.structs.replace(first, tensors=tuple(tensors), file_bytes=file_bytes)


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of a split model by the name of one of them, the first part first; else the file itself.

    Raises:
        GgufError: a part is missing, or the numbers in the name make no sense.
    """
    named = _PART.match(path.name)
    if named is None:
        return (path,)
    number, count = int(named["number"]), int(named["count"])
    if not 1 <= number <= count <= MAX_PARTS:
        raise GgufError(f"{path}: part {number} of {count} cannot be; at most {MAX_PARTS} parts are read")
    files = tuple(path.with_name(f"{named['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1))
    for n, file in enumerate(files, start=1):
        if not file.is_file():
            raise GgufError(f"{file}: part {n} of {count} is missing")
    return files


def parse_head(file: BinaryIO, *, file_bytes: int, name: str, keep: Collection[str] = PER_LAYER) -> GgufHead:
    """The head of an open file.

    Args:
        file: binary and seekable; as many bytes of it as the head needs have to be there.
        file_bytes: what the whole file has.
        name: how errors call it.
        keep: as :func:`read_head`.

    Raises:
        GgufError: as :func:`read_head`.
        OSError: reading failed.
    """
    source = _Source(file, file_bytes, name)
    if file_bytes < 4 or source.take(4) != b"GGUF":
        raise GgufError(f"{name}: this is no GGUF file")
    version = source.u32("its version")
    if version in (2 << 24, 3 << 24):
        raise GgufError(f"{name}: a big-endian GGUF file; only little-endian ones are supported")
    if version not in (2, 3):
        raise GgufError(f"{name}: GGUF version {version} is not supported, only 2 and 3")
    tensor_count, entries = source.u64("its counts"), source.u64("its counts")
    if entries > MAX_ENTRIES:
        raise GgufError(f"{name}: {entries} metadata entries are too many, at most {MAX_ENTRIES} are read")
    if tensor_count > MAX_TENSORS:
        raise GgufError(f"{name}: {tensor_count} tensors are too many, at most {MAX_TENSORS} are read")
    values = _Metadata(source, tuple(keep))
    for _ in range(entries):
        values.read_entry()
    alignment = values.scalars.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise GgufError(f"{name}: general.alignment is {alignment!r}, it has to be a power of two")
    infos = [_tensor_info(source) for _ in range(tensor_count)]
    data_offset = -(-source.position // alignment) * alignment
    return GgufHead(
        version=version,
        metadata=values.scalars,
        arrays=values.arrays,
        lengths=values.lengths,
        tensors=_located(infos, data_offset, alignment, source),
        tokenizer_digest=f"sha256:{values.tokenizer.hexdigest()}",
        data_offset=data_offset,
        file_bytes=file_bytes,
    )


class _Source:
    """Reads forward through a file, with the bounds that hold for everything in it."""

    def __init__(self, file: BinaryIO, file_bytes: int, name: str) -> None:
        self._file = file
        self._buffer = b""
        self._base = 0
        self._at = 0
        self._kept = 0
        self.file_bytes = file_bytes
        self.name = name

    @property
    def position(self) -> int:
        """Of the next byte in the file."""
        return self._base + self._at

    def take(self, count: int) -> bytes:
        """The next bytes. The caller has bounded ``count``."""
        if self._at + count > len(self._buffer):
            self._fill(count)
        start = self._at
        self._at = start + count
        return self._buffer[start : self._at]

    def skip(self, count: int) -> None:
        """Pass over bytes without reading them."""
        self._check(count)
        self._at += count

    def u32(self, what: str) -> int:
        """A whole number of four bytes."""
        return int(self._unpack(_U32, what))

    def u64(self, what: str) -> int:
        """A whole number of eight bytes."""
        return int(self._unpack(_U64, what))

    def scalar(self, pattern: struct.Struct) -> Scalar:
        """A value of this format."""
        value: Scalar = pattern.unpack(self.take(pattern.size))[0]
        return value

    def text(self, limit: int, what: str) -> str:
        """A string of at most ``limit`` bytes; bytes that are no UTF-8 are replaced."""
        length = self.u64(what)
        if length > limit:
            raise GgufError(f"{self.name}: {what} of {length} bytes is too long, at most {limit} are read")
        self._check(length)
        self.keep(4 * length)
        return self.take(length).decode("utf-8", "replace")

    def skip_strings(self, count: int) -> None:
        """Pass over an array of strings."""
        self._check(8 * count)
        unpack = _U64.unpack_from
        while count:
            if self._at + 8 > len(self._buffer):
                self._fill(8)
            buffer, at, last = self._buffer, self._at, len(self._buffer) - 8
            while count and at <= last:
                at += 8 + unpack(buffer, at)[0]
                count -= 1
            self._at = at
            self._check(0)

    def digest(self, digest: hashlib._Hash, start: int) -> None:
        """Add all bytes from ``start`` up to here."""
        stop = self.position
        while start < stop:
            self._file.seek(start)
            piece = self._file.read(min(_PIECE_BYTES, stop - start))
            if not piece:
                raise GgufError(f"{self.name}: the file ends within its head, at byte {start}")
            digest.update(piece)
            start += len(piece)

    def keep(self, size: int) -> None:
        """Count what is kept in memory."""
        self._kept += size
        if self._kept > MAX_KEPT_BYTES:
            raise GgufError(f"{self.name}: the head says more than a reader should keep ({MAX_KEPT_BYTES} bytes)")

    def _unpack(self, pattern: struct.Struct, what: str) -> int:
        if self.position + pattern.size > self.file_bytes:
            raise GgufError(f"{self.name}: the file ends within its head, at {what}")
        return int(pattern.unpack(self.take(pattern.size))[0])

    def _check(self, count: int) -> None:
        """Refuse what reaches beyond the file, or beyond what a head may have."""
        stop = self.position + count
        if stop > self.file_bytes:
            raise GgufError(
                f"{self.name}: the file ends within its head: it has {self.file_bytes} bytes and says {stop}"
            )
        if stop > MAX_HEAD_BYTES:
            raise GgufError(f"{self.name}: the head is larger than {MAX_HEAD_BYTES} bytes")

    def _fill(self, count: int) -> None:
        self._check(count)
        self._base = self.position
        self._at = 0
        self._file.seek(self._base)
        wanted = min(max(count, _PIECE_BYTES), self.file_bytes - self._base)
        pieces = bytearray()
        while len(pieces) < wanted:
            piece = self._file.read(wanted - len(pieces))
            if not piece:
                break
            pieces += piece
        self._buffer = bytes(pieces)
        if len(pieces) < count:
            raise GgufError(f"{self.name}: the file ends within its head, at byte {self._base + len(pieces)}")


class _Metadata:
    """Collects the entries."""

    def __init__(self, source: _Source, keep: tuple[str, ...]) -> None:
        self._source = source
        self._keep = keep
        self.scalars: dict[str, Scalar] = {}
        self.arrays: dict[str, tuple[Scalar, ...]] = {}
        self.lengths: dict[str, int] = {}
        self.tokenizer = hashlib.sha256()

    def read_entry(self) -> None:
        """Read one key and its value."""
        source = self._source
        source.keep(_ENTRY_BYTES)
        key = source.text(MAX_KEY_BYTES, "a key")
        if key in self.scalars or key in self.lengths:
            raise GgufError(f"{source.name}: the key {key[:100]!r} is there twice")
        kind = source.u32(f"the type of {key[:100]!r}")
        start = source.position
        if kind in _SCALARS:
            self.scalars[key] = source.scalar(_SCALARS[kind])
        elif kind == _STRING:
            self._read_text(key)
        elif kind == _ARRAY:
            self._read_array(key)
        else:
            raise GgufError(f"{source.name}: {key[:100]!r} has the type {kind}, which is not known")
        if key.startswith("tokenizer.") and key != "tokenizer.chat_template":
            self.tokenizer.update(key.encode() + b"\0" + struct.pack("<IQ", kind, source.position - start))
            source.digest(self.tokenizer, start)

    def _read_text(self, key: str) -> None:
        source = self._source
        length = source.u64(f"the length of {key[:100]!r}")
        if length > _MAX_TEXT_BYTES:
            self.lengths[key] = length
            source.skip(length)
            return
        source.keep(4 * length)
        self.scalars[key] = source.take(length).decode("utf-8", "replace")

    def _read_array(self, key: str) -> None:
        source = self._source
        inner, count = source.u32(f"the array {key[:100]!r}"), source.u64(f"the array {key[:100]!r}")
        self.lengths[key] = count
        if inner not in _SCALARS and inner != _STRING:
            kind = "arrays" if inner == _ARRAY else f"the type {inner}"
            raise GgufError(f"{source.name}: {key[:100]!r} is an array of {kind}, which is not supported")
        if not key.endswith(self._keep):
            if inner == _STRING:
                source.skip_strings(count)
            else:
                source.skip(count * _SCALARS[inner].size)
            return
        source.keep(count * _ELEMENT_BYTES)
        if inner == _STRING:
            self.arrays[key] = tuple(source.text(_MAX_TEXT_BYTES, f"a string of {key[:100]!r}") for _ in range(count))
        else:
            pattern = _SCALARS[inner]
            self.arrays[key] = tuple(source.scalar(pattern) for _ in range(count))


def _tensor_info(source: _Source) -> TensorInfo:
    """One tensor as the file describes it: its offset counts from the start of the weights, its size is not yet told."""
    source.keep(_TENSOR_BYTES)
    name = source.text(MAX_NAME_BYTES, "the name of a tensor")
    n_dims = source.u32(f"the tensor {name!r}")
    if n_dims > MAX_DIMS:
        raise GgufError(f"{source.name}: the tensor {name!r} has {n_dims} dimensions, at most {MAX_DIMS} are read")
    dims = tuple(source.u64(f"the tensor {name!r}") for _ in range(n_dims))
    return TensorInfo(name, dims, source.u32(f"the tensor {name!r}"), source.u64(f"the tensor {name!r}"), -1)


def _located(infos: list[TensorInfo], data_offset: int, alignment: int, source: _Source) -> tuple[TensorInfo, ...]:
    """The tensors with their sizes, and their places in the file.

    Raises:
        GgufError: one overlaps another, lies beyond the file's end, or cannot have these dimensions.
    """
    where = source.name
    if len({info.name for info in infos}) != len(infos):
        raise GgufError(f"{where}: two tensors have the same name")
    located: dict[str, TensorInfo] = {}
    end = source.file_bytes
    following = max(end, data_offset)
    for info in sorted(infos, key=lambda one: (one.offset, one.elements > 0), reverse=True):
        start = data_offset + info.offset
        if info.offset % alignment:
            raise GgufError(f"{where}: the tensor {info.name!r} is not aligned to {alignment} bytes")
        if start > end:
            raise GgufError(
                f"{where}: the file is cut off: the tensor {info.name!r} begins at byte {start}, the file has {end}"
            )
        size = following - start
        if info.type in TENSOR_TYPES:
            name, block, block_bytes = TENSOR_TYPES[info.type]
            if info.dims and info.dims[0] % block:
                raise GgufError(f"{where}: rows of the tensor {info.name!r} do not divide into blocks of {name}")
            size = info.elements // block * block_bytes
        if start + size > end:
            raise GgufError(
                f"{where}: the file is cut off: the tensor {info.name!r} ends at byte {start + size},"
                f" the file has {end}. Fetch it again."
            )
        if start + size > following:
            raise GgufError(f"{where}: the tensor {info.name!r} overlaps the one behind it")
        located[info.name] = TensorInfo(info.name, info.dims, info.type, start, size)
        following = start
    return tuple(located[info.name] for info in infos)
