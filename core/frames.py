"""Frames: how one group commit is laid out in bytes and chained.

A frame has *facts* (small, JSON, live for ever) and *texts* (everything a user wrote or an engine said, a
chunk per task). The frame's hash covers its header, the facts and the root of one salted leaf per chunk, over
the stored bytes. A chunk can be replaced by its leaf, and a frame whose chunks are all gone by the root: what
remains still verifies (JRN-2, JRN-7).

Texts, little endian: ``kind`` (u8), ``n`` (u32), a code (u8) for each of seven columns, the columns, the chunks.
Columns: distance from the frame's end to the task's number, first ordinal, entries, tokens, attempt, flags, length.
A code is the width of a column's numbers in bytes (1, 2, 4), plus 16 when one number stands for all ``n``; so what is
alike in all chunks costs next to nothing. A chunk is 8 bytes of salt and the body, or a leaf of 32 bytes. A task's
number is the seq of its admission.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence

import msgspec

from .errors import CorruptJournalError

SALT_BYTES = 8
LEAF_BYTES = 32
ZERO = bytes(32)

FLAG_TRANSCRIPT = 1
FLAG_DROPPED = 128

_TEXTS_CHUNKS = 1
_TEXTS_ROOT = 2

_COLUMNS = 7
#: bytes that a number of each column has at most
_WIDEST = (4, 4, 2, 2, 1, 1, 4)
#: added to a column's code: one number stands for all
_ALIKE = 16
_LETTERS = {1: "B", 2: "H", 4: "I"}

_sha256 = hashlib.sha256
_LEAF_HEAD = struct.Struct("<QIHHBB")
_FRAME_HEAD = struct.Struct("<QQQI")


class Fact(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event of the facts as it is stored: its envelope and its canonical payload."""

    #: seq minus the frame's first seq
    offset: int
    stream: str
    position: int
    name: str
    version: int
    time_ns: int
    actor: str
    correlation: str
    data: msgspec.Raw


class Chunk(msgspec.Struct, gc=False):
    """One task's texts in one frame. ``body`` is ``None`` when only the leaf is left."""

    task_no: int
    first_ordinal: int
    entries: int
    tokens: int
    attempt: int
    flags: int
    salt: bytes
    body: bytes | None
    leaf: bytes

    @property
    def is_transcript(self) -> bool:
        """Whether the body is a transcript rather than entries."""
        return bool(self.flags & FLAG_TRANSCRIPT)


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One row of the journal, as stored."""

    frame_no: int
    epoch: int
    first_seq: int
    #: events in the frame: facts, and one for each chunk of entries
    count: int
    prev_hash: bytes
    hash: bytes
    facts: bytes
    texts: bytes

    @property
    def end_seq(self) -> int:
        """Seq after the frame's last event."""
        return self.first_seq + self.count


_encode_facts = msgspec.json.Encoder(order="sorted").encode
_facts_decoder = msgspec.json.Decoder(list[Fact])


def encode_facts(facts: Sequence[Fact]) -> bytes:
    """Facts of a frame as stored; no bytes when there is none."""
    return _encode_facts(facts) if facts else b""


def decode_facts(raw: bytes) -> list[Fact]:
    """The facts behind the stored bytes. :raises CorruptJournalError: they are not facts."""
    if not raw:
        return []
    try:
        return _facts_decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError) as error:
        msg = f"a frame's facts cannot be decoded: {error}"
        raise CorruptJournalError(msg) from error


def make_chunk(
    *, task_no: int, first_ordinal: int, entries: int, tokens: int, attempt: int, flags: int, salt: bytes, body: bytes
) -> Chunk:
    """A chunk with its leaf, which binds the body, the salt and the directory's fields."""
    leaf = _sha256(salt + _LEAF_HEAD.pack(task_no, first_ordinal, entries, tokens, attempt, flags) + body).digest()
    return Chunk(task_no, first_ordinal, entries, tokens, attempt, flags, salt, body, leaf)


def leaf_of(chunk: Chunk) -> bytes:
    """The leaf computed from what is stored (for a dropped chunk, the stored leaf)."""
    if chunk.body is None:
        return chunk.leaf
    flags = chunk.flags & ~FLAG_DROPPED
    head = _LEAF_HEAD.pack(chunk.task_no, chunk.first_ordinal, chunk.entries, chunk.tokens, chunk.attempt, flags)
    return _sha256(chunk.salt + head + chunk.body).digest()


def salts(n: int, urandom: Callable[[int], bytes] = os.urandom) -> list[bytes]:
    """``n`` fresh salts."""
    pool = urandom(SALT_BYTES * n)
    return [pool[i : i + SALT_BYTES] for i in range(0, SALT_BYTES * n, SALT_BYTES)]


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Root of a frame's leaves; zeros when there is none."""
    return _sha256(b"".join(leaves)).digest() if leaves else ZERO


def _width(top: int) -> int:
    """Bytes that a column's numbers take."""
    return 1 if top < 256 else 2 if top < 65_536 else 4


def encode_texts(chunks: Sequence[Chunk], end_seq: int) -> bytes:
    """Texts of a frame as stored; no bytes when there is no chunk, the root alone when all are dropped."""
    n = len(chunks)
    if not n:
        return b""
    if all(c.body is None for c in chunks):
        return bytes((_TEXTS_ROOT,)) + root_of([c.leaf for c in chunks])
    columns = (
        [end_seq - c.task_no for c in chunks],
        [c.first_ordinal for c in chunks],
        [c.entries for c in chunks],
        [c.tokens for c in chunks],
        [c.attempt for c in chunks],
        [c.flags if c.body is not None else c.flags | FLAG_DROPPED for c in chunks],
        [len(c.body) if c.body is not None else 0 for c in chunks],
    )
    codes, form, numbers = [], [f"<BI{_COLUMNS}B"], []
    for column in columns:
        first = column[0]
        alike = column[-1] == first and column.count(first) == n
        top = first if alike else max(column)
        width = _width(top)
        if alike:
            codes.append(width + _ALIKE)
            form.append(_LETTERS[width])
            numbers.append(first)
        else:
            codes.append(width)
            form.append(f"{n}{_LETTERS[width]}")
            numbers += column
    parts = [struct.pack("".join(form), _TEXTS_CHUNKS, n, *codes, *numbers)]
    for c in chunks:
        if c.body is None:
            parts.append(c.leaf)
        else:
            parts.append(c.salt)
            parts.append(c.body)
    return b"".join(parts)


def decode_texts(raw: bytes, end_seq: int) -> list[Chunk]:
    """The chunks of a frame, with the leaves of those whose body is there left empty (see :func:`leaf_of`).

    A frame of which only the root is left has no chunks. :raises CorruptJournalError: the layout is broken.
    """
    if not raw or raw[0] == _TEXTS_ROOT:
        return []
    try:
        if raw[0] != _TEXTS_CHUNKS:
            msg = f"texts of unknown kind {raw[0]}"
            raise CorruptJournalError(msg)
        n, *codes = struct.unpack_from(f"<I{_COLUMNS}B", raw, 1)
        at = 5 + _COLUMNS
        if not 0 < n * SALT_BYTES <= len(raw):
            msg = f"texts of {len(raw)} bytes cannot have {n} chunks"
            raise CorruptJournalError(msg)
        columns = []
        for code, widest in zip(codes, _WIDEST, strict=True):
            width, alike = code & ~_ALIKE, code & _ALIKE
            if width not in _LETTERS or width > widest:
                msg = f"texts have a column of unknown code {code}"
                raise CorruptJournalError(msg)
            numbers = struct.unpack_from(f"<{1 if alike else n}{_LETTERS[width]}", raw, at)
            if width != _width(max(numbers)) or (not alike and numbers.count(numbers[0]) == n):
                msg = "texts have a column that is not packed the one way it can be"
                raise CorruptJournalError(msg)
            at += width * len(numbers)
            columns.append(numbers * n if alike else numbers)
        chunks = []
        for distance, first_ordinal, entries, tokens, attempt, flags, length in zip(*columns, strict=True):
            head = (end_seq - distance, first_ordinal, entries, tokens, attempt)
            if distance > end_seq:
                msg = f"a chunk belongs to task number {head[0]}"
                raise CorruptJournalError(msg)
            if flags & FLAG_DROPPED:
                leaf = raw[at : at + LEAF_BYTES]
                at += LEAF_BYTES
                chunks.append(Chunk(*head, flags & ~FLAG_DROPPED, b"", None, leaf))
            else:
                salt = raw[at : at + SALT_BYTES]
                at += SALT_BYTES
                chunks.append(Chunk(*head, flags, salt, raw[at : at + length], b""))
                at += length
        if at != len(raw):
            msg = f"texts end at byte {at}, but have {len(raw)}"
            raise CorruptJournalError(msg)
    except struct.error as error:
        msg = f"texts are cut or broken: {error}"
        raise CorruptJournalError(msg) from error
    return chunks


def stored_root(raw: bytes, end_seq: int) -> bytes:
    """Root of the leaves, computed from a frame's stored texts."""
    if not raw:
        return ZERO
    if raw[0] == _TEXTS_ROOT:
        if len(raw) != 1 + LEAF_BYTES:
            msg = "a frame's root has the wrong length"
            raise CorruptJournalError(msg)
        return raw[1:]
    return root_of([leaf_of(c) for c in decode_texts(raw, end_seq)])


def frame_hash(
    frame_no: int, epoch: int, first_seq: int, count: int, prev_hash: bytes, facts: bytes, root: bytes
) -> bytes:
    """Hash of a frame: its header, its facts and the root of its texts."""
    return _sha256(
        b"llorch1:" + _FRAME_HEAD.pack(frame_no, epoch, first_seq, count) + prev_hash + _sha256(facts).digest() + root
    ).digest()


def seal(
    *,
    frame_no: int,
    epoch: int,
    first_seq: int,
    count: int,
    prev_hash: bytes,
    facts: Sequence[Fact],
    chunks: Sequence[Chunk],
) -> Frame:
    """A frame ready to be stored."""
    raw = encode_facts(facts)
    digest = frame_hash(frame_no, epoch, first_seq, count, prev_hash, raw, root_of([c.leaf for c in chunks]))
    texts = encode_texts(chunks, first_seq + count)
    return Frame(frame_no, epoch, first_seq, count, prev_hash, digest, raw, texts)


def verify_frame(frame: Frame, prev_hash: bytes) -> str:
    """Why a frame does not verify, or "" when it does."""
    if frame.prev_hash != prev_hash:
        return "the previous frame's hash does not match: a frame was removed, swapped, doubled or edited before it"
    try:
        root = stored_root(frame.texts, frame.end_seq)
    except CorruptJournalError as error:
        return error.message
    expected = frame_hash(frame.frame_no, frame.epoch, frame.first_seq, frame.count, frame.prev_hash, frame.facts, root)
    return "" if expected == frame.hash else "the frame's bytes do not match its hash: it was edited"


def drop_chunks(frame: Frame, droppable: Callable[[Chunk], bool]) -> bytes | None:
    """The frame's texts with every droppable chunk replaced by its leaf; ``None`` when nothing changes."""
    chunks = decode_texts(frame.texts, frame.end_seq)
    changed = False
    for chunk in chunks:
        if chunk.body is not None and droppable(chunk):
            chunk.leaf = leaf_of(chunk)
            chunk.body = None
            changed = True
        elif chunk.body is not None:
            chunk.leaf = leaf_of(chunk)
    return encode_texts(chunks, frame.end_seq) if changed else None
