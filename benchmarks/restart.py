"""How long a restart takes on a long journal: from exec to answering and to serving (PERF-5).

`python -m benchmarks.restart`. A journal of so many events is written through the real journal: tasks with their
prompts and idempotency keys, decoded side by side, ended, transcribed and compacted. The last events are the tail,
behind the snapshot that the product's own command writes; then the writer dies in the middle of its streams. The
server is started on that, with the snapshot and without, and asked `GET /readyz` until it answers, and until it is
ready. Events are all that has a seq: facts, and chunks of entries of one token each.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llama_orch.core.events.lease import LeaseGranted, LeaseReleased
from llama_orch.core.events.task import DecisionRecord, TaskAdmitted, TaskEnded, TaskPlaced, TaskStarted
from llama_orch.core.journal.journal import Journal
from llama_orch.core.ports import BodyPiece
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
    rss_mb: float


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


def begin(journal: Journal, task_id: str) -> None:
    """Append all that comes before a task's first token."""
    slot = journal.head.leases.free_slot(_POOL, _STREAMS)
    assert slot is not None
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
            idempotency_until_ns=journal.now_ns() + _DAY_NS,
            seed=1,
            api="tasks",
        ),
        TaskPlaced(task_id=task_id, attempt=1, pool_id=_POOL, replica_id="r0", decision=decision),
        LeaseGranted(lease_id=f"l-{task_id}", pool_id=_POOL, task_id=task_id, attempt=1, slot=slot),
        TaskStarted(
            task_id=task_id, attempt=1, pool_id=_POOL, replica_id="r0", engine="mock", engine_version="1", seed=1
        ),
    ]
    journal.append(events, actor="benchmark", correlation=task_id, bodies=[row])


def end(journal: Journal, task_id: str) -> None:
    """Append the task's end, and its slot's release."""
    n = journal.head.tasks.live[task_id].entries
    events: list[object] = [
        TaskEnded(task_id=task_id, outcome="completed", finish_reason="length", entries=n, tokens_out=n),
        LeaseReleased(lease_id=f"l-{task_id}", pool_id=_POOL, task_id=task_id, cause="slot-free"),
    ]
    journal.append(events, actor="benchmark", correlation=task_id)


async def write(folder: Path, upto_seq: int, tokens: int, first_task: int, *, leave_running: bool) -> tuple[int, int]:
    """Append until the journal holds so many events; how many tasks there were, and how many still run.

    Tasks begin one after the other, so that at any time they are at different tokens.
    """
    async with opened(make_store(folder)) as journal:
        transcripts = Transcripts(journal, TaskTexts(journal))
        transcripts.start()
        running: dict[str, int] = {}
        tasks = first_task
        told = time.monotonic()
        while (more := journal.head.next_seq < upto_seq) or (running and not leave_running):
            while more and len(running) < _STREAMS:
                task_id = f"00000000-0000-4000-8000-{tasks:012d}"
                begin(journal, task_id)
                # The first ones are cut short by different shares of their length.
                running[task_id] = tokens - (
                    tokens * (tasks - first_task) // _STREAMS if tasks - first_task < _STREAMS else 0
                )
                tasks += 1
            for task_id in list(running):
                if not running[task_id]:
                    end(journal, task_id)
                    del running[task_id]
                else:
                    running[task_id] -= 1
                    journal.append_entries(task_id, 1, batch(1, running[task_id] + tasks))
            await journal.committed(journal.head.next_seq)
            # The syncer and the compaction go beside.
            await asyncio.sleep(0)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{journal.head.next_seq:,} of {upto_seq:,} events", file=sys.stderr, flush=True)
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
    tasks, _ = asyncio.run(write(data, events - tail, tokens, 0, leave_running=False))
    built_s = time.monotonic() - began
    path = configure(home, 1, 1, snapshots=True)
    began = time.monotonic()
    command = [str(program), "journal", "snapshot", "--json", "--config", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    snapshot_s = time.monotonic() - began
    began = time.monotonic()
    tasks, running = asyncio.run(write(data, events, tokens, tasks, leave_running=True))
    return Built(
        events=events,
        tail_events=tail,
        tokens_per_task=tokens,
        tasks=tasks,
        running=running,
        database_bytes=(data / "journal.db").stat().st_size,
        snapshot_bytes=sum(file.stat().st_size for file in (data / "snapshots").iterdir()),
        build_s=built_s + time.monotonic() - began,
        snapshot_s=snapshot_s,
    )


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
                return Start(how, answered_s, now_s, usage.cpu_s, usage.rss_mb)
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
    names = ("answered_s", "ready_s", "cpu_s", "rss_mb")
    rows = [
        [how, *(figure(middle(starts, how, name)) for name in names)]
        for how in ("snapshot", "no snapshot")
        if middle(starts, how, "ready_s") is not None
    ]
    head = ["start with", "exec to an answer, s", "to ready, s", "CPU until ready, s", "memory, MB"]
    said = (
        f"{built.events:,} events, {built.tasks:,} tasks of {built.tokens_per_task} tokens with a key each,"
        f" {built.running} running; the last {built.tail_events:,} events are behind the snapshot."
        f" Database {built.database_bytes / 1e6:,.0f} MB, snapshot {built.snapshot_bytes / 1e6:.1f} MB"
        f" in {figure(built.snapshot_s)} s."
    )
    return f"{said}\n\n{table(head, rows)}"


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; exit 1 when the bar is missed, 2 when it cannot be measured here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description="From exec to serving.")
    parser.add_argument("--folder", type=Path, help="where the journal lies meanwhile")
    parser.add_argument("--events", type=int, default=1_000_000, help="in the journal (the bar's: 10,000,000)")
    parser.add_argument("--tail", type=int, default=200_000, help="of them behind the snapshot (default 200,000)")
    parser.add_argument("--tokens", type=int, default=200, help="per task (default 200; 8 makes mostly facts)")
    parser.add_argument("--rounds", type=int, default=3, help="starts with the snapshot (default 3)")
    parser.add_argument("--snapshot-only", action="store_true", help="no start without the snapshot")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of the table")
    options = parser.parse_args(words)
    program = orchestrator_program()
    if program is None:
        print("llama-orch is not installed: `make bench` installs it into .venv", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        built, starts = measure(Path(folder), options, program)
    if options.json:
        print(msgspec.json.encode({"built": built, "starts": starts}).decode())
    else:
        print(report(built, starts))
    ready_s = middle(starts, "snapshot", "ready_s")
    return 0 if ready_s is not None and ready_s <= BAR_S else 1


if __name__ == "__main__":
    sys.exit(main())
