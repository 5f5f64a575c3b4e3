"""The sequencer: the one place where events get their seq, are folded into head, and go to the store.

``append`` checks, assigns seq, folds and enqueues in one synchronous step on the event loop; what it appended
is one batch inside one frame. Answers wait for a watermark: *committed* (killing the process loses nothing)
or *synced* (power loss loses nothing). Readers are woken at committed, and see an end only once it is synced.

A commit has three outcomes. *Done*. *Refused* (busy, full): the same frame is tried again, meanwhile nothing
new is accepted. *Unknown* (I/O error, lost connection): what is pending is void, the store is opened anew,
its tail compared with the frame in flight, and head is rebuilt from what is really there.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from ..entries import EntryBatch
from ..errors import (
    FencedError,
    JournalError,
    JournalLockedError,
    JournalUnavailableError,
    OrchError,
    StoreRefusedError,
)
from ..events.server import ServerStarted
from ..events.task import TaskEnded, TaskTranscribed
from ..ports import BodyPiece, Clock, IndexRow, JournalStore, Tail
from ..projections.head import Head
from ..projections.projection import EntriesRecorded
from ..projections.tasks import TaskState
from ..registry import encode_payload, load_all
from ..types import TaskPhase
from .committer import Committer, CommitThread, Durability, MakeCommitter, MakeDurability, Syncer, attempt
from .event_time import EventTime
from .live import LiveStream, Segment
from .observed import Observed
from .opening import frame_hash, replay_to
from .options import JournalOptions as JournalOptions
from .pending import MAX_CHUNK_ENTRIES, PendingFrame, SealedUnit
from .preconditions import check
from .replay import Replayed
from .waiters import Callback, Waiters

T = TypeVar("T")
Status = Literal["closed", "ok", "refusing", "reopening", "fenced"]
#: frames that one commit may rewrite: it runs on the event loop
MAX_REWRITES = 32
_RUNNING: str = TaskPhase.RUNNING


class Journal(Observed):
    """The journal of one partition, with its head, on one event loop.

    :param make_committer: who commits where commits block.
    :param make_durability: who syncs.
    :param urandom: source of the salts.
    :param monotonic: seconds, to measure commits and the window between them.
    """

    def __init__(
        self,
        store: JournalStore,
        clock: Clock,
        options: JournalOptions,
        *,
        make_committer: MakeCommitter = CommitThread,
        make_durability: MakeDurability = Syncer,
        urandom: Callable[[int], bytes] = os.urandom,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        load_all()
        self._make_committer = make_committer
        self._make_durability = make_durability
        self._urandom = urandom
        self._monotonic = monotonic
        self._store = store
        self._time = EventTime(clock)
        self._options = options
        self._loop: asyncio.AbstractEventLoop = asyncio.get_event_loop()
        self._inline = store.commits_inline if options.inline is None else options.inline
        self.head = Head()
        self.streams: dict[str, LiveStream] = {}
        #: ended tasks whose transcript left head, but is not committed: until then nothing else tells of them
        self.leaving: dict[str, TaskState] = {}
        self.status: Status = "closed"
        self.status_detail = ""
        self.epoch = 0
        #: seq after what the snapshot held that the last opening began from
        self.snapshot_seq = 1
        self.committed_seq = 0
        self.committed_frame = 0
        self.synced_seq = 0
        self.commits = 0
        #: seconds that the last commits took, newest last; for metrics
        self.commit_seconds: deque[float] = deque(maxlen=1024)
        self._pending = PendingFrame(1, 0, 1)
        self._inflight: SealedUnit | None = None
        self._prev_hash = bytes(32)
        self._committed_hash = bytes(32)
        self._flush_handle: asyncio.Handle | None = None
        self._flush_is_timer = False
        self._last_commit = 0.0
        self._retry_s = options.retry_s
        self._lost_error: JournalError | None = None
        #: the commit thread has a unit
        self._committing = False
        #: an engine was asked to pause
        self._pressed = False
        self._commit_waiters = Waiters()
        self._sync_waiters = Waiters()
        self._rewrites: deque[tuple[int, bytes]] = deque()
        self._ends_to_sync: deque[tuple[int, LiveStream]] = deque()
        self._commit_thread: Committer | None = None
        self._syncer: Durability | None = None
        self._reopening: asyncio.Task[None] | None = None
        #: what the reopening does with the store now; it cannot be broken off
        self._reopening_call: asyncio.Future[Any] | None = None

    # --- opening and closing ---------------------------------------------------------------------------------

    @property
    def store(self) -> JournalStore:
        """The store, for reading."""
        return self._store

    async def open(self) -> Replayed:
        """Take the journal over, rebuild head, begin an epoch.

        :raises JournalLockedError: another process writes it.
        :raises CorruptJournalError: frames are missing or cannot be decoded.
        """
        self._loop = asyncio.get_running_loop()
        tail = await asyncio.to_thread(self._store.open)
        replayed = await asyncio.to_thread(replay_to, self._store, tail, self._options.snapshots)
        self.snapshot_seq = replayed.begun_at
        self._begin(tail, replayed.head)
        if not self._inline:
            self._commit_thread = self._make_committer(self._store, self._loop.call_soon_threadsafe)
        self._syncer = self._make_durability(self._store, self._loop.call_soon_threadsafe, self._on_synced)
        self._append_started("start")
        return replayed

    def _begin(self, tail: Tail, head: Head) -> None:
        self.head = head
        self.epoch = tail.epoch
        self._prev_hash = self._committed_hash = tail.hash
        self._pending = PendingFrame(tail.frame_no + 1, tail.epoch, tail.next_seq)
        self._inflight = None
        self._lost_error = None
        self.committed_seq = self.synced_seq = tail.next_seq
        self.committed_frame = tail.frame_no
        # Readers that came while the store was reopened look at what was: they have to come again.
        self._break_streams(self._unavailable(outcome_unknown=True))
        self.leaving.clear()
        self._rewrites.clear()
        self._ends_to_sync.clear()
        self._set_status("ok", "")

    def _append_started(self, cause: str) -> None:
        started = ServerStarted(epoch=self.epoch, version=self._options.version, cause=cause)
        self.append([started], actor="server", correlation="")

    async def close(self) -> None:
        """Commit and sync what is pending, then release the store.

        Who still waits is told that the outcome is unknown: a commit may be on its way.
        """
        if self._reopening is not None:
            self._reopening.cancel()
            if self._reopening_call is not None:
                await asyncio.wait([self._reopening_call])
        if self.status == "ok":
            try:
                async with asyncio.timeout(10):
                    await self.synced(self.head.next_seq)
            except (TimeoutError, JournalUnavailableError):
                pass
        self._set_status("closed", "the server stops")
        unavailable = self._unavailable(outcome_unknown=True)
        self._break_streams(unavailable)
        self._fail_waiters(unavailable)
        if self._flush_handle is not None:
            self._flush_handle.cancel()
        for thread in (self._commit_thread, self._syncer):
            if thread is not None:
                await asyncio.to_thread(thread.close)
        await asyncio.to_thread(self._store.close)

    # --- appending -------------------------------------------------------------------------------------------

    def pressure(self) -> bool:
        """Too much waits for the store: engines shall pause until :meth:`on_relief`."""
        self._pressed = self._pressed or self._overloaded
        return self._overloaded

    @property
    def _overloaded(self) -> bool:
        inflight = self._inflight.size if self._inflight is not None else 0
        return self._pending.size + inflight > self._options.pending_bytes

    @property
    def next_frame(self) -> int:
        """Number of the frame that takes what is appended now."""
        return self._pending.frame_no

    def require_ok(self) -> None:
        """:raises JournalUnavailableError: nothing new can be accepted now."""
        if self.status != "ok":
            raise self._unavailable()

    def _unavailable(self, *, outcome_unknown: bool = False) -> JournalUnavailableError:
        msg = f"the journal cannot be written ({self.status}): {self.status_detail}"
        return JournalUnavailableError(msg, retry_after_ms=1000, outcome_unknown=outcome_unknown)

    def now_ns(self) -> int:
        """Event time, never before the last event's."""
        return self._time.now_ns(self.head.time_ns)

    def append(
        self,
        payloads: Sequence[object],
        *,
        actor: str,
        correlation: str,
        bodies: Sequence[BodyPiece] = (),
        internal: bool = False,
    ) -> int:
        """Append one atomic batch and answer the seq after it; wait for it with :meth:`committed` or :meth:`synced`.

        :param internal: what follows from something that already happened (an engine ended); taken also while the
            store refuses, and committed when it can.
        :raises ConflictError: head does not allow it; nothing was applied.
        :raises JournalUnavailableError: the journal cannot be written now; nothing was applied.
        """
        if self.status != "ok" and not (internal and self.status == "refusing"):
            raise self._unavailable()
        check(self.head, payloads)
        # Encoding may refuse (lone surrogates); nothing is applied before all of the batch is bytes.
        raws = [encode_payload(payload) for payload in payloads]
        pending, head = self._pending, self.head
        now = self.now_ns()
        for body in bodies:
            pending.bodies.append(body)
            pending.size += len(body.data)
        for payload, raw in zip(payloads, raws, strict=True):
            record = pending.add_fact(
                payload, raw, positions=head.positions, now_ns=now, actor=actor, correlation=correlation
            )
            head.fold(record)
        self._request_flush()
        return pending.next_seq

    def append_entries(self, task_id: str, attempt_no: int, batch: EntryBatch, now_ns: int = 0) -> bool:
        """Append what an attempt said. ``False``: dropped, because that attempt is not the running one.

        :param now_ns: the time of the entries, for who has asked :meth:`now_ns` already; 0 = now.

        This one rule makes cancel free of races and fences streams of attempts that were given up.
        """
        state = self.head.tasks.live.get(task_id)
        if state is None or state.phase != _RUNNING or state.attempt != attempt_no:
            return False
        if self.status not in ("ok", "refusing"):
            return False
        n = len(batch.texts)
        if n > MAX_CHUNK_ENTRIES:
            cuts = range(0, n, MAX_CHUNK_ENTRIES)
            return all(
                self.append_entries(task_id, attempt_no, batch.slice(at, at + MAX_CHUNK_ENTRIES), now_ns) for at in cuts
            )
        if not n:
            return True
        pending = self._pending
        tokens = n if batch.tokens is None else sum(batch.tokens)
        elapsed = max(0, ((now_ns or self.now_ns()) - state.entry_ns) // 1000)
        if n == 1:
            batch.dts_us[0] = elapsed
        else:
            batch.dts_us = [elapsed] + [0] * (n - 1)
        pending.add_entries(state, attempt_no, batch, tokens)
        self.head.next_seq = pending.next_seq
        self.head.fold_entries(
            EntriesRecorded(
                pending.frame_no, self.epoch, state.task_no, attempt_no, state.entries + 1, n, tokens, elapsed, elapsed
            )
        )
        if self._flush_handle is None or (self._flush_is_timer and len(pending.parts) >= self.head.tasks.running):
            self._request_flush()
        return True

    def append_transcript(self, state: TaskState, event: TaskTranscribed, body: bytes, row: IndexRow) -> int:
        """Append a task's transcript with the derived row that says where everything stands.

        :raises JournalUnavailableError: the journal cannot be written now; nothing was applied.
        """
        pending = self._pending
        end = self.append([event], actor="server", correlation=state.correlation, internal=True)
        if body:
            pending.transcripts.append((state.task_no, state.attempt & 0xFF, 1, body))
        pending.index.append(row)
        pending.size += len(body)
        self.leaving[state.task_id] = state
        return end

    def task(self, task_id: str) -> TaskState | None:
        """A task that is live, or ended and not yet found in the store's index."""
        return self.head.tasks.get(task_id) or self.leaving.get(task_id)

    def stage_rewrites(self, rewrites: Sequence[tuple[int, bytes]]) -> None:
        """Texts whose chunks were replaced by their leaves go to the store with the next frames, a few with each."""
        self._rewrites.extend(rewrites)

    # --- watermarks ------------------------------------------------------------------------------------------

    def when_committed(self, seq: int, callback: Callback) -> None:
        """Call back once everything before ``seq`` is committed (at once when it is), or with the error."""
        if seq <= self.committed_seq:
            callback(None)
        else:
            self._commit_waiters.add(seq, callback)

    async def committed(self, seq: int) -> None:
        """Wait until killing the process cannot lose what is before ``seq``.

        :raises JournalUnavailableError: it was voided, or its outcome is unknown (``outcome_unknown``).
        """
        if seq > self.committed_seq:
            await self._wait(self._commit_waiters, seq)

    async def synced(self, seq: int) -> None:
        """Wait until power loss cannot lose what is before ``seq``. :raises JournalUnavailableError: as above."""
        if seq > self.synced_seq:
            if seq <= self.committed_seq and self._syncer is not None:
                self._syncer.committed(self.committed_seq, self._committed_hash, durable=True)
            await self._wait(self._sync_waiters, seq)

    def _wait(self, waiters: Waiters, seq: int) -> asyncio.Future[None]:
        if self.status in ("closed", "fenced", "reopening"):
            raise self._unavailable(outcome_unknown=True)
        return waiters.future(seq, self._loop)

    def _fail_waiters(self, error: OrchError, *, above: int = 0) -> None:
        for waiters in (self._commit_waiters, self._sync_waiters):
            waiters.release(above)
            waiters.fail(error)

    def _set_status(self, status: Status, detail: str) -> None:
        changed = status != self.status
        self.status, self.status_detail = status, detail
        if changed:
            self._tell(self._status_observers)

    # --- committing ------------------------------------------------------------------------------------------

    def _request_flush(self) -> None:
        """Commit soon: at once when a fact waits or nobody else can add; in a short window when many streams run."""
        if self._inflight is not None:
            return
        urgent = self._pending.urgent
        if self._flush_handle is not None:
            if not self._flush_is_timer or not (urgent or len(self._pending.parts) >= self.head.tasks.running):
                return
            self._flush_handle.cancel()
        running = self.head.tasks.running
        if urgent or running <= 2 or len(self._pending.parts) >= running:
            wait = 0.0
        else:
            window = min(self._options.window_s, running * 0.00025)
            wait = window - (self._monotonic() - self._last_commit)
        if wait <= 0.0005:
            self._flush_is_timer = False
            self._flush_handle = self._loop.call_soon(self._flush)
        else:
            self._flush_is_timer = True
            self._flush_handle = self._loop.call_later(wait, self._flush)

    def _flush(self) -> None:
        self._flush_handle = None
        if not self._pending or self._inflight is not None or self.status not in ("ok", "refusing"):
            return
        while self._rewrites and len(self._pending.rewrites) < MAX_REWRITES:
            self._pending.rewrites.append(self._rewrites.popleft())
        sealed = self._pending.seal(self._prev_hash, self._urandom)
        self._inflight = sealed
        self._prev_hash = sealed.unit.frame.hash
        self._pending = PendingFrame(sealed.unit.frame.frame_no + 1, self.epoch, sealed.end_seq)
        self._commit(sealed)

    def _commit(self, sealed: SealedUnit) -> None:
        if self._inflight is not sealed or self.status in ("closed", "fenced", "reopening"):
            return
        self._last_commit = self._monotonic()
        self._committing = True
        if self._commit_thread is not None:
            self._commit_thread.submit(sealed.unit, partial(self._on_commit, sealed))
        else:
            self._on_commit(sealed, attempt(self._store, sealed.unit))

    def _on_commit(self, sealed: SealedUnit, error: Exception | None) -> None:
        self._committing = False
        if self._inflight is not sealed or self.status in ("closed", "fenced"):
            return
        now = self._monotonic()
        self.commit_seconds.append(now - self._last_commit)
        if self._lost_error is not None and not isinstance(error, FencedError):
            self._lose(sealed, self._lost_error)
        elif error is None:
            self._inflight = None
            self._last_commit = now
            self._retry_s = self._options.retry_s
            self.commits += 1
            if self.status == "refusing":
                self._set_status("ok", "")
            self._released(sealed)
            self._relieve()
            if self._pending:
                self._request_flush()
        elif isinstance(error, StoreRefusedError):
            self._set_status("refusing", error.message)
            self._loop.call_later(self._retry_s, self._commit, sealed)
            self._retry_s = min(self._retry_s * 2, self._options.retry_max_s)
        elif isinstance(error, FencedError):
            self._stop_writing(error)
        else:
            self._lose(sealed, error if isinstance(error, JournalError) else JournalError(str(error)))

    def _relieve(self) -> None:
        if self._pressed and not self._overloaded:
            self._pressed = False
            self._tell(self._relief_observers)

    def _released(self, sealed: SealedUnit) -> None:
        """What is committed becomes visible, in order."""
        self.committed_seq = sealed.end_seq
        self.committed_frame = sealed.unit.frame.frame_no
        touched: list[LiveStream] = []
        for part in sealed.parts:
            stream = self.streams.get(part.task_id)
            if stream is None:
                stream = self.stream_of(part.task_id, part.first_ordinal)
                if stream is None:
                    continue
            assert part.joined is not None
            stream.push(Segment(part.first_ordinal, part.first_token, self.epoch, part.joined, {}))
            touched.append(stream)
        for record in sealed.records:
            if type(record.payload) is TaskTranscribed:
                self.leaving.pop(record.payload.task_id, None)
            elif type(record.payload) is TaskEnded:
                ending = self.stream_of(record.payload.task_id)
                if ending is not None:
                    self._ends_to_sync.append((sealed.end_seq, ending))
            elif record.name.startswith("task."):
                stream = self.streams.get(record.payload.task_id)
                if stream is not None:
                    touched.append(stream)
        if self._syncer is not None:
            frame = sealed.unit.frame
            self._committed_hash = frame.hash
            self._syncer.committed(sealed.end_seq, frame.hash, durable=sealed.durable or bool(self._sync_waiters))
        for stream in touched:
            stream.wake()
        self._tell_committed(sealed.records)
        self._commit_waiters.release(sealed.end_seq)

    def stream_of(self, task_id: str, base: int | None = None) -> LiveStream | None:
        """The live stream of a task that is live or closing, made when it is not there yet."""
        stream = self.streams.get(task_id)
        if stream is None:
            state = self.task(task_id)
            if state is None:
                return None
            stream = LiveStream(task_id, self._options.buffer_bytes, state.entries + 1 if base is None else base)
            stream.terminal = 0 < state.ended_seq < self.synced_seq
            self.streams[task_id] = stream
        return stream

    def _on_synced(self, seq: int, error: Exception | None) -> None:
        if self.status in ("closed", "fenced", "reopening"):
            return
        if error is not None:
            failure = error if isinstance(error, JournalError) else JournalError(str(error))
            if isinstance(failure, FencedError):
                self._stop_writing(failure)
            elif self._committing:
                self._lost_error = failure
            else:
                self._lose(self._inflight, failure)
            return
        if seq <= self.synced_seq:
            return
        self.synced_seq = seq
        while self._ends_to_sync and self._ends_to_sync[0][0] <= seq:
            stream = self._ends_to_sync.popleft()[1]
            stream.terminal = True
            stream.wake()
        self._sync_waiters.release(seq)

    # --- when a write fails ----------------------------------------------------------------------------------

    def _stop_writing(self, error: JournalError) -> None:
        self._set_status("fenced", error.message)
        unavailable = self._unavailable(outcome_unknown=True)
        self._break_streams(unavailable)
        self._fail_waiters(unavailable)
        for observer in self._fatal_observers:
            observer(error)

    def _break_streams(self, error: OrchError) -> None:
        # Those whose transcript is committed left the table already, but their readers wait for the end's sync.
        streams = [*self.streams.values(), *(stream for _, stream in self._ends_to_sync)]
        self.streams = {}
        self._ends_to_sync.clear()
        for stream in streams:
            stream.broken = error
            stream.wake()

    def _lose(self, sealed: SealedUnit | None, error: JournalError) -> None:
        """The outcome is unknown: void what is pending, look at what is really there."""
        self._set_status("reopening", error.message)
        unknown = self._unavailable(outcome_unknown=True)
        self._break_streams(unknown)
        for waiters in (self._commit_waiters, self._sync_waiters):
            waiters.fail(unknown, above=-1 if sealed is None else sealed.end_seq)
        self._reopening = self._loop.create_task(self._reopen(sealed))

    async def _reopen(self, sealed: SealedUnit | None) -> None:
        delay = self._options.retry_s
        while True:
            try:
                tail = await self._apart(self._store.reopen)
                replayed = await self._apart(partial(replay_to, self._store, tail, self._options.snapshots))
                break
            except (FencedError, JournalLockedError) as error:
                self._stop_writing(error)
                return
            except Exception as error:
                self.status_detail = str(error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._options.retry_max_s)
        arrived = 0
        if sealed is not None and tail.next_seq >= sealed.end_seq:
            frame = sealed.unit.frame
            if await self._apart(partial(frame_hash, self._store, frame.frame_no)) == frame.hash:
                arrived = sealed.end_seq
        self._fail_waiters(self._unavailable(outcome_unknown=True), above=arrived)
        self._reopening = None
        self._begin(tail, replayed.head)
        if sealed is not None and arrived:
            self._tell_committed(sealed.records)
        self._append_started("reopen")
        self._tell(self._rebuilt_observers)

    async def _apart(self, work: Callable[[], T]) -> T:
        """Do something with the store on a thread; who cancels this waits for the thread all the same."""
        call = self._reopening_call = self._loop.run_in_executor(None, work)
        try:
            return await asyncio.shield(call)
        finally:
            if call.done():
                self._reopening_call = None

    def describe(self) -> dict[str, Any]:
        """Figures for status routes and metrics."""
        return {
            "status": self.status,
            "detail": self.status_detail,
            "epoch": self.epoch,
            "head_seq": self.head.next_seq - 1,
            "committed_seq": self.committed_seq - 1,
            "synced_seq": self.synced_seq - 1,
            "frame_no": self._pending.frame_no - 1,
            "commits": self.commits,
            "pending_bytes": self._pending.size,
        }
