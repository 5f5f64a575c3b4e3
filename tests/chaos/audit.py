"""Compares what clients were told with what the journal holds, and checks the journal by itself.

It reads facts and texts as they are stored and folds them anew, by rules of its own: exactly one terminal for each task,
nothing after it, entries without gaps and only of the running attempt, the queue in its order, every lease given back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_orch.core.entries import unpack, unpack_transcript
from llama_orch.core.frames import decode_texts
from llama_orch.core.journal.history import facts_of
from llama_orch.core.journal.replay import replay
from llama_orch.core.journal.verify import verify
from llama_orch.core.ports import JournalStore
from llama_orch.core.registry import load_all
from llama_orch.core.types import Entry

from .http_client import SseFrame
from .load import Followed, Ledger


@dataclass
class Told:
    """A task as the journal tells it."""

    task_id: str
    task_no: int
    priority: str
    key_digest: str
    admissions: int = 1
    phase: str = "queued"
    attempt: int = 0
    started: Any = None
    started_epoch: int = 0
    ended: Any = None
    ended_epoch: int = 0
    cancels: int = 0
    #: entries that frames still hold, by ordinal: epoch and entry
    entries: dict[int, tuple[int, Entry]] = field(default_factory=dict)
    transcript: list[tuple[int, Entry]] = field(default_factory=list)
    transcribed: bool = False
    attempts_failed: Counter[str] = field(default_factory=Counter)


@dataclass
class Figures:
    """What an audit saw."""

    tasks: int
    outcomes: Counter[str]
    recoveries: Counter[str]
    restarts: int
    frames: int
    events: int
    reconnects: int


class History:
    """A journal, folded by the audit's own rules."""

    def __init__(self, store: JournalStore) -> None:
        load_all()
        self.tasks: dict[str, Told] = {}
        self.by_no: dict[int, Told] = {}
        self.leases: dict[str, str] = {}
        self.starts = 0
        self.releases: list[tuple[str, str, str]] = []
        #: when the last lease of each task ended
        self.released_ns: dict[str, int] = {}
        #: names of the events of each task and its leases, in order
        self.story: dict[str, list[str]] = {}
        for frame in store.frames(1):
            offset_of = {record.seq: record for record in facts_of(frame)}
            for record in offset_of.values():
                self._fact(record)
            for chunk in decode_texts(frame.texts, frame.end_seq):
                if chunk.body is None:
                    continue
                told = self.by_no[chunk.task_no]
                if chunk.is_transcript:
                    self._transcript(told, chunk.body)
                else:
                    batch = unpack(chunk.body)
                    assert len(batch) == chunk.entries
                    for n, entry in enumerate(batch.entries(), chunk.first_ordinal):
                        assert n not in told.entries, f"{told.task_id}: entry {n} stands twice"
                        told.entries[n] = (frame.epoch, entry)

    @staticmethod
    def _transcript(told: Told, body: bytes) -> None:
        transcript = unpack_transcript(body)
        starts = {first: epoch for epoch, first in transcript.epochs}
        epoch = 0
        for n, entry in enumerate(transcript.batch.entries(), 1):
            epoch = starts.get(n, epoch)
            told.transcript.append((epoch, entry))

    def _fact(self, record: Any) -> None:
        payload = record.payload
        kind = type(payload).__name__
        if kind == "ServerStarted":
            self.starts += 1
        elif kind == "TaskRejected":
            pass
        elif kind == "TaskAdmitted":
            assert payload.task_id not in self.tasks, f"{payload.task_id} was admitted twice"
            told = Told(payload.task_id, record.seq, payload.priority, payload.idempotency_digest)
            self.tasks[payload.task_id] = self.by_no[record.seq] = told
        elif kind == "LeaseGranted":
            assert payload.lease_id not in self.leases
            self.leases[payload.lease_id] = payload.task_id
        elif kind == "LeaseReleased":
            assert self.leases.pop(payload.lease_id) == payload.task_id
            self.releases.append((payload.lease_id, payload.task_id, payload.cause))
            self.released_ns[payload.task_id] = record.time_ns
        elif record.name.startswith("task."):
            self._of_task(self.tasks[payload.task_id], kind, payload, record)
        task_id = getattr(payload, "task_id", "")
        if task_id:
            self.story.setdefault(task_id, []).append(record.name)

    def _of_task(self, told: Told, kind: str, payload: Any, record: Any) -> None:
        if kind == "TaskTranscribed":
            assert told.ended is not None
            assert not told.transcribed
            told.transcribed = True
            return
        assert told.ended is None, f"{told.task_id}: {kind} behind its end"
        if kind == "TaskPlaced":
            self._check_order(told)
            assert payload.attempt == told.attempt + 1
            told.phase, told.attempt = "placed", payload.attempt
        elif kind == "TaskStarted":
            assert told.phase == "placed"
            assert payload.attempt == told.attempt
            told.phase = "running"
            if told.started is None:
                told.started, told.started_epoch = payload, record.epoch
        elif kind == "TaskAttemptFailed":
            assert payload.attempt == told.attempt
            told.phase = "queued"
            told.attempts_failed[payload.code] += 1
        elif kind == "TaskCancelled":
            told.cancels += 1
        elif kind == "TaskEnded":
            told.phase = "ended"
            told.ended, told.ended_epoch = payload, record.epoch

    def _check_order(self, placed: Told) -> None:
        """First come, first served within a class, and the interactive class first."""
        assert placed.phase == "queued"
        for other in self.tasks.values():
            if other.phase != "queued" or other is placed:
                continue
            rank = (other.priority != "interactive", other.task_no)
            mine = (placed.priority != "interactive", placed.task_no)
            assert rank > mine, f"{placed.task_id} was placed before {other.task_id}, which came earlier"


def audit(store: JournalStore, ledger: Ledger, *, server_id: Any = None) -> Figures:
    """Check everything; the figures of what was seen."""
    report = verify(store)
    assert report.ok, report.findings
    history = History(store)
    head = replay(store).head
    assert not head.tasks.live, "tasks are left without an end"
    assert not head.tasks.closing, "tasks are left without a transcript"
    assert not head.leases.by_id, "leases are left"
    assert not history.leases
    for told in history.tasks.values():
        assert told.ended is not None, f"{told.task_id} has no end"
        check_entries(told)
    by_key: dict[str, list[Told]] = {}
    for told in history.tasks.values():
        by_key.setdefault(told.key_digest, []).append(told)
    for same in by_key.values():
        for earlier in same[:-1]:
            # the same key runs again only behind a failure that says it may
            assert earlier.ended.outcome == "failed", f"{[told.task_id for told in same]} have one key"
            assert earlier.ended.retriable
    for task in ledger.tasks:
        if not task.accepted:
            continue
        for task_id in task.accepted:
            assert task_id in history.tasks, f"{task_id} was accepted, but the journal does not know it"
        check_reader(task.frames, history.tasks[task.task_id])
    ended = [told.ended for told in history.tasks.values()]
    return Figures(
        tasks=len(history.tasks),
        outcomes=Counter(f"{end.outcome}{f' {end.code}' if end.code else ''}" for end in ended),
        recoveries=Counter(end.recovery_used or "none" for end in ended),
        restarts=history.starts - 1,
        frames=report.frames,
        events=report.events,
        reconnects=sum(task.connections - 1 for task in ledger.tasks),
    )


def check_entries(told: Told) -> None:
    """A task's entries: as many as its end says, without gaps, frames and transcript alike."""
    total = told.ended.entries
    assert len(told.transcript) == total, f"{told.task_id}: {len(told.transcript)} entries in its transcript of {total}"
    for ordinal, held in told.entries.items():
        assert told.transcript[ordinal - 1] == held, f"{told.task_id}: entry {ordinal} differs from its transcript"
    assert sum(entry.tokens for _, entry in told.transcript) == told.ended.tokens_out


def check_reader(frames: Sequence[SseFrame], told: Told) -> None:
    """What one reader saw, joined over its connections, is what the journal holds: all of it, once, in order."""
    seen = [simplified(frame) for frame in frames]
    assert seen == expected_frames(told), f"{told.task_id}: {first_difference(seen, expected_frames(told))}"


def expected_frames(told: Told) -> list[tuple[Any, ...]]:
    """The frames that a reader of a task gets from its start."""
    out: list[tuple[Any, ...]] = []
    if told.started is not None:
        out.append(("started", f"{told.started_epoch}.0", told.started.seed, told.started.pool_id))
    index = 0
    for ordinal, (epoch, entry) in enumerate(told.transcript, 1):
        out.append(("token", f"{epoch}.{ordinal}", entry.text, index, entry.tokens, entry.ids))
        index += entry.tokens
    end = told.ended
    last = f"{told.ended_epoch}.{end.entries + 1}"
    if end.outcome == "failed":
        out.append(("error", last, end.code, end.tokens_out))
    else:
        out.append(("end", last, end.finish_reason, end.tokens_out))
    return out


def simplified(frame: SseFrame) -> tuple[Any, ...]:
    """A reader's frame in the form of :func:`expected_frames`."""
    data = frame.data
    if frame.event == "started":
        return ("started", frame.id, data["seed"], data["pool_id"])
    if frame.event == "token":
        ids = (data["id"],) if "id" in data else tuple(data.get("ids", ()))
        return ("token", frame.id, data["t"], data["i"], data.get("n", 1), ids)
    if frame.event == "error":
        return ("error", frame.id, data["code"], data["tokens_out"])
    return (frame.event, frame.id, data["finish_reason"], data["tokens_out"])


def first_difference(seen: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> str:
    """Where two lists of frames part."""
    for n, (one, other) in enumerate(zip(seen, expected, strict=False)):
        if one != other:
            return f"frame {n}: the reader saw {one}, the journal holds {other}"
    return f"the reader saw {len(seen)} frames, the journal holds {len(expected)}"


def check_second_reader(task: Followed, again: Sequence[SseFrame]) -> None:
    """A reader who comes late gets the same frames under the same ids."""
    first, second = ([(f.event, f.id, f.data) for f in frames] for frames in (task.frames, again))
    assert first == second, f"{task.task_id}: {first_difference(first, second)}"
