"""What a long queue costs: enqueue, dequeue, cancel and position at 100,000 queued tasks and at 1,000.

`python -m benchmarks.queue`. Real journal, real SQLite store, all services; an engine of one slot that a task
occupies. Prompts are distinct and 8 KB long. Each size runs in processes of its own, in turns, so that neither noise
nor leftovers hit one size alone. An operation's time is that of the server's work for it, its commit included; what
waits for the disk waits apart (`python -m benchmarks` measures that). The bar is held against CPU time: by the clock,
a tail on a shared machine is the neighbours'.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.host import StandInHost

from llama_orch.core.engine_ports import (
    AttemptEnd,
    AttemptSink,
    AttemptStart,
    EngineHealth,
    EngineProperties,
    EngineState,
    GenerateJob,
)
from llama_orch.core.errors import InvalidParamsError
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.container import Services, build_services
from llama_orch.core.settings import PoolSettings, QueueSettings, Settings
from llama_orch.core.types import TaskRequest
from llama_orch.plugins.manager import PluginManager

from .journal import SystemClock, make_store, opened
from .report import figure, table

OPERATIONS = ["enqueue", "dequeue", "cancel", "position"]
CALLER = Caller()
#: of a tail at 100,000 tasks, as a multiple of that at 1,000 (ADM-3)
BAR = 1.5


class HeldEngine:
    """An engine of one slot: a job runs until it is told to end."""

    name = "held"

    def __init__(self) -> None:
        self.sink: AttemptSink | None = None
        self.task_id = ""
        #: a job has come
        self.taken = asyncio.Event()

    async def health(self) -> EngineHealth:
        return EngineHealth(state=EngineState.READY)

    async def properties(self) -> EngineProperties:
        return PROPERTIES

    def generate(self, job: GenerateJob, sink: AttemptSink) -> HeldEngine:
        self.sink, self.task_id = sink, job.task_id
        sink.started(AttemptStart(prompt_tokens=1))
        self.taken.set()
        return self

    def finish(self) -> None:
        """End the job at hand."""
        assert self.sink is not None
        self.sink.ended(AttemptEnd(finish_reason="stop"))

    def cancel(self) -> None:
        self.sink = None

    async def slot_free(self) -> str:
        return "slot-free"

    def resume(self) -> None:
        pass

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [0] * (len(text) // 4)

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        return json.dumps(list(messages))

    async def detokenize(self, ids: Sequence[int]) -> str:
        msg = "this engine does not turn token ids into text"
        raise InvalidParamsError(msg, field="tokens")

    async def forget(self, slot: int) -> bool:
        return False

    async def slots_in_use(self) -> int | None:
        return int(self.sink is not None)

    async def metrics(self) -> Mapping[str, float]:
        return {}

    async def close(self) -> None:
        pass


PROPERTIES = EngineProperties(engine_version="1", model_name="m", slots=1, ctx=1_000_000)


class OneEngine:
    """The directory of one engine."""

    def __init__(self, engine: HeldEngine) -> None:
        self._engine = engine

    def engine(self, pool_id: str) -> HeldEngine:
        return self._engine

    def properties(self, pool_id: str) -> EngineProperties:
        return PROPERTIES


def rss_kb() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


class Bench:
    """One server with a queue that is kept at its size."""

    def __init__(self, services: Services, engine: HeldEngine, prompt_bytes: int) -> None:
        self.services = services
        self.journal = services.journal
        self.engine = engine
        self._filler = "".join(random.Random(0).choices("abcdefghij klmnop", k=prompt_bytes - 12))
        self._count = 0
        self._random = random.Random(1)
        self.queued: list[str] = []

    async def enqueue(self) -> None:
        """A client's task is admitted and committed."""
        self._count += 1
        request = TaskRequest(model_ref="m", prompt=f"{self._count:012d}{self._filler}")
        admission = await self.services.admission.submit(request, CALLER, correlation="", durable=False)
        await self.journal.committed(admission.seq)
        self.queued.append(admission.task_id)

    async def dequeue(self) -> None:
        """The running task ends, the next one is placed, committed and sent to the engine."""
        self.engine.taken.clear()
        self.engine.finish()
        await self.engine.taken.wait()

    async def cancel(self) -> None:
        """A queued task, anywhere in the queue, is cancelled and that is committed."""
        task_id = self._random.choice(self.queued)
        while task_id not in self.journal.head.tasks.live or task_id == self.engine.task_id:
            task_id = self._random.choice(self.queued)
        seq = self.services.cancel.cancel_now(task_id, reason="client", actor="benchmark")
        await self.journal.committed(seq)

    async def position(self) -> None:
        """A queued task, anywhere in the queue, is asked for, with its position."""
        info = await self.services.tasks.get(self._random.choice(self.queued), CALLER, text=False)
        assert info.task_id

    async def timed(self, work: Callable[[], Awaitable[None]], size: int, count: int) -> list[tuple[float, float]]:
        """Microseconds of each operation, CPU and wall; the queue is brought back to its size between them, untimed."""
        times = []
        for n in range(count):
            if n % 50 == 0:
                await self._refill(size)
            began, cpu = time.perf_counter_ns(), time.thread_time_ns()
            await work()
            times.append(((time.thread_time_ns() - cpu) / 1000, (time.perf_counter_ns() - began) / 1000))
            # Transcripts and the like follow in their own time.
            await asyncio.sleep(0)
        return times

    async def _refill(self, size: int) -> None:
        live = self.journal.head.tasks.live
        while len(live) < size:
            await self.enqueue()
        while len(live) > size + 60:
            task_id = next(reversed(live))
            await self.journal.committed(self.services.cancel.cancel_now(task_id, reason="client", actor="benchmark"))
        self.queued = [task_id for task_id in live if task_id != self.engine.task_id]
        await asyncio.sleep(0.002)
        for _ in range(5):  # the refilling's own traces in the processor's caches are not the queue's
            await self.position()


async def measure(folder: Path, size: int, count: int, prompt_bytes: int) -> dict[str, Any]:
    """Figures of one size."""
    settings = Settings(
        pools=[PoolSettings(id="p", engine="mock", model="m", queue=QueueSettings(capacity=10_000_000))]
    )
    engine = HeldEngine()
    async with opened(make_store(folder)) as journal:
        services = build_services(
            journal,
            settings=settings,
            engines=OneEngine(engine),
            policy=PluginManager(entry_points=False).placement_policies()["default"],
            clock=SystemClock(),
            api_version="0",
        )
        services.pools.declare(settings)
        services.start()
        StandInHost(services).ready("p", PROPERTIES, decode_mtok_s=1_000)
        bench = Bench(services, engine, prompt_bytes)
        for _ in range(200):  # what is imported and allocated once is not the queue's
            await bench.enqueue()
        gc.collect()
        before = rss_kb()
        began = time.perf_counter()
        for n in range(size):
            await bench.enqueue()
            if n % 1000 == 0:
                await asyncio.sleep(0)
        filled_s = time.perf_counter() - began
        gc.collect()
        per_task = (rss_kb() - before) * 1024 / size
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        times = {}
        for name in OPERATIONS:
            # A position is asked in microseconds: of few, the tail would be the machine's.
            both = await bench.timed(getattr(bench, name), size, count * (10 if name == "position" else 1))
            times[name] = {
                f"{kind}_{quantile}_us": sorted(values)[len(values) * share // 100]
                for kind, values in zip(("cpu", "wall"), zip(*both, strict=True), strict=True)
                for quantile, share in (("p50", 50), ("p99", 99))
            }
        await services.close()
    return {"size": size, "times": times, "rss_bytes_per_task": per_task, "fill_s": filled_s}


def run_child(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        words = [
            "--child",
            folder,
            "--size",
            str(size),
            "--count",
            str(options.count),
            "--prompt-bytes",
            str(options.prompt_bytes),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.queue", *words], check=True, stdout=subprocess.PIPE, text=True
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def middle(runs: Sequence[dict[str, Any]], size: int, name: str, figure_name: str) -> float:
    """The median over the rounds."""
    return float(statistics.median(run["times"][name][figure_name] for run in runs if run["size"] == size))


def report(runs: Sequence[dict[str, Any]], small: int, large: int) -> str:
    """The tables, medians over the rounds."""
    parts = []
    for kind, what in (("cpu", "CPU of the server's loop, µs"), ("wall", "by the clock, µs")):
        rows = []
        for name in OPERATIONS:
            cells = [middle(runs, size, name, f"{kind}_{q}_us") for q in ("p50", "p99") for size in (small, large)]
            rows.append([name, *map(figure, cells), f"{cells[3] / cells[2]:.2f}"])
        head = [what, f"p50 at {small:,}", f"at {large:,}", f"p99 at {small:,}", f"at {large:,}", "ratio of the p99"]
        parts.append(table(head, rows))
    memory = statistics.median(r["rss_bytes_per_task"] for r in runs if r["size"] == large)
    beyond = missed(runs, small, large)
    verdict = f"Beyond {BAR} times: {', '.join(beyond)}." if beyond else f"All tails are within {BAR} times."
    return "\n\n".join([*parts, f"Memory per queued task at {large:,}: {memory:,.0f} bytes. {verdict}"])


def missed(runs: Sequence[dict[str, Any]], small: int, large: int) -> list[str]:
    """The operations whose tail of CPU time at the large size is beyond the bar."""
    return [
        name
        for name in OPERATIONS
        if middle(runs, large, name, "cpu_p99_us") > BAR * middle(runs, small, name, "cpu_p99_us")
    ]


def arguments() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description="What a long queue costs.")
    parser.add_argument("--folder", type=Path, help="where the journals lie meanwhile")
    parser.add_argument("--small", type=int, default=1_000)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--count", type=int, default=2_000, help="operations of each kind (default 2,000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-bytes", type=int, default=8_192)
    parser.add_argument("--json", action="store_true", help="print every round's figures as JSON instead of the tables")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    return parser


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sizes in turns."""
    runs = []
    for round_no in range(options.rounds):
        for size in (options.small, options.large):
            print(f"round {round_no + 1}: {size:,} tasks", file=sys.stderr, flush=True)
            runs.append(run_child(size, options))
    return runs


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; exit 1 when the bar is missed."""
    options = arguments().parse_args(words)
    if options.child is not None:
        print(json.dumps(asyncio.run(measure(options.child, options.size, options.count, options.prompt_bytes))))
        return 0
    runs = measure_all(options)
    print(json.dumps(runs) if options.json else report(runs, options.small, options.large))
    return 0 if not missed(runs, options.small, options.large) else 1


if __name__ == "__main__":
    sys.exit(main())
