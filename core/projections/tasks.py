"""Live tasks, tasks that ended and wait for their transcript, and duplicates by key."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from ..events.task import (
    TaskAdmitted,
    TaskAttemptFailed,
    TaskCancelled,
    TaskEnded,
    TaskPlaced,
    TaskStarted,
    TaskTranscribed,
)
from ..types import TaskPhase
from .projection import EntriesRecorded, Projection, Recorded, on


class TaskState(msgspec.Struct, gc=False, kw_only=True):
    """One task from its admission until its transcript is written."""

    admitted: TaskAdmitted
    #: seq of the admission: the task's number
    task_no: int
    admitted_ns: int
    admitted_frame: int
    correlation: str
    phase: str = TaskPhase.QUEUED
    attempt: int = 0
    pool_id: str = ""
    placed_ns: int = 0
    started: TaskStarted | None = None
    #: of the first start: readers see one ``started`` frame
    started_ns: int = 0
    started_frame: int = 0
    started_epoch: int = 0
    #: entries so far; ordinals run from 1 to this
    entries: int = 0
    tokens_out: int = 0
    #: time of the last entry (from admission on), Unix ns at microsecond steps
    entry_ns: int = 0
    first_entry_ns: int = 0
    #: time between entries of one attempt, all attempts together: what waited between two of them is no decoding
    decode_us: int = 0
    #: attempt that said the last entry, modulo 256; -1 = none did
    said_by: int = -1
    #: ``(epoch, first ordinal)`` for each stretch of entries written under one epoch
    epochs: list[tuple[int, int]] = []
    #: frames that hold entries, ascending; beside each, ordinal and token index of its first entry
    entry_frames: list[int] = []
    frame_ordinals: list[int] = []
    frame_tokens: list[int] = []
    #: attempts that broke off by an engine's fault
    failures: int = 0
    ended: TaskEnded | None = None
    ended_ns: int = 0
    ended_frame: int = 0
    #: seq of the end
    ended_seq: int = 0
    ended_epoch: int = 0

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.admitted.task_id

    def decode_us_at(self, now_ns: int) -> int:
        """Time of decoding if its running attempt said something now, microseconds."""
        if self.said_by != self.attempt & 0xFF:
            return self.decode_us
        return self.decode_us + max(0, (now_ns - self.entry_ns) // 1000)


class Duplicate(msgspec.Struct, frozen=True, gc=False):
    """Which task an idempotency key belongs to."""

    task_id: str
    request_digest: str
    until_ns: int
    #: the task failed in a way that another run may mend, or nobody was left to read it: the same request may run again
    #: under the key (ADM-6)
    may_run_again: bool = False


class Tasks(Projection):
    """Tasks by id (live), by id (ended, not transcribed) and by idempotency key."""

    name = "tasks"
    version = 2

    def __init__(self) -> None:
        self.live: dict[str, TaskState] = {}
        self.closing: dict[str, TaskState] = {}
        self.by_no: dict[int, TaskState] = {}
        #: (owner, digest of key) -> duplicate; in the order of admission
        self.keys: dict[tuple[str, str], Duplicate] = {}
        #: attempts that run on an engine now
        self.running = 0

    def get(self, task_id: str) -> TaskState | None:
        """A task that is live, or ended without a transcript yet."""
        return self.live.get(task_id) or self.closing.get(task_id)

    @on(TaskAdmitted)
    def _admitted(self, record: Recorded) -> None:
        event: TaskAdmitted = record.payload
        state = TaskState(
            admitted=event,
            task_no=record.seq,
            admitted_ns=record.time_ns,
            admitted_frame=record.frame_no,
            correlation=record.correlation,
            entry_ns=record.time_ns,
            epochs=[],
            entry_frames=[],
            frame_ordinals=[],
            frame_tokens=[],
        )
        self.live[event.task_id] = state
        self.by_no[record.seq] = state
        if event.idempotency_digest:
            self._forget_old(record.time_ns)
            key = (event.owner, event.idempotency_digest)
            self.keys.pop(key, None)
            self.keys[key] = Duplicate(event.task_id, event.request_digest, event.idempotency_until_ns)

    def _forget_old(self, now_ns: int) -> None:
        # Looked through once: to begin anew at each, behind those that are gone, takes seconds after a busy day.
        old = list(itertools.takewhile(lambda key: self.keys[key].until_ns <= now_ns, self.keys))
        for key in old:
            del self.keys[key]

    @on(TaskPlaced)
    def _placed(self, record: Recorded) -> None:
        event: TaskPlaced = record.payload
        state = self.live[event.task_id]
        state.phase = TaskPhase.PLACED
        state.attempt = event.attempt
        state.pool_id = event.pool_id
        state.placed_ns = record.time_ns

    @on(TaskStarted)
    def _started(self, record: Recorded) -> None:
        event: TaskStarted = record.payload
        state = self.live[event.task_id]
        state.phase = TaskPhase.RUNNING
        self.running += 1
        if state.started is None:
            state.started_ns = record.time_ns
            state.started_frame = record.frame_no
            state.started_epoch = record.epoch
            state.started = event

    @on(TaskAttemptFailed)
    def _attempt_failed(self, record: Recorded) -> None:
        event: TaskAttemptFailed = record.payload
        state = self.live[event.task_id]
        if state.phase == TaskPhase.RUNNING:
            self.running -= 1
        state.phase = TaskPhase.QUEUED
        state.pool_id = ""
        if event.code not in ("restart", "diverged", "drained"):
            state.failures += 1

    @on(TaskCancelled)
    def _cancelled(self, record: Recorded) -> None:
        # The end follows in the same batch; the reason stays in the journal.
        event: TaskCancelled = record.payload
        if event.reason == "disconnect":
            # Whoever comes back with the key was cut off, and wants the answer still.
            self._may_run_again(self.live[event.task_id])

    @on(TaskEnded)
    def _ended(self, record: Recorded) -> None:
        event: TaskEnded = record.payload
        state = self.live.pop(event.task_id)
        if state.phase == TaskPhase.RUNNING:
            self.running -= 1
        state.ended = event
        state.ended_ns = record.time_ns
        state.ended_frame = record.frame_no
        state.ended_seq = record.seq
        state.ended_epoch = record.epoch
        self.closing[event.task_id] = state
        if event.retriable and event.outcome == "failed":
            self._may_run_again(state)

    def _may_run_again(self, state: TaskState) -> None:
        """The same request may run again under the task's key."""
        key = (state.admitted.owner, state.admitted.idempotency_digest)
        known = self.keys.get(key)
        if known is not None and known.task_id == state.task_id:
            self.keys[key] = msgspec.structs.replace(known, may_run_again=True)

    @on(TaskTranscribed)
    def _transcribed(self, record: Recorded) -> None:
        event: TaskTranscribed = record.payload
        state = self.closing.pop(event.task_id)
        del self.by_no[state.task_no]

    def fold_entries(self, chunk: EntriesRecorded) -> None:
        """Count a chunk of entries in; those of tasks that left memory do not matter any more."""
        state = self.by_no.get(chunk.task_no)
        if state is None:
            return
        if not state.epochs or state.epochs[-1][0] != chunk.epoch:
            state.epochs.append((chunk.epoch, chunk.first_ordinal))
        if not state.entry_frames or state.entry_frames[-1] != chunk.frame_no:
            state.entry_frames.append(chunk.frame_no)
            state.frame_ordinals.append(chunk.first_ordinal)
            state.frame_tokens.append(state.tokens_out)
        state.entries = chunk.first_ordinal + chunk.entries - 1
        state.tokens_out += chunk.tokens
        if not state.first_entry_ns:
            state.first_entry_ns = state.entry_ns + chunk.first_us * 1000
        state.entry_ns += chunk.elapsed_us * 1000
        by = chunk.attempt & 0xFF
        state.decode_us += chunk.elapsed_us if state.said_by == by else chunk.elapsed_us - chunk.first_us
        state.said_by = by

    def dump(self) -> Any:
        """Live and closing tasks in order of admission, then keys in order of expiry."""
        return {
            "tasks": [msgspec.to_builtins(s) for s in self.by_no.values()],
            "keys": [
                [owner, key, d.task_id, d.request_digest, d.until_ns, d.may_run_again]
                for (owner, key), d in self.keys.items()
            ],
        }

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.__init__()  # type: ignore[misc]
        for item in data["tasks"]:
            state = msgspec.convert(item, TaskState)
            self.by_no[state.task_no] = state
            (self.closing if state.ended is not None else self.live)[state.task_id] = state
            if state.ended is None and state.phase == TaskPhase.RUNNING:
                self.running += 1
        for owner, key, task_id, digest, until, again in data["keys"]:
            self.keys[(owner, key)] = Duplicate(task_id, digest, until, again)
