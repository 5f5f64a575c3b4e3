"""Which events may follow which: a batch is refused as a whole, and nothing of it is applied."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llama_orch.core.entries import EntryBatch
from llama_orch.core.errors import ConflictError
from llama_orch.core.events.lease import LeaseGranted, LeaseReleased
from llama_orch.core.events.task import (
    DecisionRecord,
    TaskAdmitted,
    TaskAttemptFailed,
    TaskCancelled,
    TaskEnded,
    TaskPlaced,
    TaskStarted,
    TaskTranscribed,
)
from llama_orch.core.frames import decode_texts

from ...support.stage import Stage, on_stage

DECISION = DecisionRecord(
    selected_pool_id="p",
    candidates_considered=["p"],
    filters_applied=[],
    scores_ms={},
    tie_breakers_applied=[],
    pinned=False,
    fallback_used=False,
    decision_reason="",
    policy="test",
    policy_version="1",
)


def placed(task_id: str, attempt: int = 1) -> TaskPlaced:
    return TaskPlaced(task_id=task_id, attempt=attempt, pool_id="p", replica_id="r0", decision=DECISION)


def started(task_id: str, attempt: int = 1) -> TaskStarted:
    return TaskStarted(
        task_id=task_id, attempt=attempt, pool_id="p", replica_id="r0", engine="e", engine_version="1", seed=1
    )


def failed(task_id: str, attempt: int = 1) -> TaskAttemptFailed:
    return TaskAttemptFailed(task_id=task_id, attempt=attempt, pool_id="p", code="cut", message="")


def ended(task_id: str) -> TaskEnded:
    return TaskEnded(task_id=task_id, outcome="completed", finish_reason="stop", entries=0, tokens_out=0)


def transcribed(task_id: str) -> TaskTranscribed:
    return TaskTranscribed(task_id=task_id, entries=0, digest="", bytes=0)


def granted(slot: int, lease_id: str = "new") -> LeaseGranted:
    return LeaseGranted(lease_id=lease_id, pool_id="p", task_id="t", attempt=1, slot=slot)


def released(lease_id: str) -> LeaseReleased:
    return LeaseReleased(lease_id=lease_id, pool_id="p", task_id="t", cause="slot-free")


def admitted(task_id: str) -> TaskAdmitted:
    return TaskAdmitted(
        task_id=task_id,
        owner="local",
        group="m",
        model_ref="m",
        workload="completion",
        priority="interactive",
        body_id="b",
        request_digest="",
        seed=1,
    )


Batch = Callable[[str, str, str], list[object]]

REFUSED: dict[str, Batch] = {
    "a task that exists is admitted": lambda r, q, lease: [admitted(r)],
    "a task is admitted twice at once": lambda r, q, lease: [admitted("new"), admitted("new")],
    "a running task is placed": lambda r, q, lease: [placed(r, 2)],
    "a placement skips an attempt": lambda r, q, lease: [placed(q, 2)],
    "a queued task starts": lambda r, q, lease: [started(q)],
    "a running task starts": lambda r, q, lease: [started(r)],
    "another attempt starts": lambda r, q, lease: [placed(q, 1), started(q, 2)],
    "a queued task's attempt fails": lambda r, q, lease: [failed(q, 0)],
    "an old attempt fails": lambda r, q, lease: [failed(r, 0)],
    "a task ends twice": lambda r, q, lease: [ended(r), ended(r)],
    "a task goes on behind its end": lambda r, q, lease: [ended(r), failed(r)],
    "a cancel behind the end": lambda r, q, lease: [ended(q), TaskCancelled(task_id=q, reason="client")],
    "a live task is transcribed": lambda r, q, lease: [transcribed(r)],
    "something behind the transcript": lambda r, q, lease: [ended(q), transcribed(q), transcribed(q)],
    "an unknown task is placed": lambda r, q, lease: [placed("nobody")],
    "a slot that is taken is granted": lambda r, q, lease: [granted(0)],
    "a slot is granted twice at once": lambda r, q, lease: [granted(1, "a"), granted(1, "b")],
    "a lease that nobody holds is released": lambda r, q, lease: [released("nobody's")],
    "a lease is released twice at once": lambda r, q, lease: [released(lease), released(lease)],
}


def two_tasks(stage: Stage) -> tuple[str, str, str]:
    """A running task, a queued one, and the running one's lease."""
    running = stage.submit("one").task_id
    queued = stage.submit("two").task_id
    stage.attempt(running).start()
    stage.settle()
    (lease,) = stage.journal.head.leases.by_id
    return running, queued, lease


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_and_nothing_is_applied(what: str) -> None:
    with on_stage() as stage:
        batch = REFUSED[what](*two_tasks(stage))
        before = stage.journal.head.dump()
        with stage.loop.inside(), pytest.raises(ConflictError):
            stage.journal.append([admitted("innocent"), *batch], actor="test", correlation="")
        stage.settle()
        assert stage.journal.head.dump() == before


def test_what_cannot_be_encoded_is_refused_and_nothing_is_applied() -> None:
    with on_stage() as stage:
        two_tasks(stage)
        before = stage.journal.head.dump()
        bad = admitted("bad \ud800")
        with stage.loop.inside(), pytest.raises(UnicodeEncodeError):
            stage.journal.append([admitted("innocent"), bad], actor="test", correlation="")
        stage.settle()
        assert stage.journal.head.dump() == before


def test_entries_of_an_attempt_that_does_not_run_are_dropped() -> None:
    with on_stage() as stage:
        running, queued, _ = two_tasks(stage)
        with stage.loop.inside():
            for task_id, attempt in ((running, 0), (running, 2), (queued, 0), (queued, 1), ("nobody", 1)):
                assert not stage.journal.append_entries(task_id, attempt, EntryBatch([0], ["x"]))
            assert stage.journal.append_entries(running, 1, EntryBatch([0], ["x"]))
        stage.settle()
        assert stage.said(running) == ["x"]


def test_what_two_attempts_say_within_one_frame_stays_apart() -> None:
    with on_stage() as stage:
        running, _, lease = two_tasks(stage)
        with stage.loop.inside():
            journal = stage.journal
            assert journal.append_entries(running, 1, EntryBatch([0], ["a"]))
            again = [failed(running), placed(running, 2), started(running, 2)]
            journal.append(again, actor="test", correlation="")
            assert journal.append_entries(running, 2, EntryBatch([0], ["b"]))
        stage.settle()
        chunks = decode_texts(stage.disk.frames[-1].texts, stage.disk.frames[-1].end_seq)
        assert [(chunk.attempt, chunk.first_ordinal) for chunk in chunks] == [(1, 1), (2, 2)]
        assert lease in stage.journal.head.leases.by_id


def test_slots_that_nobody_holds_are_free() -> None:
    with on_stage(slots={"p": 3}) as stage:
        leases = stage.journal.head.leases
        assert list(leases.free_slots("p", 3)) == [0, 1, 2]
        assert list(leases.free_slots("p", 0)) == []
        stage.submit()
        assert list(leases.free_slots("p", 3)) == [1, 2]
        assert list(leases.free_slots("p", 1)) == []
