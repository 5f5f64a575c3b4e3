"""A journal written by any released version opens in this one (JRN-6). Golden journals are never made anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llama_orch.core.entries import unpack_transcript
from llama_orch.core.events.task import TaskTranscribed
from llama_orch.core.frames import decode_texts
from llama_orch.core.journal.history import facts_of, segments_in
from llama_orch.core.journal.replay import replay
from llama_orch.core.journal.verify import verify
from llama_orch.core.ports import JournalStore
from llama_orch.core.registry import event_types, load_all
from llama_orch.plugins.manager import PluginManager

from .states import state_digests

HERE = Path(__file__).parent
VERSIONS = sorted(p.name for p in HERE.glob("v*") if p.is_dir())
load_all()


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A copy of a golden journal, opened by this version, and what it held when it was written."""
    folder = tmp_path / request.param
    shutil.copytree(HERE / request.param, folder)
    store = PluginManager(entry_points=False).journal_stores()["sqlite"](f"sqlite:///{folder / 'journal.db'}", {})
    tail = store.open()
    yield store, tail, json.loads((folder / "expected.json").read_text())
    store.close()


def test_there_is_a_golden_journal_for_each_format() -> None:
    assert VERSIONS[:1] == ["v1"]


def test_it_opens_and_ends_where_it_ended(golden: tuple[JournalStore, Any, dict[str, Any]]) -> None:
    _, tail, expected = golden
    assert (tail.frame_no, tail.next_seq) == (expected["frames"], expected["next_seq"])


def test_it_verifies(golden: tuple[JournalStore, Any, dict[str, Any]]) -> None:
    store, _, _ = golden
    assert verify(store).findings == []


def test_its_events_fold_to_the_state_that_they_folded_to(golden: tuple[JournalStore, Any, dict[str, Any]]) -> None:
    """Per projection and version of it: a fold that changed its meaning needs a new version, and a new line there."""
    store, _, expected = golden
    assert state_digests(replay(store).head).items() <= expected["states"].items()


def test_it_holds_every_event_type_of_its_time(golden: tuple[JournalStore, Any, dict[str, Any]]) -> None:
    store, _, expected = golden
    held = {record.name for frame in store.frames(1) for record in facts_of(frame)}
    assert held == set(expected["types"])


def test_the_newest_one_holds_every_event_type() -> None:
    newest = json.loads((HERE / VERSIONS[-1] / "expected.json").read_text())
    assert set(newest["types"]) == {declared.name for declared in event_types()}


def test_its_texts_can_be_read(golden: tuple[JournalStore, Any, dict[str, Any]]) -> None:
    store, _, expected = golden
    frames = list(store.frames(1))
    live = replay(store).head.tasks.live["t-runs"]
    running = segments_in([f for f in frames if f.frame_no in live.entry_frames], live.task_no, 0)
    assert "".join(t for s in running for t in s.batch.texts) == expected["texts"]["t-runs"]
    (frame,) = [f for f in frames if any(type(r.payload) is TaskTranscribed for r in facts_of(f))]
    (chunk,) = [c for c in decode_texts(frame.texts, frame.end_seq) if c.is_transcript]
    assert chunk.body is not None
    assert "".join(unpack_transcript(chunk.body).batch.texts) == expected["texts"]["t-done"]
