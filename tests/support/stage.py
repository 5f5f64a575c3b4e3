"""A whole server core on a stage: disk, journal, services and scripted engines, on a loop that is stepped by hand."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from llama_orch.core.errors import JournalError
from llama_orch.core.events.lease import LeaseGranted, LeaseReleased
from llama_orch.core.events.task import TaskEnded
from llama_orch.core.frames import decode_texts, verify_frame
from llama_orch.core.journal.history import facts_of
from llama_orch.core.journal.index import pack_frame_numbers, rebuild, unpack_frame_numbers
from llama_orch.core.journal.journal import Journal, JournalOptions
from llama_orch.core.journal.replay import replay
from llama_orch.core.ports import IndexRow
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.projection import Recorded
from llama_orch.core.services.admission import Admission
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.container import Services, build_services
from llama_orch.core.settings import AdmissionSettings, PoolSettings, QueueSettings, Settings, StreamSettings
from llama_orch.core.types import TaskRequest
from llama_orch.plugins.policy.placement import DefaultPolicy

from .clock import Ids, ManualClock
from .engine import Engines, ScriptedAttempt, ScriptedEngine
from .host import StandInHost
from .loop import StepLoop
from .reader import Reader
from .store import Disk, HandCommitter, HandSyncer, MemoryStore

LOCAL = Caller()


def settings_for(
    slots: dict[str, int], *, capacity: int = 100, full_policy: str = "reject", **admission: Any
) -> Settings:
    """Settings with one pool per name, all of the model ``m``."""
    return Settings(
        admission=AdmissionSettings(**admission),
        streams=StreamSettings(buffer_bytes=8192),
        pools=[
            PoolSettings(
                id=name,
                engine="mock",
                model="m",
                slots=count,
                queue=QueueSettings(capacity=capacity, full_policy=full_policy),  # type: ignore[arg-type]
            )
            for name, count in slots.items()
        ],
    )


class Stage:
    """One server on one disk; :meth:`crash` and :meth:`restart` as often as a test likes.

    :param by_hand: commits wait for :meth:`commit`, as they do for a thread; else they are done at once.
    """

    def __init__(
        self,
        *,
        slots: dict[str, int] | None = None,
        settings: Settings | None = None,
        by_hand: bool = False,
        ready: bool = True,
        pending_bytes: int = 16_777_216,
        buffer_bytes: int = 262_144,
        window_s: float = 0.0,
        ctx: int = 4096,
        launched: frozenset[str] = frozenset(),
    ) -> None:
        self.loop = StepLoop()
        self.clock = ManualClock(elapsed_s=self.loop.time)
        self.disk = Disk()
        self.ids = Ids()
        self._seeds = itertools.count(1)
        self._salts = itertools.count(1)
        self.by_hand = by_hand
        self.slots = slots or {"p": 1}
        self.settings = settings or settings_for(self.slots)
        self.engines = {name: ScriptedEngine(slots=count, ctx=ctx) for name, count in self.slots.items()}
        self.ready_at_start = ready
        self._launched = launched
        self._pending_bytes = pending_bytes
        self._buffer_bytes = buffer_bytes
        self._window_s = window_s
        self.fatal: list[JournalError] = []
        #: number and hash of a frame, and head as of it, in bytes
        self.snapshots: list[tuple[int, bytes, bytes]] = []
        #: facts as observers were told of them, over all lives of the server
        self.told: list[Recorded] = []
        self._committer: HandCommitter | None = None
        self._syncer: HandSyncer | None = None
        self.up = False
        self.readers: list[Reader] = []
        self.start()

    @property
    def committer(self) -> HandCommitter:
        """What commits in this life of the server."""
        assert self._committer is not None
        return self._committer

    @property
    def syncer(self) -> HandSyncer:
        """What syncs in this life of the server."""
        assert self._syncer is not None
        return self._syncer

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server on the disk."""
        self.store = MemoryStore(self.disk, inline=not self.by_hand)
        options = JournalOptions(
            version="1",
            window_s=self._window_s,
            pending_bytes=self._pending_bytes,
            buffer_bytes=self._buffer_bytes,
        )
        self.journal = self.loop.do(self._make_journal(options))
        self.up = True
        self.loop.create_task(self.journal.open())
        self.settle()
        engines = Engines(self.engines)
        self.services: Services = build_services(
            self.journal,
            settings=self.settings,
            engines=engines,
            policy=DefaultPolicy(),
            clock=self.clock,
            api_version="1",
            launched=self._launched,
            new_id=self.ids,
            new_seed=lambda: next(self._seeds),
        )
        self.host = StandInHost(self.services)
        self.services.pools.declare(self.settings)
        self.loop.call_soon(self.services.start)
        self.settle()
        if self.ready_at_start:
            for name in self.engines:
                self.pool_ready(name)
        self.settle()

    async def _make_journal(self, options: JournalOptions) -> Journal:
        def committer(store: Any, call_soon: Any) -> HandCommitter:
            self._committer = HandCommitter(store, call_soon)
            return self._committer

        def syncer(store: Any, call_soon: Any, done: Any) -> HandSyncer:
            self._syncer = HandSyncer(store, call_soon, done)
            return self._syncer

        journal = Journal(
            self.store,
            self.clock,
            options,
            make_committer=committer,
            make_durability=syncer,
            urandom=self._salt,
            monotonic=self.loop.time,
        )
        journal.on_fatal(self.fatal.append)
        journal.on_committed(self.told.extend)
        return journal

    def _salt(self, n: int) -> bytes:
        return hashlib.shake_128(str(next(self._salts)).encode()).digest(n)

    def pool_ready(self, name: str) -> None:
        """The pool's engine is ready."""
        properties = self.engines[name].own_properties()
        with self.loop.running():
            self.host.ready(name, properties)

    def crash(self, *, power: bool = False) -> None:
        """The process is gone at once; engines notice, readers' connections break."""
        self.up = False
        for reader in self.readers:
            reader.cut()
        self.loop.hold_work = False
        self.loop.work.clear()
        for task in self.loop.all_tasks():
            task.cancel()
        # What a dead process would do does not happen: its journal is not to touch the disk any more.
        self.disk.held_by = None
        self.store.disk = Disk()
        self.journal.status = "closed"
        self.loop.settle()
        for handle in list(self.loop.timers()):
            handle.cancel()
        for engine in self.engines.values():
            for attempt in engine.attempts:
                attempt.cancelled = True
                attempt.free("engine-gone")
        self.loop.settle()
        if power:
            self.disk.power_loss()

    def restart(self, *, power: bool = False) -> None:
        """Crash and start again; the readers come back on their own when they are told to."""
        self.crash(power=power)
        self.start()

    def stop(self) -> None:
        """An orderly end."""
        self.run(self.services.close())
        self.run(self.journal.close(), give_up_s=60)
        self.up = False

    def end(self) -> None:
        """Close the loop."""
        for handle in list(self.loop.timers()):
            handle.cancel()
        self.loop.wind_up()

    # --- stepping ------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everything that can happen happens, commits too."""
        self.loop.settle()
        while self._committer is not None and self._committer.waiting:
            self._committer.run()
            self.loop.settle()

    def turn(self) -> None:
        """What is ready now happens; commits by hand wait."""
        self.loop.settle()

    def commit(self) -> bool:
        """The commit that waits is done; whether there was one."""
        if self._committer is None or not self._committer.waiting:
            return False
        self._committer.run()
        self.loop.settle()
        return True

    def run(self, work: Any, *, give_up_s: float = 0.0) -> Any:
        """The result of a coroutine."""
        task = self.loop.create_task(work)
        self.settle()
        if not task.done() and give_up_s:
            self.loop.advance(give_up_s)
        if not task.done():
            task.cancel()
            self.settle()
            msg = f"{task.get_coro()} waits for something that nobody did"
            raise AssertionError(msg)
        return task.result()

    def advance(self, seconds: float) -> None:
        """Time passes, on the clocks and on the loop."""
        while self.by_hand and seconds > 0.05:
            self.loop.advance(0.05)
            self.settle()
            seconds -= 0.05
        self.loop.advance(seconds)
        self.settle()

    # --- doing things --------------------------------------------------------------------------------------------

    def submit(
        self, prompt: str = "hello", *, key: str | None = None, owner: str = "local", **fields: Any
    ) -> Admission:
        """Submit a task and wait until it is durable."""
        return self.run(self.submitting(prompt, key=key, owner=owner, **fields))

    def submitting(
        self,
        prompt: str = "hello",
        *,
        key: str | None = None,
        owner: str = "local",
        durable: bool = True,
        **fields: Any,
    ) -> Any:
        """A submission that has not begun."""
        api = fields.pop("api", "tasks")
        fields.setdefault("model_ref", "m")
        if not any(fields.get(name) for name in ("messages", "inputs", "prompt_ids")):
            fields["prompt"] = prompt
        return self.services.admission.submit(
            TaskRequest(**fields),
            Caller(owner=owner),
            correlation="c",
            idempotency_key=key,
            api=api,
            durable=durable,
        )

    def cancel(self, task_id: str, owner: str = "local") -> None:
        """Cancel a task and wait until that is durable."""
        self.run(self.services.cancel.cancel(task_id, Caller(owner=owner)))

    def reader(self, task_id: str, *, after: str | None = None, attached: bool = False, **options: Any) -> Reader:
        """A client that reads a task's stream, and comes back when it is told to."""
        reader = Reader(self, task_id, after=after, attached=attached, **options)
        self.readers.append(reader)
        reader.connect()
        return reader

    def attempt(self, task_id: str) -> ScriptedAttempt:
        """The newest attempt of a task on any engine."""
        found = [a for e in self.engines.values() for a in e.attempts if a.job.task_id == task_id]
        return max(found, key=lambda a: a.job.attempt)

    def info(self, task_id: str, owner: str = "local") -> Any:
        """What the task's route says."""
        return self.run(self.services.tasks.get(task_id, Caller(owner=owner)))

    def state(self, task_id: str) -> str:
        """The task's state by its route."""
        return self.info(task_id).state

    def snapshot(self) -> bool:
        """Keep head as it is now, to replay the rest from it later; whether all of it was committed."""
        journal = self.journal
        if not self.up or journal.status != "ok" or journal.committed_seq != journal.head.next_seq:
            return False
        last = self.disk.frames[-1]
        assert last.frame_no == journal.committed_frame
        self.snapshots.append((last.frame_no, last.hash, msgspec.json.encode(journal.head.dump())))
        return True

    # --- what the disk says ----------------------------------------------------------------------------------------

    def facts(self, *kinds: type) -> list[Recorded]:
        """Facts on disk, of these kinds when some are named."""
        records = [r for frame in self.disk.frames for r in facts_of(frame)]
        return [r for r in records if not kinds or isinstance(r.payload, kinds)]

    def payloads(self, kind: type, task_id: str = "") -> list[Any]:
        """Payloads of one kind of event, of one task when it is named."""
        found = [r.payload for r in self.facts(kind)]
        return [p for p in found if not task_id or p.task_id == task_id]

    def ended(self, task_id: str) -> TaskEnded:
        """The one end of a task."""
        (end,) = self.payloads(TaskEnded, task_id)
        return end

    def said(self, task_id: str) -> list[str]:
        """The entries' texts of a task as its frames hold them (before any compaction)."""
        from llama_orch.core.entries import unpack
        from llama_orch.core.events.task import TaskAdmitted

        number = next(r.seq for r in self.facts(TaskAdmitted) if r.payload.task_id == task_id)
        texts: list[str] = []
        for frame in self.disk.frames:
            for chunk in decode_texts(frame.texts, frame.end_seq):
                if chunk.task_no == number and not chunk.is_transcript:
                    assert chunk.first_ordinal == len(texts) + 1
                    assert chunk.body is not None
                    texts += unpack(chunk.body).texts
        return texts

    def check(self) -> None:
        """What must hold of every journal, at any moment."""
        check_journal(self)
        if self.loop.errors:
            raise AssertionError("something failed where nobody looked") from self.loop.errors[0]
        for reader in self.readers:
            if reader.defect is not None:
                raise AssertionError("a reader saw what it must not see") from reader.defect


def check_journal(stage: Stage) -> None:
    """The chain, the order of each task's events, the leases, and that all ways to the state agree."""
    previous = bytes(32)
    for frame in stage.disk.frames:
        assert verify_frame(frame, previous) == ""
        previous = frame.hash
    terminal: dict[str, int] = {}
    held: dict[tuple[str, int], str] = {}
    numbers: dict[int, str] = {}
    positions: dict[str, int] = {}
    attempts: dict[str, int] = {}
    last_ns = 0
    for frame in stage.disk.frames:
        records = {r.seq: r for r in facts_of(frame)}
        chunks = iter([c for c in decode_texts(frame.texts, frame.end_seq) if not c.is_transcript])
        for seq in range(frame.first_seq, frame.end_seq):
            record = records.get(seq)
            if record is None:
                chunk = next(chunks, None)
                if chunk is None:  # only the frame's root is left
                    continue
                task_id = numbers[chunk.task_no]
                assert task_id not in terminal, f"entries of {task_id} behind its end"
                assert chunk.attempt == attempts[task_id] & 0xFF, "entries of an attempt that does not run"
                continue
            assert record.time_ns >= last_ns
            last_ns = record.time_ns
            event = record.payload
            if record.name == "task.admitted":
                assert event.task_id not in numbers.values(), f"{event.task_id} was admitted twice"
                numbers[record.seq] = event.task_id
            elif record.name == "task.started":
                attempts[event.task_id] = event.attempt
            if record.stream.startswith("task:") and record.name != "task.rejected":
                assert record.position == positions.get(record.stream, 0)
                positions[record.stream] = record.position + 1
                if record.name == "task.ended":
                    assert event.task_id not in terminal, f"{event.task_id} ended twice"
                    terminal[event.task_id] = record.seq
                elif record.name != "task.transcribed":
                    assert event.task_id not in terminal, f"{record.name} behind the end of {event.task_id}"
            if isinstance(event, LeaseGranted):
                assert (event.pool_id, event.slot) not in held, "a slot was given twice"
                assert event.slot < stage.slots[event.pool_id]
                held[event.pool_id, event.slot] = event.lease_id
            elif isinstance(event, LeaseReleased):
                keys = [key for key, lease in held.items() if lease == event.lease_id]
                assert len(keys) == 1, "a lease was released that nobody holds"
                del held[keys[0]]
    reader = MemoryStore(stage.disk)
    again = replay(reader)
    if stage.up and stage.journal.status == "ok" and stage.journal.committed_seq == stage.journal.head.next_seq:
        assert again.head.dump() == stage.journal.head.dump()
        assert again.head.digest() == stage.journal.head.digest()
    for number, digest, dump in stage.snapshots:
        if number > len(stage.disk.frames) or stage.disk.frames[number - 1].hash != digest:
            continue  # power loss took the frame
        head = Head()
        head.load(msgspec.json.decode(dump))
        assert replay(reader, head, number).head.dump() == again.head.dump()
        assert head.digest() == again.head.digest()
    built = [_without_dropped(row, stage.disk) for row in rebuild(reader)]
    kept = [_without_dropped(row, stage.disk) for row in stage.disk.index.values()]
    assert sorted(built, key=lambda row: row.task_no) == sorted(kept, key=lambda row: row.task_no)


def _without_dropped(row: IndexRow, disk: Disk) -> IndexRow:
    """The row without the frames that can tell of no task any more."""
    numbers = unpack_frame_numbers(row.entry_frames)
    kept = [n for n in numbers if decode_texts(disk.frames[n - 1].texts, disk.frames[n - 1].end_seq)]
    return msgspec.structs.replace(row, entry_frames=pack_frame_numbers(kept))


@contextmanager
def on_stage(**options: Any) -> Iterator[Stage]:
    """A stage that is checked and closed at the end."""
    stage = Stage(**options)
    try:
        yield stage
        if stage.up:
            stage.settle()
        stage.check()
    finally:
        stage.end()


Make = Callable[..., Stage]
