"""Entries in columns: packing, joining and cutting keep every entry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.entries import (
    EntryBatch,
    Transcript,
    batch_of,
    join,
    pack,
    pack_transcript,
    unpack,
    unpack_transcript,
)
from llama_orch.core.errors import CorruptJournalError
from llama_orch.core.types import Entry

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN = st.builds(Entry, text=TEXT, ids=st.tuples(st.integers(0, 2**31 - 1)))
ANY = st.builds(
    Entry,
    text=TEXT,
    tokens=st.integers(0, 5),
    ids=st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    ids_complete=st.booleans(),
    choice=st.integers(0, 3),
    channel=st.sampled_from(["", "reasoning", "tool:0", "tool:1"]),
    logprob=st.sampled_from(["", "-0.25", "-1e-05"]),
)
ENTRIES = st.one_of(st.lists(PLAIN, min_size=1, max_size=12), st.lists(ANY, min_size=1, max_size=12))


def timed(entries: list[Entry], dts_us: list[int]) -> EntryBatch:
    """A batch with these times."""
    batch = batch_of(entries)
    batch.dts_us = (dts_us * len(entries))[: len(entries)]
    return batch


@given(ENTRIES, st.lists(st.integers(0, 10**9), min_size=1, max_size=3))
def test_packed_entries_come_back(entries: list[Entry], dts_us: list[int]) -> None:
    batch = timed(entries, dts_us)
    again = unpack(pack(batch))
    assert list(again.entries()) == entries == list(batch.entries())
    assert again.dts_us == batch.dts_us
    assert again.token_count == sum(e.tokens for e in entries)


@given(st.lists(ENTRIES, min_size=1, max_size=5))
def test_joined_batches_hold_all_entries_in_order(parts: list[list[Entry]]) -> None:
    joined = join([batch_of(p) for p in parts])
    assert list(joined.entries()) == [e for p in parts for e in p]
    assert list(unpack(pack(joined)).entries()) == [e for p in parts for e in p]


@given(ENTRIES, st.integers(0, 12), st.integers(0, 12))
def test_a_slice_is_what_a_list_would_give(entries: list[Entry], start: int, length: int) -> None:
    start = min(start, len(entries))
    cut = batch_of(entries).slice(start, min(start + length, len(entries)))
    assert list(cut.entries()) == entries[start : start + length]


@given(ENTRIES, st.lists(st.tuples(st.integers(1, 9), st.integers(1, 99)), max_size=3))
def test_a_transcript_comes_back(entries: list[Entry], epochs: list[tuple[int, int]]) -> None:
    again = unpack_transcript(pack_transcript(Transcript(epochs=epochs, batch=batch_of(entries))))
    assert again.epochs == epochs
    assert list(again.batch.entries()) == entries


@given(st.binary(max_size=60))
def test_bytes_that_are_no_entries_are_called_corrupt(raw: bytes) -> None:
    for read in (unpack, unpack_transcript):
        try:
            read(raw)
        except CorruptJournalError:
            continue


@given(ENTRIES, st.data())
def test_a_cut_chunk_is_corrupt_or_other_entries_but_never_a_crash(entries: list[Entry], data: st.DataObject) -> None:
    raw = pack(batch_of(entries))
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    with pytest.raises(CorruptJournalError):
        unpack(cut)


def test_a_plain_token_costs_few_bytes() -> None:
    one = batch_of([Entry(text=" the", ids=(1234,))])
    one.dts_us = [20_000]
    assert len(pack(one)) <= 14
    many = batch_of([Entry(text=" the", ids=(1234,))] * 64)
    assert len(pack(many)) <= 64 * 10
