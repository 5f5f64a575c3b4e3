"""What the journal costs by itself: appending, replaying, bytes on disk; `python -m benchmarks.journal`.

Everything runs through the real journal on the real SQLite store. CPU is that of the whole process, so the syncer's
thread is counted; rates are entries (of one token each) per second of CPU, on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec

from llama_orch.core.entries import EntryBatch
from llama_orch.core.events.lease import LeaseGranted, LeaseReleased
from llama_orch.core.events.task import DecisionRecord, TaskAdmitted, TaskEnded, TaskPlaced, TaskStarted
from llama_orch.core.frames import drop_chunks
from llama_orch.core.journal.journal import Journal, JournalOptions
from llama_orch.core.journal.replay import replay
from llama_orch.core.ports import CommitUnit, JournalStore
from llama_orch.core.services.texts import TaskTexts
from llama_orch.core.services.transcripts import Transcripts
from llama_orch.plugins.manager import PluginManager

from .report import figure, table

#: what tokens look like, on average 4.2 bytes
WORDS = [" the", " of", " journal", "s", " a", " and", ",", " token", "ing", " light", ".", " frame", " over", "ly"]


class SystemClock:
    """The system's clock."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class Shape(msgspec.Struct, frozen=True):
    """How tokens come: this many streams side by side, entries per event of each, tokens per task."""

    streams: int
    entries: int
    tokens: int = 512

    @property
    def name(self) -> str:
        """For the tables."""
        return f"{self.streams} × {self.entries}"


APPENDS = [Shape(1, 1), Shape(1, 8), Shape(1, 64), Shape(1, 512), Shape(8, 1), Shape(64, 1), Shape(64, 8)]
REPLAYS = [Shape(1, 1), Shape(64, 1), Shape(1, 64), Shape(64, 64)]


class Appended(msgspec.Struct, frozen=True):
    """Figures of one run of appends."""

    shape: Shape
    commits: int
    entries: int
    wall_s: float
    cpu_s: float
    #: of the store's commit alone, microseconds
    store_us: float


class Kept(msgspec.Struct, frozen=True):
    """Figures of a journal of ended tasks."""

    shape: Shape
    tokens: int
    frames: int
    live_bytes: int
    compacted_bytes: int
    replay_cpu_s: float


class TimedStore:
    """A store that notes how long its commits take; everything else is the store's own."""

    def __init__(self, store: JournalStore) -> None:
        self._store = store
        self.commit_ns: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def commit(self, unit: CommitUnit) -> None:
        """Commit, timed."""
        began = time.perf_counter_ns()
        self._store.commit(unit)
        self.commit_ns.append(time.perf_counter_ns() - began)


def make_store(folder: Path) -> JournalStore:
    """The store of a journal in this folder."""
    return PluginManager(entry_points=False).journal_stores()["sqlite"](f"sqlite:///{folder}/journal.db", {})


@asynccontextmanager
async def opened(store: object) -> AsyncIterator[Journal]:
    """The journal, open."""
    journal = Journal(store, SystemClock(), JournalOptions(version="benchmark", window_s=0.0))  # type: ignore[arg-type]
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


def batch(n: int, at: int) -> EntryBatch:
    """As an engine gives it: a word and an id for each token."""
    return EntryBatch(
        dts_us=[20_000] * n,
        texts=[WORDS[(at + i) % len(WORDS)] for i in range(n)],
        ids=[1000 + (at + i) * 7919 % 60_000 for i in range(n)],
    )


def start(journal: Journal, task_id: str, slot: int) -> None:
    """Append all that comes before a task's first token."""
    decision = DecisionRecord(
        selected_pool_id="pool",
        candidates_considered=["pool"],
        filters_applied=[],
        scores_ms={"pool": 1},
        tie_breakers_applied=[],
        pinned=False,
        fallback_used=False,
        decision_reason="the only pool",
        policy="default",
        policy_version="1",
    )
    events: list[object] = [
        TaskAdmitted(
            task_id=task_id,
            owner="local",
            group="model",
            model_ref="model",
            workload="completion",
            priority="interactive",
            body_id="sha256:" + "0" * 64,
            request_digest="0" * 64,
            seed=1,
        ),
        TaskPlaced(task_id=task_id, attempt=1, pool_id="pool", replica_id="r0", decision=decision),
        LeaseGranted(lease_id=f"l-{task_id}", pool_id="pool", task_id=task_id, attempt=1, slot=slot),
        TaskStarted(
            task_id=task_id, attempt=1, pool_id="pool", replica_id="r0", engine="mock", engine_version="1", seed=1
        ),
    ]
    journal.append(events, actor="benchmark", correlation=task_id)


def end(journal: Journal, task_id: str, tokens: int) -> None:
    """Append the task's end."""
    state = journal.head.tasks.live[task_id]
    events: list[object] = [
        TaskEnded(
            task_id=task_id, outcome="completed", finish_reason="length", entries=state.entries, tokens_out=tokens
        ),
        LeaseReleased(lease_id=f"l-{task_id}", pool_id="pool", task_id=task_id, cause="slot-free"),
    ]
    journal.append(events, actor="benchmark", correlation=task_id)


async def append(folder: Path, shape: Shape, seconds: float) -> Appended:
    """Append as fast as commits go: every stream has an event in every commit."""
    store = TimedStore(make_store(folder))
    async with opened(store) as journal:
        tasks = [f"task-{n}" for n in range(shape.streams)]
        for slot, task_id in enumerate(tasks):
            start(journal, task_id, slot)
        await journal.synced(journal.head.next_seq)
        store.commit_ns.clear()
        commits = at = 0
        began, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds:
            for task_id in tasks:
                journal.append_entries(task_id, 1, batch(shape.entries, at))
            await journal.committed(journal.head.next_seq)
            commits += 1
            at += shape.entries
        wall, used = time.perf_counter() - began, time.process_time() - cpu
    entries = commits * shape.streams * shape.entries
    return Appended(shape, commits, entries, wall, used, statistics.median(store.commit_ns) / 1000)


async def keep(folder: Path, shape: Shape, tokens: int) -> Kept:
    """Fill a journal with ended tasks, look at its size before and after compaction, and replay it."""
    store = make_store(folder)
    waves = max(1, tokens // (shape.streams * shape.tokens))
    async with opened(store) as journal:
        transcripts = Transcripts(journal, TaskTexts(journal), compact=False)
        await journal.synced(journal.head.next_seq)
        empty = _used_bytes(folder)
        live_bytes = 0
        ended: list[str] = []
        for wave in range(waves):
            tasks = [f"task-{wave}-{n}" for n in range(shape.streams)]
            for slot, task_id in enumerate(tasks):
                start(journal, task_id, slot)
            for at in range(0, shape.tokens, shape.entries):
                for task_id in tasks:
                    journal.append_entries(task_id, 1, batch(shape.entries, at))
                await journal.committed(journal.head.next_seq)
            if wave == 0:
                await journal.synced(journal.head.next_seq)
                live_bytes = (_used_bytes(folder) - empty) * waves
            for task_id in tasks:
                end(journal, task_id, shape.tokens)
            ended += tasks
            await journal.synced(journal.head.next_seq)
        transcripts.start()
        await _transcribed(journal)
        await journal.synced(journal.head.next_seq)
        await _compact(journal, ended)
        await transcripts.close()
    began = time.process_time()
    replayed = replay(store)
    used = time.process_time() - began
    compacted = _used_bytes(folder) - empty
    store.close()
    total = waves * shape.streams * shape.tokens
    return Kept(shape, total, replayed.frame_no, live_bytes, compacted, used)


async def _compact(journal: Journal, task_ids: Sequence[str]) -> None:
    """Drop every ended task's entries from the frames, a few hundred frames with each commit."""
    rewrites = [
        (frame.frame_no, texts)
        for frame in journal.store.frames(1)
        if (texts := drop_chunks(frame, lambda chunk: not chunk.is_transcript)) is not None
    ]
    for at in range(0, len(rewrites), 500):
        journal.stage_rewrites(rewrites[at : at + 500])
        start(journal, f"tick-{at}", 0)
        end(journal, f"tick-{at}", 0)
        await journal.committed(journal.head.next_seq)
    await _transcribed(journal)


async def _transcribed(journal: Journal) -> None:
    """Wait until every ended task has its transcript."""
    done = asyncio.Event()

    def look(records: object) -> None:
        if not journal.head.tasks.closing:
            done.set()

    journal.on_committed(look)
    look(None)
    await done.wait()


def _used_bytes(folder: Path) -> int:
    """Bytes of pages in use, the log included once it would be copied."""
    with closing(sqlite3.connect(f"file:{folder}/journal.db?mode=ro", uri=True)) as database:
        pages, free, size = (
            database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


def append_table(rows: Sequence[Appended]) -> str:
    """What a commit and an entry cost."""
    head = [
        "streams × entries",
        "entries/s",
        "µs per commit",
        "CPU µs per commit",
        "store alone, µs",
        "CPU µs per entry",
    ]
    cells = [
        [
            row.shape.name,
            figure(row.entries / row.wall_s),
            figure(row.wall_s / row.commits * 1e6),
            figure(row.cpu_s / row.commits * 1e6),
            figure(row.store_us),
            figure(row.cpu_s / row.entries * 1e6),
        ]
        for row in rows
    ]
    return table(head, cells)


def kept_table(rows: Sequence[Kept]) -> str:
    """Bytes per token, and replay."""
    head = [
        "streams × entries",
        "tokens",
        "frames",
        "bytes per token, live",
        "compacted",
        "tokens/s replayed",
        "frames/s",
    ]
    cells = [
        [
            row.shape.name,
            figure(row.tokens),
            figure(row.frames),
            figure(row.live_bytes / row.tokens),
            figure(row.compacted_bytes / row.tokens),
            figure(row.tokens / row.replay_cpu_s),
            figure(row.frames / row.replay_cpu_s),
        ]
        for row in rows
    ]
    return table(head, cells)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journal", description="Appending and replaying, alone.")
    parser.add_argument("--folder", type=Path, help="where the journals lie meanwhile: choose the disk to measure")
    parser.add_argument("--seconds", type=float, default=2.0, help="per row of appends (default 2)")
    parser.add_argument("--tokens", type=int, default=200_000, help="per journal that is replayed (default 200,000)")
    options = parser.parse_args(words)
    appended, kept = [], []
    for shape in APPENDS:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(f"append {shape.name}", file=sys.stderr, flush=True)
            appended.append(asyncio.run(append(Path(folder), shape, options.seconds)))
    for shape in REPLAYS:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(f"replay {shape.name}", file=sys.stderr, flush=True)
            kept.append(asyncio.run(keep(Path(folder), shape, options.tokens)))
    print(f"## Append\n\n{append_table(appended)}\n\n## Keep and replay\n\n{kept_table(kept)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
