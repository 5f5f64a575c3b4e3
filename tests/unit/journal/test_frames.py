"""Frames: what is sealed comes back, what is dropped still verifies, what is edited does not."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llama_orch.core.errors import CorruptJournalError
from llama_orch.core.frames import (
    FLAG_TRANSCRIPT,
    Chunk,
    Fact,
    Frame,
    decode_facts,
    decode_texts,
    drop_chunks,
    encode_texts,
    leaf_of,
    make_chunk,
    seal,
    stored_root,
    verify_frame,
)
from llama_orch.plugins.testing.covers import covers

_u16 = st.integers(0, 2**16 - 1)
_facts = st.builds(
    Fact,
    offset=st.integers(0, 1000),
    stream=st.text(max_size=20),
    position=st.integers(0, 2**40),
    name=st.sampled_from(["task.admitted", "task.ended"]),
    version=st.integers(1, 3),
    time_ns=st.integers(0, 2**62),
    actor=st.text(max_size=10),
    correlation=st.text(max_size=10),
    data=st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=5), max_size=3).map(
        lambda value: msgspec.Raw(msgspec.json.encode(value))
    ),
)
_chunks = st.builds(
    make_chunk,
    task_no=st.integers(0, 10_000),
    first_ordinal=st.integers(0, 2**32 - 1),
    entries=_u16,
    tokens=_u16,
    attempt=st.integers(0, 255),
    flags=st.sampled_from([0, FLAG_TRANSCRIPT]),
    salt=st.binary(min_size=8, max_size=8),
    body=st.binary(max_size=60),
)


@st.composite
def _frames(draw: st.DrawFn) -> Frame:
    return seal(
        frame_no=draw(st.integers(1, 2**40)),
        epoch=draw(st.integers(1, 2**20)),
        first_seq=draw(st.integers(10_001, 2**31)),
        count=draw(st.integers(1, 2**16)),
        prev_hash=draw(st.binary(min_size=32, max_size=32)),
        facts=draw(st.lists(_facts, max_size=3)),
        chunks=draw(st.lists(_chunks, max_size=4)),
    )


def _with(row: Frame, **fields: Any) -> Frame:
    return Frame(**{name: fields.get(name, getattr(row, name)) for name in Frame.__struct_fields__})


@covers("JRN-2")
@given(st.lists(_facts, max_size=5), st.lists(_chunks, max_size=5))
def test_facts_and_chunks_come_back(facts: list[Fact], chunks: list[Chunk]) -> None:
    frame = seal(frame_no=1, epoch=1, first_seq=20_000, count=9, prev_hash=bytes(32), facts=facts, chunks=chunks)
    assert decode_facts(frame.facts) == facts
    found = decode_texts(frame.texts, frame.end_seq)
    assert [(c.task_no, c.first_ordinal, c.entries, c.tokens, c.attempt, c.flags, c.salt, c.body) for c in found] == [
        (c.task_no, c.first_ordinal, c.entries, c.tokens, c.attempt, c.flags, c.salt, c.body) for c in chunks
    ]
    assert [leaf_of(c) for c in found] == [c.leaf for c in chunks]
    assert verify_frame(frame, bytes(32)) == ""


@covers("JRN-2", "JRN-7")
@given(_frames(), st.data())
def test_dropping_any_chunks_in_any_steps_keeps_the_hash(frame: Frame, data: st.DataObject) -> None:
    now = frame
    for _ in range(2):
        doomed = data.draw(st.sets(st.integers(0, 3)))
        order = iter(range(10))
        texts = drop_chunks(now, lambda chunk, order=order, doomed=doomed: next(order) in doomed)  # type: ignore[misc]
        now = now if texts is None else _with(now, texts=texts)
        assert verify_frame(now, frame.prev_hash) == ""
    gone = drop_chunks(now, lambda chunk: True)
    now = now if gone is None else _with(now, texts=gone)
    assert verify_frame(now, frame.prev_hash) == ""
    assert len(now.texts) in (0, 33)
    assert drop_chunks(now, lambda chunk: True) is None


@covers("JRN-2")
@given(_frames(), st.data())
def test_any_edited_byte_is_seen(frame: Frame, data: st.DataObject) -> None:
    column = data.draw(st.sampled_from(["facts", "texts", "hash", "prev_hash"]))
    raw = bytearray(getattr(frame, column))
    assume(raw)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert verify_frame(_with(frame, **{column: bytes(raw)}), frame.prev_hash) != ""


@covers("JRN-2")
@given(_frames(), st.sampled_from(["frame_no", "epoch", "first_seq", "count"]), st.integers(1, 1000))
def test_any_edited_number_is_seen(frame: Frame, column: str, by: int) -> None:
    assert verify_frame(_with(frame, **{column: getattr(frame, column) + by}), frame.prev_hash) != ""


@given(_frames())
def test_a_frame_behind_another_one_is_seen(frame: Frame) -> None:
    assert "previous" in verify_frame(frame, os.urandom(32))


@covers("JRN-2")
@given(st.binary(min_size=1, max_size=200))
def test_noise_is_called_corrupt(raw: bytes) -> None:
    for decode in (lambda: decode_texts(raw, 1000), lambda: stored_root(raw, 1000), lambda: decode_facts(raw)):
        try:
            decode()
        except CorruptJournalError:
            continue


@covers("JRN-2")
def test_the_same_text_has_another_leaf_under_another_salt() -> None:
    leaves = {
        make_chunk(
            task_no=1, first_ordinal=1, entries=1, tokens=1, attempt=1, flags=0, salt=bytes([n] * 8), body=b"yes"
        ).leaf
        for n in range(5)
    }
    assert len(leaves) == 5


def test_a_root_of_the_wrong_length_is_called_corrupt() -> None:
    with pytest.raises(CorruptJournalError):
        stored_root(b"\x02short", 1)


def test_no_chunks_take_no_bytes() -> None:
    assert encode_texts([], 1) == b""
