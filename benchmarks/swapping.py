"""Real llama.cpp pools that do not fit together: nothing lost, nothing on an unready pool; `python -m benchmarks.swapping`.

Three models of random weights, a configured cap of host memory that holds two of them, and clients that each want
another model every few tasks. What happened is read from the journal afterwards: every task that was accepted has
ended well, each was placed on a pool that was ready just then, and the pools that held memory never held more than the
cap at once. The table shows the loads and how long tasks waited.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml
from tests.engines.tiny_gguf import Shape, write_model

from llama_orch.core.events.pool import PoolLoading, PoolSized, PoolUnready
from llama_orch.core.events.task import TaskAdmitted, TaskEnded, TaskPlaced, TaskStarted
from llama_orch.core.journal.history import facts_of
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.projection import Recorded
from llama_orch.core.registry import load_all
from llama_orch.plugins.manager import PluginManager

from .report import table

MODELS = {
    "small": Shape(width=256, layers=6, heads=4, kv_heads=2, feed_forward=704, words=600, context=1024),
    "middle": Shape(width=320, layers=8, heads=5, kv_heads=5, feed_forward=960, words=600, context=1024, seed=8),
    "large": Shape(width=384, layers=10, heads=6, kv_heads=2, feed_forward=1024, words=600, context=1024, seed=9),
}
PATIENCE_S = 600.0


class Swaps(msgspec.Struct, frozen=True, kw_only=True):
    """What one run showed."""

    tasks: int
    completed: int
    loads: dict[str, int]
    cap_mib: int
    #: most that pools held at once by the journal's ledger
    held_mib: int
    waits_ms: list[int]
    wall_s: float
    faults: list[str]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(folder: Path, settings: dict[str, Any]) -> Iterator[str]:
    """`llama-orch serve` with these settings; its URL. It is ended in order."""
    port = _free_port()
    config = folder / "llama-orch.yaml"
    config.write_text(yaml.safe_dump({**settings, "bind": f"127.0.0.1:{port}", "data_dir": str(folder / "data")}))
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "llama_orch.cli.main", "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


async def _sizes(client: httpx.AsyncClient) -> dict[str, int]:
    """What each pool needs, once its host has said so."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                needs = {}
                for name in MODELS:
                    (pool,) = (await client.get(f"/v1/placement/{name}")).json()["pools"]
                    needs[name] = int(pool["needs_bytes"])
                if all(needs.values()):
                    return needs
            except (httpx.TransportError, KeyError):
                pass
            await asyncio.sleep(0.1)


async def _client(client: httpx.AsyncClient, number: int, tasks: int, results: list[dict[str, Any]]) -> None:
    """One agent: a few tasks of a model, one after the other, then of another."""
    chance = random.Random(number)
    model = chance.choice(sorted(MODELS))
    for count in range(tasks):
        if count % 4 == 0:
            model = chance.choice(sorted(MODELS))
        request = {
            "model_ref": model,
            "prompt": " ".join(["word"] * chance.randrange(2, 60)),
            "max_tokens": chance.randrange(4, 32),
            "priority": chance.choice(["interactive", "interactive", "batch"]),
        }
        answer = await client.post("/v1/tasks", json=request)
        answer.raise_for_status()
        task_id = answer.json()["task_id"]
        while True:
            info = (await client.get(f"/v1/tasks/{task_id}", params={"wait": 30_000}, timeout=60)).json()
            if info["state"] in ("completed", "failed", "cancelled"):
                break
        results.append(info)


def audit(data_dir: Path, cap_mib: int) -> Swaps:
    """What the journal says of the run."""
    load_all()
    store = PluginManager(entry_points=False).journal_stores()["sqlite"](f"sqlite:///{data_dir / 'journal.db'}", {})
    store.open()
    records: list[Recorded] = [record for frame in store.frames(1) for record in facts_of(frame)]
    store.close()
    head, faults = Head(), []
    admitted: dict[str, int] = {}
    ended: dict[str, str] = {}
    waits, held_most, loads = [], 0, dict.fromkeys(MODELS, 0)
    for record in records:
        event = record.payload
        if isinstance(event, TaskPlaced):
            pool = head.pools.by_id[event.pool_id]
            if not pool.ready or pool.draining:
                faults.append(f"{event.task_id} was placed on {event.pool_id}, which was not ready ({pool.cause})")
        head.fold(record)
        if isinstance(event, TaskAdmitted):
            admitted[event.task_id] = record.time_ns
        elif isinstance(event, TaskStarted) and event.attempt == 1:
            waits.append((record.time_ns - admitted[event.task_id]) // 1_000_000)
        elif isinstance(event, TaskEnded):
            ended[event.task_id] = event.outcome
        elif isinstance(event, PoolLoading):
            loads[head.pools.by_id[event.pool_id].declared.model_ref] += 1
        elif isinstance(event, PoolUnready) and event.cause in ("ram-short", "host-oom"):
            faults.append(f"{event.pool_id}: {event.cause} {event.detail}")
        held = sum(sum(pool.reserved_bytes.values()) for pool in head.pools.by_id.values())
        held_most = max(held_most, held)
    faults += [f"{task_id} has no end" for task_id in admitted if task_id not in ended]
    faults += [f"{task_id} ended {how}" for task_id, how in ended.items() if how != "completed"]
    if held_most > cap_mib * 2**20:
        faults.append(f"pools held {held_most >> 20} MiB of {cap_mib} MiB")
    if not any(isinstance(record.payload, PoolSized) for record in records):
        faults.append("no pool was sized")
    return Swaps(
        tasks=len(admitted),
        completed=sum(how == "completed" for how in ended.values()),
        loads=loads,
        cap_mib=cap_mib,
        held_mib=held_most >> 20,
        waits_ms=waits,
        wall_s=(records[-1].time_ns - records[0].time_ns) / 1e9,
        faults=faults,
    )


async def _drive(url: str, clients: int, tasks: int) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        await _sizes(client)
        each = [tasks // clients + (number < tasks % clients) for number in range(clients)]
        await asyncio.gather(*(_client(client, number, count, results) for number, count in enumerate(each)))
    return results


def settings_of(folder: Path, host_memory_mib: int) -> dict[str, Any]:
    """Three pools on the processors, loaded when they are asked for, and the cap on their memory."""
    return {
        "swap": {"host_memory_mib": host_memory_mib, "residence_ms": 1000},
        "pools": [
            {
                "id": name,
                "model": name,
                "devices": "cpu",
                "slots": 2,
                "ctx": 512,
                "preload": False,
                "provisioning": {"threads": 1},
            }
            for name in MODELS
        ],
        "models": {name: str(folder / f"{name}.gguf") for name in MODELS},
    }


def run(folder: Path, *, clients: int, tasks: int) -> Swaps:
    """One run in an empty folder.

    :raises RuntimeError: the clients' answers are not what the journal says.
    """
    for name, shape in MODELS.items():
        write_model(folder / f"{name}.gguf", shape)
    # The cap comes from what the pools need: a first server says so.
    probe = folder / "probe"
    probe.mkdir()
    with server(probe, settings_of(folder, 0)) as url:

        async def ask() -> dict[str, int]:
            async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
                return await _sizes(client)

        needs = sorted(asyncio.run(ask()).values())
    cap_mib = (needs[-1] + needs[-2] >> 20) + 2
    if cap_mib << 20 >= sum(needs):
        msg = f"a cap of {cap_mib} MiB holds all three models: {needs}"
        raise RuntimeError(msg)
    with server(folder, settings_of(folder, cap_mib)) as url:
        results = asyncio.run(_drive(url, clients, tasks))
    found = audit(folder / "data", cap_mib)
    if len(results) != tasks or found.tasks != tasks:
        msg = f"{tasks} tasks were sent, {len(results)} answered, {found.tasks} are in the journal"
        raise RuntimeError(msg)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 when something was not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swapping", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llama-orch-swapping-") as folder:
        found = run(Path(folder), clients=options.clients, tasks=options.tasks)
    waits = sorted(found.waits_ms)
    print(
        table(
            ["tasks", "completed", "loads", "cap MiB", "held MiB", "wait mean ms", "p95", "worst", "run s"],
            [
                [
                    str(found.tasks),
                    str(found.completed),
                    ", ".join(f"{name} {count}" for name, count in found.loads.items()),
                    str(found.cap_mib),
                    str(found.held_mib),
                    f"{statistics.fmean(waits):.0f}",
                    str(waits[len(waits) * 95 // 100]),
                    str(waits[-1]),
                    f"{time.monotonic() - began:.0f}",
                ]
            ],
        )
    )
    for fault in found.faults:
        print(f"FAULT: {fault}")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
