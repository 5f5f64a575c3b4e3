"""Writes a golden journal: every event type and every kind of chunk, with fixed ids, clock and salts.

``python -m tests.golden.make tests/golden/vN`` was run once for each released format. A golden journal is never made
anew after its release: it stands for the journals that people have.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from llama_orch.core.entries import Transcript, batch_of, join, pack_transcript
from llama_orch.core.events.lease import LeaseGranted, LeaseReleased
from llama_orch.core.events.pool import PoolDeclared, PoolDraining, PoolReady, PoolRetired, PoolUnready
from llama_orch.core.events.server import ConfigApplied, ServerStopped
from llama_orch.core.events.session import SessionClosed, SessionOpened
from llama_orch.core.events.task import (
    DecisionRecord,
    FilterRecord,
    PlacementRecord,
    TaskAdmitted,
    TaskAttemptFailed,
    TaskCancelled,
    TaskEnded,
    TaskPlaced,
    TaskRejected,
    TaskStarted,
    TaskTranscribed,
)
from llama_orch.core.frames import drop_chunks
from llama_orch.core.journal.index import pack_frame_numbers
from llama_orch.core.journal.journal import Journal, JournalOptions
from llama_orch.core.ports import IndexRow
from llama_orch.core.services.bodies import pieces
from llama_orch.core.types import Entry
from llama_orch.plugins.manager import PluginManager

from . import clients_story, pools_story
from .states import add

START_NS = 1_790_000_000_000_000_000


class _Clock:
    def __init__(self) -> None:
        self._ns = START_NS

    def now_ns(self) -> int:
        self._ns += 1_000_000
        return self._ns

    def monotonic_ns(self) -> int:
        return self._ns


class _Salts:
    def __init__(self) -> None:
        self._count = 0

    def __call__(self, n: int) -> bytes:
        self._count += 1
        return hashlib.shake_128(str(self._count).encode()).digest(n)


def _decision() -> DecisionRecord:
    return DecisionRecord(
        selected_pool_id="p",
        candidates_considered=["p", "q"],
        filters_applied=[FilterRecord(name="ready", excluded={"q": "not ready: starting"})],
        scores_ms={"p": 1200},
        tie_breakers_applied=[],
        pinned=False,
        fallback_used=False,
        decision_reason="the only pool that can take it now",
        policy="default",
        policy_version="1",
    )


def _admitted(task_id: str, body_id: str, **more: object) -> TaskAdmitted:
    return TaskAdmitted(
        task_id=task_id,
        owner="local",
        group="m",
        model_ref="m",
        workload="completion",
        priority="interactive",
        body_id=body_id,
        request_digest="d" * 64,
        seed=42,
        **more,  # type: ignore[arg-type]
    )


def _started(task_id: str, attempt: int, **more: object) -> TaskStarted:
    return TaskStarted(
        task_id=task_id,
        attempt=attempt,
        pool_id="p",
        replica_id="r0",
        engine="mock",
        engine_version="1",
        seed=42,
        **more,  # type: ignore[arg-type]
    )


async def _write(folder: Path) -> None:
    database = folder / "journal.db"
    store = PluginManager(entry_points=False).journal_stores()["sqlite"](f"sqlite:///{database}", {})
    journal = Journal(store, _Clock(), JournalOptions(version="golden"), urandom=_Salts())
    await journal.open()
    texts: dict[str, str] = {}

    async def append(*events: object, bodies: object = ()) -> None:
        await journal.synced(journal.append(list(events), actor="test", correlation="c-1", bodies=bodies))  # type: ignore[arg-type]

    async def say(task_id: str, attempt: int, entries: list[Entry]) -> None:
        assert journal.append_entries(task_id, attempt, batch_of(entries))
        texts[task_id] = texts.get(task_id, "") + "".join(e.text for e in entries)
        await journal.committed(journal.head.next_seq)

    await append(ConfigApplied(digest="c" * 64, config="{}"))
    await append(
        PoolDeclared(pool_id="p", engine="mock", model_ref="m", aliases=["mm"], slots=2, queue_capacity=10),
        PoolDeclared(pool_id="q", engine="mock", model_ref="m"),
        PoolUnready(pool_id="q", cause="starting", detail="loading", advice="wait", retry_ms=500),
        PoolReady(pool_id="p", replica_id="r0", generation=1, engine_version="1", slots=2, ctx=4096, decode_mtok_s=9),
    )
    await append(PoolDraining(pool_id="q", deadline_ms=1000), PoolRetired(pool_id="q"))
    body_id, rows = pieces("local", b'{"prompt":"hello"}')
    # One task that ended, was transcribed and compacted, after an attempt that broke off.
    await append(
        SessionOpened(session_id="s-1", owner="local", ttl_ms=600_000, turn_limit=8),
        _admitted("t-done", body_id, session_id="s-1", sampling={"temperature": "0.8"}, deadline_ns=START_NS * 2),
        bodies=rows,
    )
    await append(
        TaskPlaced(task_id="t-done", attempt=1, pool_id="p", replica_id="r0", decision=_decision()),
        LeaseGranted(lease_id="l-1", pool_id="p", task_id="t-done", attempt=1, slot=0),
    )
    await append(_started("t-done", 1, prompt_tokens=3))
    await say("t-done", 1, [Entry(text=" the", ids=(5,))])
    await say("t-done", 1, [Entry(text="", tokens=1, ids_complete=False), Entry(text=" é", ids=(7,), logprob="-0.5")])
    await append(
        TaskAttemptFailed(task_id="t-done", attempt=1, pool_id="p", code="cut", message="broke off"),
        LeaseReleased(lease_id="l-1", pool_id="p", task_id="t-done", cause="engine-gone"),
    )
    await append(
        TaskPlaced(task_id="t-done", attempt=2, pool_id="p", replica_id="r0", decision=_decision()),
        LeaseGranted(lease_id="l-2", pool_id="p", task_id="t-done", attempt=2, slot=1),
        _started("t-done", 2, resumed_at=3, recovery_used="regenerate"),
    )
    await say("t-done", 2, [Entry(text="why", channel="reasoning", ids=(8, 9), tokens=2), Entry(text="!", choice=1)])
    await append(
        TaskEnded(task_id="t-done", outcome="completed", finish_reason="stop", entries=5, tokens_out=6, attempts=2),
        LeaseReleased(lease_id="l-2", pool_id="p", task_id="t-done", cause="slot-free"),
    )
    state = journal.head.tasks.closing["t-done"]
    stream = journal.streams["t-done"]
    body = pack_transcript(Transcript(epochs=state.epochs, batch=join([s.batch for s in stream.segments])))
    row = IndexRow(
        task_id="t-done",
        task_no=state.task_no,
        owner="local",
        state="completed",
        model_ref="m",
        session_id="s-1",
        admitted_ns=state.admitted_ns,
        ended_ns=state.ended_ns,
        admitted_frame=state.admitted_frame,
        started_frame=state.started_frame,
        ended_frame=state.ended_frame,
        transcript_frame=journal.next_frame,
        entry_frames=pack_frame_numbers(state.entry_frames),
    )
    event = TaskTranscribed(task_id="t-done", entries=5, digest=hashlib.sha256(body).hexdigest(), bytes=len(body))
    frames = list(state.entry_frames)
    journal.append_transcript(state, event, body, row)
    await journal.synced(journal.head.next_seq)
    # One that was cancelled, one rejected, one that still runs with a key and placement wishes, one that waits.
    await append(_admitted("t-cancelled", body_id))
    await append(
        TaskCancelled(task_id="t-cancelled", reason="client"),
        TaskEnded(task_id="t-cancelled", outcome="cancelled", finish_reason="cancelled", entries=0, tokens_out=0),
    )
    await append(
        TaskRejected(task_id="t-no", owner="local", model_ref="x", code="MODEL_NOT_FOUND", reason="no such model"),
        SessionClosed(session_id="s-1", cause="expired"),
    )
    await append(
        _admitted(
            "t-runs",
            body_id,
            idempotency_digest="k" * 64,
            idempotency_until_ns=START_NS * 2,
            placement=PlacementRecord(mode="prefer", prefer_pools=["p"]),
        ),
        TaskPlaced(task_id="t-runs", attempt=1, pool_id="p", replica_id="r0", decision=_decision()),
        LeaseGranted(lease_id="l-3", pool_id="p", task_id="t-runs", attempt=1, slot=0),
        _started("t-runs", 1),
    )
    await say("t-runs", 1, [Entry(text=f" {n}", ids=(n,)) for n in range(40)])
    changed = [(f.frame_no, drop_chunks(f, lambda chunk: not chunk.is_transcript)) for f in store.frames_at(frames)]
    journal.stage_rewrites([(number, raw) for number, raw in changed if raw is not None])
    await append(_admitted("t-waits", body_id, prefixes=["a1b2c3d4e5f6"]))
    for batch in pools_story.batches():
        await append(*batch)
    own_body, own_rows = pieces("key-1", b'{"messages":[{"role":"user","content":"hello"}]}')
    first, *others = clients_story.batches(own_body)
    await append(*first, bodies=own_rows)
    for batch in others:
        await append(*batch)
    await append(ServerStopped(epoch=journal.epoch))
    expected = {
        "next_seq": journal.head.next_seq,
        "frames": journal.committed_frame,
        "texts": texts,
    }
    await journal.close()
    (folder / "expected.json").write_text(json.dumps(expected, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    """Write the journal into a new folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    asyncio.run(_write(folder))
    with closing(sqlite3.connect(folder / "journal.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
    for leftover in ("journal.db.lock", "journal.db-wal", "journal.db-shm"):
        (folder / leftover).unlink(missing_ok=True)
    add(folder)


if __name__ == "__main__":
    main()
