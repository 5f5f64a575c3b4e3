from __future__ import annotations

import asyncio

from benchmarks.check import restart_bars
from benchmarks.journal import make_store
from benchmarks.restart import Built, Start, report, write_past, write_tail

from llama_orch.core.journal.replay import replay
from llama_orch.core.journal.verify import verify

BUILT = Built(
    events=10_000_000,
    tail_events=200_000,
    tokens_per_task=200,
    tasks=48_000,
    running=64,
    database_bytes=400_000_000,
    snapshot_bytes=4_000_000,
    build_s=60.0,
    snapshot_s=8.0,
)


def start(how: str, ready_s: float, waited_s: float = 0.0) -> Start:
    return Start(how=how, answered_s=ready_s - 0.1, ready_s=ready_s, cpu_s=1.0, waited_s=waited_s, rss_mb=90.0)


def test_what_is_written_is_a_journal_that_verifies_and_its_last_streams_run(tmp_path):
    tasks = write_past(tmp_path, events=2_000, tokens=8)
    tasks, running = asyncio.run(write_tail(tmp_path, upto_seq=5_000, tokens=8, first_task=tasks))
    store = make_store(tmp_path)
    found = verify(store)
    head = replay(store).head
    store.close()
    assert found.findings == []
    assert found.next_seq >= 5_000
    assert found.dropped_frames > 0
    assert running == len(head.tasks.live) > 0
    assert len(head.tasks.keys) == tasks
    assert any(state.entries for state in head.tasks.live.values())


def test_the_start_with_the_snapshot_is_held_against_the_bar():
    starts = [start("snapshot", 1.9), start("snapshot", 1.5), start("snapshot", 3.0), start("no snapshot", 20.0)]
    assert [bar.held for bar in restart_bars(BUILT, starts)] == [True]
    assert [bar.held for bar in restart_bars(BUILT, [start("snapshot", 2.1)])] == [False]
    assert [bar.held for bar in restart_bars(BUILT, [start("no snapshot", 0.5)])] == [False]


def test_what_others_took_of_the_machine_is_not_the_servers_but_its_own_work_is():
    assert start("snapshot", 4.5, waited_s=3.0).own_s == 1.5
    assert start("snapshot", 4.5, waited_s=4.4).own_s == 1.0


def test_the_report_tells_what_was_built_and_both_ways_to_start():
    text = report(BUILT, [start("snapshot", 1.9), start("no snapshot", 20.0)])
    assert "10,000,000 events" in text
    assert "| snapshot " in text
    assert "| no snapshot " in text
