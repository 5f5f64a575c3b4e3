"""From exec to serving, with a journal of many events (PERF-5): `python -m benchmarks.start`.

Fills journals with ended tasks (64 streams side by side, one token to an event), writes a snapshot a tail of events
before the end, as the server does beside itself, and then starts the server as it is shipped until it answers.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llama_orch.core.journal.journal import Journal
from llama_orch.core.services.texts import TaskTexts
from llama_orch.core.services.transcripts import Transcripts

from .journal import batch, end, make_store, opened, start
from .processes import free_port
from .report import figure, table
from .targets import orchestrator_configuration, orchestrator_program

#: seconds from exec to the first answer with the largest journal (PERF-5)
BAR_S = 2.0
STREAMS, TOKENS = 64, 512
#: a server that does not answer within this many seconds has failed
_PATIENCE_S = 600


class Started(msgspec.Struct, frozen=True):
    """Figures of one journal."""

    events: int
    tail: int
    bytes: int
    seconds: list[float]
    #: without any snapshot
    cold_s: float


async def fill(folder: Path, events: int, first_wave: int) -> int:
    """Append about ``events`` events of ended tasks; the number of the next wave."""
    async with opened(make_store(folder)) as journal:
        transcripts = Transcripts(journal, TaskTexts(journal), compact=False)
        goal = journal.head.next_seq + events
        wave = first_wave
        while journal.head.next_seq < goal:
            tasks = [f"task-{wave}-{n}" for n in range(STREAMS)]
            for slot, task_id in enumerate(tasks):
                start(journal, task_id, slot)
            for at in range(TOKENS):
                for task_id in tasks:
                    journal.append_entries(task_id, 1, batch(1, at))
                await journal.committed(journal.head.next_seq)
            for task_id in tasks:
                end(journal, task_id, TOKENS)
            await journal.synced(journal.head.next_seq)
            wave += 1
        transcripts.start()
        await _quiet(journal)
        await transcripts.close()
    return wave


async def _quiet(journal: Journal) -> None:
    while journal.head.tasks.closing:
        await journal.committed(journal.head.next_seq)
        await asyncio.sleep(0.01)


def exec_to_answer(configuration: Path, port: int) -> float:
    """Seconds until the server answers; it is stopped again."""
    program = orchestrator_program()
    assert program is not None, "llama-orch is not installed beside this interpreter"
    began = time.perf_counter()
    server = subprocess.Popen([str(program), "serve", "--config", str(configuration)], stdout=subprocess.DEVNULL)
    try:
        while time.perf_counter() - began < _PATIENCE_S:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/v1/queue", headers={"Authorization": "Bearer x"})
                if connection.getresponse().status == 200:
                    return time.perf_counter() - began
            except OSError:
                time.sleep(0.002)
            finally:
                connection.close()
            if server.poll() is not None:
                msg = f"the server ended with status {server.returncode}"
                raise RuntimeError(msg)
        msg = f"the server did not answer within {_PATIENCE_S} s"
        raise RuntimeError(msg)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def measure(folder: Path, events: int, tail: int, rounds: int, *, cold: bool) -> Started:
    """Fill one journal and start the server on it."""
    data = folder / "data"
    data.mkdir(mode=0o700)
    port = free_port()
    configuration = folder / "config.yaml"
    settings = json.loads(orchestrator_configuration(port, free_port(), data))
    settings["journal"] = {"snapshot_every": 1_000_000_000}
    configuration.write_text(json.dumps(settings))
    configuration.chmod(0o600)
    print(f"filling {events:,} events", file=sys.stderr, flush=True)
    wave = asyncio.run(fill(data, events - tail, 0))
    cold_s = exec_to_answer(configuration, port) if cold else 0.0
    program = orchestrator_program()
    subprocess.run([str(program), "journal", "snapshot", "--config", str(configuration)], check=True, stdout=sys.stderr)
    asyncio.run(fill(data, tail, wave))
    print("starting", file=sys.stderr, flush=True)
    seconds = [exec_to_answer(configuration, port) for _ in range(rounds)]
    size = sum(path.stat().st_size for path in data.glob("journal.db*"))
    return Started(events, tail, size, seconds, cold_s)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; exit 1 when the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description="From exec to serving.")
    parser.add_argument("--folder", type=Path, help="where the journals lie meanwhile")
    parser.add_argument("--events", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--tail", type=int, default=50_000, help="events behind the snapshot (default 50,000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="start once without a snapshot, too")
    options = parser.parse_args(words)
    found = []
    for events in options.events:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found.append(
                measure(Path(folder), events, min(options.tail, events // 2), options.rounds, cold=options.cold)
            )
    head = ["events", "behind the snapshot", "journal, MB", "exec to serving, s", "slowest, s", "without a snapshot, s"]
    rows = [
        [
            f"{one.events:,}",
            f"{one.tail:,}",
            figure(one.bytes / 1e6),
            f"{statistics.median(one.seconds):.2f}",
            f"{max(one.seconds):.2f}",
            f"{one.cold_s:.2f}" if one.cold_s else "",
        ]
        for one in found
    ]
    print(table(head, rows))
    return 0 if statistics.median(found[-1].seconds) < BAR_S else 1


if __name__ == "__main__":
    sys.exit(main())
