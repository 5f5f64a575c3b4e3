"""How long a restart takes on a long journal: from exec to answering and to serving (PERF-5).

`python -m benchmarks.restart`. A journal of so many events is written: tasks with their prompts and idempotency keys,
decoded side by side, ended, transcribed and compacted. The last events are the tail, behind the snapshot that the
product's own command writes; they go through the journal itself, whose writer leaves off in the middle of its streams.
The server is started on that, with the snapshot and without, and asked `GET /readyz` until it answers, and until it
is ready. Events are all that has a seq: facts, and chunks of entries of one token each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llama_orch.core.entries import Transcript, pack_transcript
from llama_orch.core.events.lease import LeaseGranted, LeaseReleased
from llama_orch.core.events.task import (
    DecisionRecord,
    TaskAdmitted,
    TaskEnded,
    TaskPlaced,
    TaskStarted,
    TaskTranscribed,
)
from llama_orch.core.frames import FLAG_TRANSCRIPT, LEAF_BYTES, SALT_BYTES, Chunk, Fact, make_chunk, seal
from llama_orch.core.journal.index import pack_frame_numbers
from llama_orch.core.journal.pending import stream_name
from llama_orch.core.ports import BodyPiece, CommitUnit, IndexRow, JournalStore
from llama_orch.core.registry import encode_payload, load_all, type_of
from llama_orch.core.services.bodies import RequestBody, content_id
from llama_orch.core.services.texts import TaskTexts
from llama_orch.core.services.transcripts import Transcripts

from . import native
from .journal import batch, make_store, opened
from .processes import Service, fetch, free_port
from .report import figure, table
from .targets import orchestrator_configuration, orchestrator_program

#: PERF-5: from exec to serving, with snapshot and tail
BAR_S = 2.0
_STREAMS = 64
_POOL = "bench"
_MODEL = "mock"
_DAY_NS = 86_400_000_000_000
_LIMIT_S = 300.0


class Start(msgspec.Struct, frozen=True):
    """One start of the server; seconds."""

    #: "snapshot" or "no snapshot"
    how: str
    #: from exec until a socket answered GET /readyz with any status
    answered_s: float
    #: from exec until it answered 200
    ready_s: float
    #: CPU of the server's processes until it was ready
    cpu_s: float
    #: what its threads waited for a core meanwhile, all together
    waited_s: float
    rss_mb: float

    @property
    def own_s(self) -> float:
        """From exec to ready, less what the machine's other work took; at least the CPU time."""
        return max(self.cpu_s, self.ready_s - self.waited_s)


class Built(msgspec.Struct, frozen=True):
    """The journal that the starts are measured on."""

    events: int
    tail_events: int
    tokens_per_task: int
    tasks: int
    #: tasks that were running when the writer died
    running: int
    database_bytes: int
    snapshot_bytes: int
    build_s: float
    snapshot_s: float


def prompt_of(task_id: str) -> tuple[str, BodyPiece]:
    """Address and row of a task's own prompt."""
    raw = msgspec.json.encode(RequestBody(prompt=f"[bench n=64] {task_id} " + "x" * 200), order="sorted")
    body_id = content_id(raw)
    return body_id, BodyPiece("local", body_id, 0, 1, raw)


def first_events(task_id: str, slot: int, now_ns: int) -> tuple[list[object], BodyPiece]:
    """All that comes before a task's first token, and its prompt."""
    decision = DecisionRecord(
        selected_pool_id=_POOL,
        candidates_considered=[_POOL],
        filters_applied=[],
        scores_ms={_POOL: 1},
        tie_breakers_applied=[],
        pinned=False,
        fallback_used=False,
        decision_reason="the only pool",
        policy="default",
        policy_version="1",
    )
    body_id, row = prompt_of(task_id)
    events: list[object] = [
        TaskAdmitted(
            task_id=task_id,
            owner="local",
            group=_MODEL,
            model_ref=_MODEL,
            workload="completion",
            priority="interactive",
            body_id=body_id,
            request_digest=body_id.removeprefix("sha256:"),
            idempotency_digest=hashlib.sha256(task_id.encode()).hexdigest(),
            idempotency_until_ns=now_ns + _DAY_NS,
            seed=1,
            api="tasks",
        ),
        TaskPlaced(task_id=task_id, attempt=1, pool_id=_POOL, replica_id="r0", decision=decision),
        LeaseGranted(lease_id=f"l-{task_id}", pool_id=_POOL, task_id=task_id, attempt=1, slot=slot),
        TaskStarted(
            task_id=task_id, attempt=1, pool_id=_POOL, replica_id="r0", engine="mock", engine_version="1", seed=1
        ),
    ]
    return events, row


def last_events(task_id: str, entries: int) -> list[object]:
    """A task's end, and its slot's release."""
    return [
        TaskEnded(task_id=task_id, outcome="completed", finish_reason="length", entries=entries, tokens_out=entries),
        LeaseReleased(lease_id=f"l-{task_id}", pool_id=_POOL, task_id=task_id, cause="slot-free"),
    ]


def name_of(number: int) -> str:
    """The id of a task; ids come in no order, as those of a server do."""
    return str(uuid.UUID(bytes=hashlib.sha256(number.to_bytes(8, "big")).digest()[:16], version=4))


class Past:
    """Writes frames as they stand once they are compacted: facts and transcripts, and the root of the tokens' leaves.

    It does what the journal does, less all that a live journal is for, so that ten million events take a minute.
    """

    def __init__(self, store: JournalStore) -> None:
        load_all()
        self._store = store
        tail = store.open()
        self._epoch, self._frame_no, self.next_seq, self._hash = tail.epoch, tail.frame_no + 1, tail.next_seq, tail.hash
        self._positions: dict[str, int] = {}

    def commit(
        self,
        events: Sequence[object],
        *,
        chunks: Sequence[Chunk] = (),
        dropped: int = 0,
        bodies: Sequence[BodyPiece] = (),
        index: Sequence[IndexRow] = (),
    ) -> int:
        """One frame of these events, and of ``dropped`` chunks of entries; its number."""
        facts, now_ns = [], time.time_ns()
        for offset, payload in enumerate(events):
            declared = type_of(payload)
            stream = stream_name(declared, payload)
            position = self._positions.get(stream, 0)
            self._positions[stream] = position + 1
            raw = msgspec.Raw(encode_payload(payload))
            facts.append(
                Fact(offset, stream, position, declared.name, declared.version, now_ns, "benchmark", "bench", raw)
            )
        count = len(events) + dropped
        if dropped:
            chunks = [Chunk(1, 1, 1, 1, 1, 0, b"", None, os.urandom(LEAF_BYTES))]
        frame = seal(
            frame_no=self._frame_no,
            epoch=self._epoch,
            first_seq=self.next_seq,
            count=count,
            prev_hash=self._hash,
            facts=facts,
            chunks=chunks,
        )
        self._store.commit(CommitUnit(frame=frame, bodies=list(bodies), index=list(index)))
        self._hash, self.next_seq, self._frame_no = frame.hash, frame.end_seq, frame.frame_no + 1
        if frame.frame_no % 5000 == 0:
            self._store.sync(self._hash, self.next_seq)
            self._store.maintain()
        return frame.frame_no

    def close(self) -> None:
        """Sync and close."""
        self._store.sync(self._hash, self.next_seq)
        self._store.maintain()
        self._store.close()

    def wave(self, first_task: int, tokens: int) -> None:
        """Tasks that begin, stream and end side by side; everything of them, compacted."""
        names = [name_of(first_task + n) for n in range(_STREAMS)]
        now_ns, first_seq = time.time_ns(), self.next_seq
        begun = [first_events(task_id, slot, now_ns) for slot, task_id in enumerate(names)]
        admitted = self.commit([e for events, _ in begun for e in events], bodies=[row for _, row in begun])
        frames = [self.commit([], dropped=_STREAMS) for _ in range(tokens)]
        ended = self.commit([e for task_id in names for e in last_events(task_id, tokens)])
        spoken = pack_transcript(Transcript(epochs=[(self._epoch, 1)], batch=batch(tokens, first_task)))
        digest = hashlib.sha256(spoken).hexdigest()
        numbers, chunks, index = [first_seq + 4 * n for n in range(_STREAMS)], [], []
        for task_id, task_no in zip(names, numbers, strict=True):
            chunks.append(
                make_chunk(
                    task_no=task_no,
                    first_ordinal=1,
                    entries=0,
                    tokens=0,
                    attempt=1,
                    flags=FLAG_TRANSCRIPT,
                    salt=os.urandom(SALT_BYTES),
                    body=spoken,
                )
            )
            index.append(
                IndexRow(
                    task_id=task_id,
                    task_no=task_no,
                    owner="local",
                    state="completed",
                    model_ref=_MODEL,
                    session_id="",
                    admitted_ns=now_ns,
                    ended_ns=now_ns,
                    admitted_frame=admitted,
                    started_frame=admitted,
                    ended_frame=ended,
                    transcript_frame=self._frame_no,
                    entry_frames=pack_frame_numbers(frames),
                )
            )
        events = [TaskTranscribed(task_id=n, entries=tokens, digest=digest, bytes=len(spoken)) for n in names]
        self.commit(events, chunks=chunks, index=index)


def write_past(folder: Path, events: int, tokens: int) -> int:
    """A journal of ended tasks with about so many events; how many tasks."""
    past, tasks = Past(make_store(folder)), 0
    while past.next_seq < events:
        past.wave(tasks, tokens)
        tasks += _STREAMS
    past.close()
    return tasks


async def write_tail(folder: Path, upto_seq: int, tokens: int, first_task: int) -> tuple[int, int]:
    """Append by the journal itself until it holds so many events; how many tasks there are, and how many still run."""
    async with opened(make_store(folder)) as journal:
        transcripts = Transcripts(journal, TaskTexts(journal))
        transcripts.start()
        #: tokens that each running task has still to say
        running: dict[str, int] = {}
        tasks = first_task
        while journal.head.next_seq < upto_seq:
            while len(running) < _STREAMS:
                task_id, begun = name_of(tasks), tasks - first_task
                slot = next(iter(journal.head.leases.free_slots(_POOL, _STREAMS)), None)
                assert slot is not None
                events, row = first_events(task_id, slot, journal.now_ns())
                journal.append(events, actor="benchmark", correlation="bench", bodies=[row])
                # The first ones are cut short by different shares of their length, so that not all end at once.
                running[task_id] = tokens - (tokens * begun // _STREAMS if begun < _STREAMS else 0)
                tasks += 1
            for task_id in list(running):
                if running[task_id]:
                    running[task_id] -= 1
                    journal.append_entries(task_id, 1, batch(1, running[task_id] + tasks))
                else:
                    entries = journal.head.tasks.live[task_id].entries
                    journal.append(last_events(task_id, entries), actor="benchmark", correlation="bench")
                    del running[task_id]
            await journal.committed(journal.head.next_seq)
        while journal.head.tasks.closing:
            await asyncio.sleep(0.01)
        await transcripts.close()
    return tasks, len(running)


def configure(home: Path, port: int, engine_port: int, *, snapshots: bool) -> Path:
    """The server's configuration file."""
    settings = json.loads(orchestrator_configuration(port, engine_port, home / "data"))
    if not snapshots:
        settings["journal"] = {"snapshot_every": 0}
    path = home / "config.yaml"
    path.write_text(json.dumps(settings))
    path.chmod(0o600)
    return path


def build(home: Path, program: Path, events: int, tail: int, tokens: int) -> Built:
    """The journal and its snapshot."""
    data = home / "data"
    data.mkdir(mode=0o700)
    began = time.monotonic()
    tasks = write_past(data, events - tail, tokens)
    build_s = time.monotonic() - began
    path = configure(home, 1, 1, snapshots=True)
    began = time.monotonic()
    command = [str(program), "journal", "snapshot", "--json", "--config", str(path)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    snapshot_s = time.monotonic() - began
    past = json.loads(said)["next_seq"]
    began = time.monotonic()
    tasks, running = asyncio.run(write_tail(data, past + tail, tokens, tasks))
    return Built(
        events=past + tail,
        tail_events=tail,
        tokens_per_task=tokens,
        tasks=tasks,
        running=running,
        database_bytes=sum(file.stat().st_size for file in data.glob("journal.db*")),
        snapshot_bytes=sum(file.stat().st_size for file in (data / "snapshots").iterdir()),
        build_s=build_s + time.monotonic() - began,
        snapshot_s=snapshot_s,
    )


def waited_s(pids: Sequence[int]) -> float:
    """Seconds that the threads of these processes could have run, but waited for a core."""
    waited_ns = 0
    for pid in pids:
        for thread in Path("/proc", str(pid), "task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                waited_ns += int(thread.read_text().split()[1])
    return waited_ns / 1e9


def start_server(home: Path, program: Path, engine_port: int, how: str, number: int) -> Start:
    """Start the server, wait until it is ready, and kill it."""
    port = free_port()
    path = configure(home, port, engine_port, snapshots=how == "snapshot")
    began = time.perf_counter()
    service = Service("llama-orch", [str(program), "serve", "--config", str(path)], {}, home / f"log-{number}")
    try:
        answered_s = 0.0
        while True:
            status, _ = fetch(port, "/readyz", 10.0)
            now_s = time.perf_counter() - began
            if status and not answered_s:
                answered_s = now_s
            if status == 200:
                usage = service.usage()
                return Start(how, answered_s, now_s, usage.cpu_s, waited_s(service.pids()), usage.rss_mb)
            if now_s > _LIMIT_S:
                raise SystemExit(f"the server was not ready within {_LIMIT_S:.0f} s: {service.last_words()}")
            time.sleep(0.005)
    finally:
        service.kill()


def restore(home: Path, kept: Path) -> None:
    """The data directory as it was built: each start finds the same journal."""
    shutil.rmtree(home / "data", ignore_errors=True)
    shutil.copytree(kept, home / "data")


def measure(home: Path, options: argparse.Namespace, program: Path) -> tuple[Built, list[Start]]:
    """Build once, start in turns with the snapshot and without."""
    built = build(home, program, options.events, options.tail, options.tokens)
    print(f"built: {built}", file=sys.stderr, flush=True)
    kept = home / "kept"
    (home / "data").rename(kept)
    parts, engine_port = native.build(), free_port()
    engine = Service(
        "engine",
        [str(parts.engine), "--port", str(engine_port), "--slots", "512", "--context", "1000000"],
        {},
        home / "engine.log",
    )
    starts: list[Start] = []
    try:
        engine.wait_ready(engine_port, "/health")
        for round_no in range(options.rounds):
            for how in ("snapshot", "no snapshot"):
                if how != "snapshot" and (options.snapshot_only or round_no):
                    continue
                restore(home, kept)
                starts.append(start_server(home, program, engine_port, how, len(starts)))
                print(f"{starts[-1]}", file=sys.stderr, flush=True)
    finally:
        engine.stop()
    return built, starts


def middle(starts: Sequence[Start], how: str, name: str) -> float | None:
    """The median over the rounds."""
    values = [getattr(start, name) for start in starts if start.how == how]
    return statistics.median(values) if values else None


def report(built: Built, starts: Sequence[Start]) -> str:
    """The table, medians over the rounds."""
    names = ("answered_s", "ready_s", "own_s", "cpu_s", "rss_mb")
    rows = [
        [how, *(figure(middle(starts, how, name)) for name in names)]
        for how in ("snapshot", "no snapshot")
        if middle(starts, how, "ready_s") is not None
    ]
    head = ["start with", "exec to an answer, s", "to ready, s", "less waiting for a core, s", "CPU, s", "memory, MB"]
    said = (
        f"{built.events:,} events, {built.tasks:,} tasks of {built.tokens_per_task} tokens with a key each,"
        f" {built.running} running; the last {built.tail_events:,} events are behind the snapshot."
        f" Database {built.database_bytes / 1e6:,.0f} MB, snapshot {built.snapshot_bytes / 1e6:.1f} MB"
        f" in {figure(built.snapshot_s)} s."
    )
    return f"{said}\n\n{table(head, rows)}"


def arguments() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description="From exec to serving.")
    parser.add_argument("--folder", type=Path, help="where the journal lies meanwhile")
    parser.add_argument("--events", type=int, default=1_000_000, help="in the journal (the bar's: 10,000,000)")
    parser.add_argument("--tail", type=int, default=200_000, help="of them behind the snapshot (default 200,000)")
    parser.add_argument("--tokens", type=int, default=200, help="per task (default 200; 8 makes mostly facts)")
    parser.add_argument("--rounds", type=int, default=3, help="starts with the snapshot (default 3)")
    parser.add_argument("--snapshot-only", action="store_true", help="no start without the snapshot")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of the table")
    return parser


def measure_all(options: argparse.Namespace) -> tuple[Built, list[Start]]:
    """Build a journal in a folder of its own, and start the server on it."""
    program = orchestrator_program()
    if program is None:
        raise SystemExit("llama-orch is not installed: `make bench` installs it into .venv")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        return measure(Path(folder), options, program)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; exit 1 when the bar is missed."""
    options = arguments().parse_args(words)
    built, starts = measure_all(options)
    if options.json:
        print(msgspec.json.encode({"built": built, "starts": starts}).decode())
    else:
        print(report(built, starts))
    own_s = middle(starts, "snapshot", "own_s")
    return 0 if own_s is not None and own_s <= BAR_S else 1


if __name__ == "__main__":
    sys.exit(main())
