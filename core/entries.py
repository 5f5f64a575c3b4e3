"""What an engine says, in columns: the unit that goes from an engine through the journal to every reader.

A batch holds the entries that arrived together. In the common case each entry is one token with one id, and
then only ``texts`` and ``ids`` are filled; the other columns stay ``None``. The packed form is msgpack of
the columns with trailing ``None`` left out, a scalar triple for a single plain entry, so that a token costs
about 12 bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import msgspec

from .errors import CorruptJournalError
from .types import Entry


class EntryBatch(msgspec.Struct, gc=False, array_like=True, omit_defaults=True):
    """Entries in columns. Lengths: every column that is not ``None`` has one element per entry, except
    ``ids``, which is flat: ``id_counts`` elements for each entry (one each when ``id_counts`` is ``None``)."""

    #: microseconds since the task's previous entry (the first: since admission); set when appended
    dts_us: list[int]
    texts: list[str]
    ids: list[int] = []
    #: tokens each entry stands for; ``None`` = one each
    tokens: list[int] | None = None
    #: ids each entry has; ``None`` = one each, or none at all when ``ids`` is empty
    id_counts: list[int] | None = None
    #: 1 where the ids of an entry are not all of its tokens; ``None`` = all complete
    incomplete: list[int] | None = None
    choices: list[int] | None = None
    channels: list[str] | None = None
    logprobs: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def token_count(self) -> int:
        """Tokens in the batch."""
        return len(self.texts) if self.tokens is None else sum(self.tokens)

    def entries(self) -> Iterator[Entry]:
        """The batch as single entries, in order."""
        at = 0
        for n, text in enumerate(self.texts):
            count = self.id_counts[n] if self.id_counts is not None else (1 if self.ids else 0)
            yield Entry(
                text=text,
                tokens=1 if self.tokens is None else self.tokens[n],
                ids=tuple(self.ids[at : at + count]),
                ids_complete=self.incomplete is None or not self.incomplete[n],
                choice=0 if self.choices is None else self.choices[n],
                channel="" if self.channels is None else self.channels[n],
                logprob="" if self.logprobs is None else self.logprobs[n],
            )
            at += count

    def slice(self, start: int, stop: int | None = None) -> EntryBatch:
        """Entries ``start`` to ``stop`` (exclusive) as a batch of their own."""
        stop = len(self.texts) if stop is None else stop
        if start == 0 and stop >= len(self.texts):
            return self
        if self.id_counts is not None:
            first, last = sum(self.id_counts[:start]), sum(self.id_counts[:stop])
        else:
            first, last = (start, stop) if self.ids else (0, 0)

        def cut(column: list[int] | None) -> list[int] | None:
            return None if column is None else column[start:stop]

        def cut_text(column: list[str] | None) -> list[str] | None:
            return None if column is None else column[start:stop]

        return EntryBatch(
            dts_us=self.dts_us[start:stop],
            texts=self.texts[start:stop],
            ids=self.ids[first:last],
            tokens=cut(self.tokens),
            id_counts=cut(self.id_counts),
            incomplete=cut(self.incomplete),
            choices=cut(self.choices),
            channels=cut_text(self.channels),
            logprobs=cut_text(self.logprobs),
        )


def batch_of(entries: Sequence[Entry]) -> EntryBatch:
    """Columns for entries; columns that hold only defaults are left out."""
    plain_ids = all(len(e.ids) == 1 for e in entries) or not any(e.ids for e in entries)
    return EntryBatch(
        dts_us=[0] * len(entries),
        texts=[e.text for e in entries],
        ids=[i for e in entries for i in e.ids],
        tokens=None if all(e.tokens == 1 for e in entries) else [e.tokens for e in entries],
        id_counts=None if plain_ids else [len(e.ids) for e in entries],
        incomplete=None if all(e.ids_complete for e in entries) else [int(not e.ids_complete) for e in entries],
        choices=None if not any(e.choice for e in entries) else [e.choice for e in entries],
        channels=None if not any(e.channel for e in entries) else [e.channel for e in entries],
        logprobs=None if not any(e.logprob for e in entries) else [e.logprob for e in entries],
    )


def join(batches: Sequence[EntryBatch]) -> EntryBatch:
    """One batch with the entries of all, in order."""
    if len(batches) == 1:
        return batches[0]
    out = EntryBatch(dts_us=[], texts=[], ids=[])
    for batch in batches:
        out.dts_us += batch.dts_us
        out.texts += batch.texts
        out.ids += batch.ids
    if any(b.tokens is not None for b in batches):
        out.tokens = [t for b in batches for t in (b.tokens if b.tokens is not None else [1] * len(b))]
    uneven = any(b.id_counts is not None for b in batches) or len({bool(b.ids) for b in batches if len(b)}) > 1
    if uneven:
        out.id_counts = [
            c for b in batches for c in (b.id_counts if b.id_counts is not None else [1 if b.ids else 0] * len(b))
        ]
    if any(b.incomplete is not None for b in batches):
        out.incomplete = [i for b in batches for i in (b.incomplete if b.incomplete is not None else [0] * len(b))]
    if any(b.choices is not None for b in batches):
        out.choices = [c for b in batches for c in (b.choices if b.choices is not None else [0] * len(b))]
    if any(b.channels is not None for b in batches):
        out.channels = [c for b in batches for c in (b.channels if b.channels is not None else [""] * len(b))]
    if any(b.logprobs is not None for b in batches):
        out.logprobs = [p for b in batches for p in (b.logprobs if b.logprobs is not None else [""] * len(b))]
    return out


def well_formed(batch: EntryBatch) -> EntryBatch:
    """The batch with lone surrogates, which no UTF-8 can hold, replaced by "?" (JRN-9)."""

    def mended(column: list[str]) -> list[str]:
        return [text.encode(errors="replace").decode() for text in column]

    return EntryBatch(
        dts_us=batch.dts_us,
        texts=mended(batch.texts),
        ids=batch.ids,
        tokens=batch.tokens,
        id_counts=batch.id_counts,
        incomplete=batch.incomplete,
        choices=batch.choices,
        channels=None if batch.channels is None else mended(batch.channels),
        logprobs=None if batch.logprobs is None else mended(batch.logprobs),
    )


_pack = msgspec.msgpack.Encoder().encode
_unpack_any = msgspec.msgpack.Decoder().decode


def pack(batch: EntryBatch) -> bytes:
    """Packed form of a batch."""
    if len(batch.texts) == 1 and len(batch.ids) == 1 and batch.tokens is None and batch.incomplete is None:
        if batch.choices is None and batch.channels is None and batch.logprobs is None:
            return _pack((batch.dts_us[0], batch.texts[0], batch.ids[0]))
    return _pack(batch)


def unpack(raw: bytes) -> EntryBatch:
    """The batch behind its packed form. :raises CorruptJournalError: the bytes are no batch."""
    try:
        data = _unpack_any(raw)
        if isinstance(data[0], int):
            return EntryBatch(dts_us=[data[0]], texts=[data[1]], ids=[data[2]])
        return msgspec.convert(data, EntryBatch)
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError, KeyError) as error:
        msg = f"an entries chunk cannot be decoded: {error}"
        raise CorruptJournalError(msg) from error


class Transcript(msgspec.Struct, array_like=True, weakref=True):
    """All entries of an ended task, and in which epoch each part was written."""

    #: ``(epoch, first ordinal)`` for each stretch, ascending
    epochs: list[tuple[int, int]]
    batch: EntryBatch


def pack_transcript(transcript: Transcript) -> bytes:
    """Compressed packed form of a transcript."""
    return zlib.compress(_pack(transcript), 1)


def unpack_transcript(raw: bytes) -> Transcript:
    """The transcript behind its bytes. :raises CorruptJournalError: the bytes are no transcript."""
    try:
        return msgspec.msgpack.decode(zlib.decompress(raw), type=Transcript)
    except (msgspec.MsgspecError, ValueError, zlib.error) as error:
        msg = f"a transcript cannot be decoded: {error}"
        raise CorruptJournalError(msg) from error
