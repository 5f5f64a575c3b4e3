"""The index's packed frame numbers, and its rows built again from frames."""

from __future__ import annotations

import asyncio
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.entries import EntryBatch
from llama_orch.core.errors import CorruptJournalError
from llama_orch.core.events.task import (
    DecisionRecord,
    TaskAdmitted,
    TaskCancelled,
    TaskEnded,
    TaskPlaced,
    TaskStarted,
)
from llama_orch.core.journal.index import pack_frame_numbers, rebuild, unpack_frame_numbers
from llama_orch.core.journal.journal import Journal, JournalOptions
from llama_orch.core.ports import IndexFilter, JournalStore
from llama_orch.core.services.texts import TaskTexts
from llama_orch.core.services.transcripts import Transcripts
from llama_orch.plugins.storage.sqlite import SqliteStore
from llama_orch.plugins.testing.covers import covers

from ...support.clock import ManualClock

_ascending = st.lists(st.integers(1, 5_000_000), min_size=1, max_size=400).map(lambda steps: [*accumulate(steps)])


@given(_ascending)
def test_frame_numbers_come_back(numbers: list[int]) -> None:
    assert unpack_frame_numbers(pack_frame_numbers(numbers)) == numbers


def test_no_frames_take_no_bytes() -> None:
    assert pack_frame_numbers([]) == b""
    assert unpack_frame_numbers(b"") == []


def test_a_long_stream_takes_few_bytes() -> None:
    assert len(pack_frame_numbers(range(1_000, 101_000))) < 1_000


@pytest.mark.parametrize("numbers", [[3, 3], [5, 4], [1, 2**33]])
def test_numbers_that_cannot_be_packed_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        pack_frame_numbers(numbers)


@given(st.binary(min_size=1, max_size=40))
def test_broken_bytes_are_called_corrupt(raw: bytes) -> None:
    try:
        numbers = unpack_frame_numbers(raw)
    except CorruptJournalError:
        return
    assert raw[0] in (0, 1)
    assert all(isinstance(number, int) for number in numbers)


@covers("JRN-7")
def test_rows_built_from_the_frames_are_those_that_the_journal_wrote(tmp_path: Path) -> None:
    store = SqliteStore(f"sqlite:///{tmp_path}/journal.db", {})
    asyncio.run(_some_tasks(store))
    written = store.index_page(IndexFilter())
    assert sorted(rebuild(store), key=lambda row: -row.task_no) == written
    assert [row.state for row in written] == ["cancelled", "completed", "completed"]
    assert [bool(row.transcript_frame) for row in written] == [False, True, True]
    assert [len(unpack_frame_numbers(row.entry_frames)) for row in written] == [0, 6, 6]
    store.close()


async def _some_tasks(store: JournalStore) -> None:
    """Two tasks that stream side by side and end, and one that is cancelled in the queue."""
    journal = Journal(store, ManualClock(), JournalOptions(version="test"))
    await journal.open()
    Transcripts(journal, TaskTexts(journal), compact=False)
    for task_id in ("a", "b"):
        journal.append(_beginning(task_id), actor="test", correlation="")
    for at in range(6):
        for task_id in ("a", "b"):
            journal.append_entries(task_id, 1, EntryBatch(dts_us=[0, 0], texts=["x", "y"], ids=[at, at]))
        await journal.committed(journal.head.next_seq)
    admitted = _beginning("c")[0]
    journal.append(
        [admitted, TaskCancelled(task_id="c", reason="client"), _end("c", "cancelled", 0)], actor="", correlation=""
    )
    for task_id in ("b", "a"):
        journal.append([_end(task_id, "completed", 12)], actor="", correlation="")
        await journal.committed(journal.head.next_seq)
    await journal.synced(journal.head.next_seq)
    assert not journal.head.tasks.closing
    await journal.close()


def _beginning(task_id: str) -> list[object]:
    decision = DecisionRecord(
        selected_pool_id="p", candidates_considered=["p"], filters_applied=[], scores_ms={}, tie_breakers_applied=[],
        pinned=False, fallback_used=False, decision_reason="", policy="", policy_version="",
    )  # fmt: skip
    return [
        TaskAdmitted(
            task_id=task_id, owner="local", group="g", model_ref="m", workload="completion", priority="interactive",
            body_id="", request_digest="", seed=1, session_id=f"session-{task_id}",
        ),
        TaskPlaced(task_id=task_id, attempt=1, pool_id="p", replica_id="r0", decision=decision),
        TaskStarted(task_id=task_id, attempt=1, pool_id="p", replica_id="r0", engine="mock", engine_version="1", seed=1),
    ]  # fmt: skip


def _end(task_id: str, outcome: str, entries: int) -> TaskEnded:
    return TaskEnded(task_id=task_id, outcome=outcome, finish_reason="stop", entries=entries, tokens_out=entries)
