"""Verification finds every tampering and says where, and claims nothing that it cannot know."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.entries import EntryBatch, Transcript, pack_transcript
from llama_orch.core.events.task import TaskAdmitted, TaskEnded, TaskTranscribed
from llama_orch.core.frames import FLAG_TRANSCRIPT, Fact, Frame, encode_texts, make_chunk, seal
from llama_orch.core.journal.chain import Finding
from llama_orch.core.journal.verify import Report, verify
from llama_orch.core.ports import CommitUnit, JournalStore, Tail
from llama_orch.core.registry import encode_payload, load_all, type_of
from llama_orch.plugins.storage.sqlite import SqliteStore
from llama_orch.plugins.testing.covers import covers
from llama_orch.plugins.testing.frames import Chain, body_pieces, without_texts

load_all()


class Rows:
    """A store of rows in memory, for reading."""

    def __init__(self, rows: list[Frame], note: tuple[int, bytes] | None = None) -> None:
        self.rows = rows
        self.note = note
        self.bodies: dict[tuple[str, str], bytes] = {}

    def frames(self, first: int, last: int | None = None) -> Iterator[Frame]:
        return iter(sorted(self.rows, key=lambda row: row.frame_no))

    def head_note(self) -> tuple[int, bytes] | None:
        return self.note

    def body(self, owner: str, body_id: str) -> bytes | None:
        return self.bodies.get((owner, body_id))


def _verify(rows: list[Frame], note: tuple[int, bytes] | None = None) -> Report:
    return verify(cast("JournalStore", Rows(rows, note)))


def _chain(n: int) -> list[Frame]:
    chain = Chain(Tail(epoch=1, frame_no=0, next_seq=1, hash=bytes(32)))
    rows = []
    for number in range(n):
        unit = chain.unit(facts=1 + number % 3, chunks=number % 3, size=20)
        chain.took(unit)
        rows.append(unit.frame)
    return rows


def _with(row: Frame, **fields: Any) -> Frame:
    return Frame(**{name: fields.get(name, getattr(row, name)) for name in Frame.__struct_fields__})


ROWS = _chain(24)
NOTE = (ROWS[-1].end_seq, ROWS[-1].hash)
_positions = st.integers(0, len(ROWS) - 1)


def _places(report: Report) -> set[int]:
    return {n for f in report.findings for n in range(f.frame_no, f.last_frame_no + 1)}


@covers("JRN-2")
def test_an_untouched_journal_has_no_findings_and_names_its_head() -> None:
    report = _verify(ROWS, NOTE)
    assert report.ok
    assert (report.frames, report.last_frame_no) == (24, 24)
    assert report.next_seq == ROWS[-1].end_seq == 1 + report.events
    assert report.head_hash == ROWS[-1].hash.hex()


def test_an_empty_journal_has_no_findings() -> None:
    report = _verify([])
    assert report.ok
    assert report.next_seq == 1


@covers("JRN-2")
@given(at=_positions, column=st.sampled_from(["facts", "texts", "hash", "prev_hash"]), data=st.data())
def test_an_edited_byte_is_located_to_its_frame_and_seqs(at: int, column: str, data: st.DataObject) -> None:
    row = ROWS[at]
    raw = bytearray(getattr(row, column))
    if not raw:
        return
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    rows = [*ROWS[:at], _with(row, **{column: bytes(raw)}), *ROWS[at + 1 :]]
    report = _verify(rows)
    assert [(f.kind, f.frame_no, f.last_frame_no) for f in report.findings] == [("edited", at + 1, at + 1)]
    assert (report.findings[0].first_seq, report.findings[0].last_seq) == (row.first_seq, row.end_seq - 1)


@covers("JRN-2")
@given(at=_positions, column=st.sampled_from(["epoch", "first_seq", "count"]), by=st.sampled_from([-1, 1, 1000]))
def test_an_edited_header_is_located_to_its_frame(at: int, column: str, by: int) -> None:
    value = getattr(ROWS[at], column) + by
    if value < 0:
        return
    report = _verify([*ROWS[:at], _with(ROWS[at], **{column: value}), *ROWS[at + 1 :]])
    assert _places(report) == {at + 1}
    assert report.findings[0].first_seq == ROWS[at].first_seq


@covers("JRN-2")
@given(first=_positions, n=st.integers(1, 5))
def test_removed_rows_are_located(first: int, n: int) -> None:
    removed = ROWS[first : first + n]
    report = _verify(ROWS[:first] + ROWS[first + n :], NOTE)
    (finding,) = report.findings
    if removed[-1] is ROWS[-1]:
        assert finding.kind == "tail"
        assert (finding.first_seq, finding.last_seq) == (removed[0].first_seq, removed[-1].end_seq - 1)
    else:
        assert finding.kind == "missing"
        assert (finding.frame_no, finding.last_frame_no) == (first + 1, first + n)
        assert (finding.first_seq, finding.last_seq) == (removed[0].first_seq, removed[-1].end_seq - 1)


@covers("JRN-2")
@given(first=_positions, second=_positions)
def test_swapped_rows_are_told_from_edited_ones(first: int, second: int) -> None:
    if first == second:
        return
    rows = list(ROWS)
    rows[first] = _with(ROWS[second], frame_no=first + 1)
    rows[second] = _with(ROWS[first], frame_no=second + 1)
    report = _verify(rows, NOTE)
    assert {f.kind for f in report.findings if f.kind != "tail"} == {"moved"}
    assert {first + 1, second + 1} <= _places(report)
    assert any(
        f"row {first + 1} holds frame {second + 1}" in f.message or f.frame_no < f.last_frame_no
        for f in report.findings
    )


@covers("JRN-2")
@given(source=_positions, target=_positions)
def test_a_row_that_is_a_copy_of_another_is_named_with_its_original(source: int, target: int) -> None:
    if source == target:
        return
    rows = list(ROWS)
    rows[target] = _with(ROWS[source], frame_no=target + 1)
    report = _verify(rows)
    (finding,) = report.findings
    assert (finding.kind, finding.frame_no) == ("doubled", target + 1)
    assert f"copy of frame {source + 1}" in finding.message


@covers("JRN-2")
@given(at=_positions)
def test_a_row_that_was_inserted_is_located(at: int) -> None:
    later = [_with(row, frame_no=row.frame_no + 1) for row in ROWS[at + 1 :]]
    report = _verify([*ROWS[: at + 1], _with(ROWS[at], frame_no=at + 2), *later])
    assert report.findings[0].frame_no == at + 2
    assert report.findings[0].kind == "doubled"
    assert _places(report) == set(range(at + 2, len(ROWS) + 2))
    assert len(report.findings) <= 2


@covers("JRN-2")
@given(at=st.integers(0, len(ROWS) - 2))
def test_a_row_removed_with_the_rest_renumbered_is_one_finding(at: int) -> None:
    rows = ROWS[:at] + [_with(row, frame_no=row.frame_no - 1) for row in ROWS[at + 1 :]]
    report = _verify(rows)
    (finding,) = report.findings
    assert (finding.kind, finding.frame_no, finding.last_frame_no) == ("moved", at + 1, len(ROWS) - 1)


@covers("JRN-2")
def test_a_stretch_that_was_sealed_anew_does_not_link() -> None:
    chain = Chain(Tail(epoch=1, frame_no=10, next_seq=ROWS[9].end_seq, hash=ROWS[9].hash))
    forged = chain.frame(facts=ROWS[10].count)
    report = _verify([*ROWS[:10], forged, *ROWS[11:]], NOTE)
    assert report.findings[0].kind == "unlinked"
    assert (report.findings[0].frame_no, report.findings[0].last_frame_no) == (11, 12)


@covers("JRN-2")
def test_a_tail_that_was_written_anew_is_found_by_the_head_note() -> None:
    chain = Chain(Tail(epoch=1, frame_no=20, next_seq=ROWS[19].end_seq, hash=ROWS[19].hash))
    forged = []
    for row in ROWS[20:]:
        unit = CommitUnit(frame=chain.frame(facts=row.count))
        chain.took(unit)
        forged.append(unit.frame)
    report = _verify([*ROWS[:20], *forged], NOTE)
    (finding,) = report.findings
    assert finding.kind == "tail"
    assert finding.frame_no == 24
    # without the note nobody can tell, and the report says so
    blind = _verify([*ROWS[:20], *forged])
    assert blind.ok
    assert any("head note" in sentence for sentence in blind.unproven)


@covers("JRN-2")
def test_what_lies_behind_the_note_is_said_to_be_unproven() -> None:
    report = _verify(ROWS, (ROWS[10].end_seq, ROWS[10].hash))
    assert report.ok
    assert any(f"behind seq {ROWS[-1].end_seq - 1}" in sentence for sentence in report.unproven)


@covers("JRN-2", "JRN-7")
def test_dropped_texts_verify_and_are_counted() -> None:
    rows = [_with(row, texts=without_texts(row)) if n < 12 else row for n, row in enumerate(ROWS)]
    report = _verify(rows, NOTE)
    assert report.ok
    assert report.dropped_frames == sum(bool(row.texts) for row in ROWS[:12])
    assert any("digests stand" in sentence for sentence in report.unproven)


@covers("JRN-6")
def test_an_event_of_an_unknown_type_is_named() -> None:
    raw = Fact(0, "odd", 0, "odd.happened", 1, 1, "", "", msgspec.Raw(b"{}"))
    frame = seal(frame_no=1, epoch=1, first_seq=1, count=1, prev_hash=bytes(32), facts=[raw], chunks=[])
    (finding,) = _verify([frame]).findings
    assert (finding.kind, finding.first_seq) == ("undecodable", 1)
    assert "odd.happened" in finding.message


def test_findings_of_the_fold_are_added_only_to_a_sound_chain() -> None:
    asked: list[object] = []

    def check(store: JournalStore) -> list[Finding]:
        asked.append(store)
        return [Finding(kind="fold", frame_no=1, last_frame_no=1, first_seq=1, last_seq=1, message="differs")]

    assert [f.kind for f in verify(cast("JournalStore", Rows(ROWS)), check_fold=check).findings] == ["fold"]
    broken = cast("JournalStore", Rows([ROWS[0], *ROWS[2:]]))
    assert [f.kind for f in verify(broken, check_fold=check).findings] == ["missing"]
    assert len(asked) == 1


# --- bodies and transcripts ---------------------------------------------------------------------------------------

_PROMPT = body_pieces("local", b"a prompt")[0]
_TEXT = pack_transcript(Transcript(epochs=[(1, 1)], batch=EntryBatch(dts_us=[0, 1], texts=["ha", "iku"], ids=[1, 2])))


def _task_rows(transcript: bytes = _TEXT) -> list[Frame]:
    admitted = TaskAdmitted(
        task_id="t", owner="local", group="g", model_ref="m", workload="completion", priority="interactive",
        body_id=_PROMPT.body_id, request_digest="", seed=1,
    )  # fmt: skip
    ended = TaskEnded(task_id="t", outcome="completed", finish_reason="stop", entries=2, tokens_out=2)
    transcribed = TaskTranscribed(task_id="t", entries=2, digest=hashlib.sha256(_TEXT).hexdigest(), bytes=len(_TEXT))
    facts = [
        Fact(n, "task:t", n, type_of(event).name, 1, 1, "", "", msgspec.Raw(encode_payload(event)))
        for n, event in enumerate((admitted, ended, transcribed))
    ]
    chunk = make_chunk(
        task_no=1,
        first_ordinal=1,
        entries=0,
        tokens=0,
        attempt=1,
        flags=FLAG_TRANSCRIPT,
        salt=bytes(8),
        body=transcript,
    )
    return [seal(frame_no=1, epoch=1, first_seq=1, count=3, prev_hash=bytes(32), facts=facts, chunks=[chunk])]


def _verify_task(rows: list[Frame], bodies: dict[tuple[str, str], bytes]) -> Report:
    store = Rows(rows)
    store.bodies = bodies
    return verify(cast("JournalStore", store))


@covers("JRN-2", "JRN-9")
def test_bodies_that_facts_name_are_compared_with_their_digest() -> None:
    key = ("local", _PROMPT.body_id)
    assert _verify_task(_task_rows(), {key: b"a prompt"}).bodies == 1
    assert [f.kind for f in _verify_task(_task_rows(), {key: b"A prompt"}).findings] == ["body"]
    (finding,) = _verify_task(_task_rows(), {}).findings
    assert (finding.kind, finding.first_seq) == ("body", 1)
    assert "missing" in finding.message


@covers("JRN-7")
def test_a_transcript_is_compared_with_the_digest_in_its_event() -> None:
    bodies = {("local", _PROMPT.body_id): b"a prompt"}
    assert _verify_task(_task_rows(), bodies).transcripts == 1
    other = pack_transcript(
        Transcript(epochs=[(1, 1)], batch=EntryBatch(dts_us=[0, 1], texts=["ha", "ha!"], ids=[1, 2]))
    )
    (finding,) = _verify_task(_task_rows(other), bodies).findings
    assert (finding.kind, finding.first_seq) == ("transcript", 3)
    (finding,) = _verify_task(_task_rows(b"noise"), bodies).findings
    assert finding.kind == "transcript"


@covers("JRN-7")
def test_a_dropped_transcript_is_no_finding() -> None:
    (row,) = _task_rows()
    chunk = make_chunk(
        task_no=1, first_ordinal=1, entries=0, tokens=0, attempt=1, flags=FLAG_TRANSCRIPT, salt=bytes(8), body=_TEXT
    )
    chunk.body = None
    report = _verify_task(
        [_with(row, texts=encode_texts([chunk], row.end_seq))], {("local", _PROMPT.body_id): b"a prompt"}
    )
    assert report.ok
    assert report.transcripts == 0


# --- on a database ------------------------------------------------------------------------------------------------


@covers("JRN-2")
def test_a_journal_is_verified_beside_its_writer_and_as_a_copy(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/journal.db"
    writer = SqliteStore(url, {})
    chain = Chain(writer.open())
    for _ in range(5):
        unit = chain.unit(chunks=1)
        writer.commit(unit)
        chain.took(unit)
    writer.sync(chain.hash, chain.next_seq)
    reader = SqliteStore(url, {})
    assert verify(reader).ok
    assert verify(reader).frames == 5
    reader.close()
    writer.commit(chain.unit())
    writer.close()
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("journal.db", "journal.db.head"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    copied = SqliteStore(f"sqlite:///{copy}/journal.db", {})
    report = verify(copied)
    copied.close()
    assert report.ok
    assert report.frames == 6


@pytest.mark.parametrize("kept", [0, 3])
@covers("JRN-2")
def test_a_tail_cut_off_a_database_is_found(tmp_path: Path, kept: int) -> None:
    store = SqliteStore(f"sqlite:///{tmp_path}/journal.db", {})
    chain = Chain(store.open())
    for _ in range(5):
        unit = chain.unit()
        store.commit(unit)
        chain.took(unit)
    store.sync(chain.hash, chain.next_seq)
    store.close()
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as database:
        database.execute("DELETE FROM frames WHERE frame_no > ?", (kept,))
    (finding,) = verify(store).findings
    store.close()
    assert (finding.kind, finding.first_seq, finding.last_seq) == ("tail", kept + 1, 5)
