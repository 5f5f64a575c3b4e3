"""Traces that predictions are tuned on and held against, from fixed seeds.

Two sources: :mod:`benchmarks.queueing` (slots, first come first served, many starts for little time) and
:mod:`llama_orch.simulator` (the server's own services with loads and swaps on the reference rig).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import msgspec

from llama_orch.simulator.make_traces import FOLDER, HOURS_MS, TRACES
from llama_orch.simulator.rig import GIB, ModelledPool, Rig, gpu, reference_rig
from llama_orch.simulator.trace import TraceTask, read_trace

from .queueing import PoolModel, Queueing, Request

Rule = Callable[[Queueing], None]


def length(chance: random.Random, median: float, sigma: float, most: int = 6000) -> int:
    """A heavy-tailed number of tokens."""
    return max(1, min(most, round(chance.lognormvariate(math.log(median), sigma))))


def pace(queueing: Queueing, mean_tokens: float) -> float:
    """Tasks per second that all slots end together."""
    pools = queueing.pools.values()
    return sum(p.slots / (mean_tokens * p.token_s * (1 + p.crowding * (p.slots - 1)) + 0.1) for p in pools)


# --- rules of arrival for the queue ------------------------------------------------------------------------------


def poisson(queueing: Queueing, load: float, *, sigma: float = 1.0) -> None:
    """Callers come independently of each other, at a share of what the pools can do; three kinds of them, one in ten
    leaves when it takes too long."""
    chance = queueing.random
    rate = load * pace(queueing, 150 * math.exp(sigma * sigma / 2))

    def come() -> None:
        owner = chance.choice("abc")
        tokens = length(chance, {"a": 60, "b": 150, "c": 300}[owner], sigma)
        cap = 512 if owner == "b" else 0
        queueing.submit(
            Request(
                owner=owner,
                tokens=min(tokens, cap) if cap else tokens,
                max_tokens=cap,
                prompt_tokens=length(chance, 300, 0.8),
                patience_s=chance.expovariate(1 / 120) if chance.random() < 0.1 else 0.0,
            )
        )
        queueing.after(chance.expovariate(rate), come)

    come()


def bursts(queueing: Queueing, load: float) -> None:
    """Many at once, then a pause."""
    chance = queueing.random
    rate = load * pace(queueing, 280) / 14.3

    def burst() -> None:
        for _ in range(chance.choice((3, 10, 30))):
            request = Request(tokens=length(chance, 150, 1.1), prompt_tokens=length(chance, 300, 0.8))
            queueing.after(chance.expovariate(2.0), lambda one=request: queueing.submit(one))  # type: ignore[misc]
        queueing.after(chance.expovariate(rate), burst)

    burst()


def agents(queueing: Queueing, number: int, *, mixed: bool = False) -> None:
    """Closed loops: each agent thinks, asks, waits for the answer; contexts grow by the turn."""
    chance = queueing.random

    def ask(name: str, turn: int) -> None:
        kind = int(name[1:]) % 3

        def again(_: float) -> None:
            think_s = 1.0 if chance.random() < 0.7 else 20.0
            queueing.after(chance.expovariate(1 / think_s), lambda: ask(name, (turn + 1) % 12))

        queueing.submit(
            Request(
                owner=name,
                priority="batch" if mixed and kind == 2 else "interactive",
                tokens=length(chance, (60, 200, 500)[kind], 0.9),
                prompt_tokens=300 + 200 * turn,
                then=again,
            )
        )

    def begin(name: str) -> None:
        queueing.after(chance.uniform(0, 10), lambda: ask(name, 0))

    for n in range(number):
        begin(f"a{n}")


def tide(queueing: Queueing) -> None:
    """Load that swells from little to too much and back within half an hour, while answers get twice as long, and half
    as long again, by the hour."""
    chance = queueing.random
    most = 1.25 * pace(queueing, 180)

    def come() -> None:
        phase = queueing.now_s % 1800 / 1800
        if chance.random() < 0.2 + 0.8 * (1 + math.sin(2 * math.pi * phase)) / 2:
            stretch = 2.0 if queueing.now_s % 7200 < 3600 else 1.0
            queueing.submit(
                Request(
                    owner=chance.choice("xyz"),
                    tokens=length(chance, 90 * stretch, 0.9, 3000),
                    prompt_tokens=length(chance, 500, 1.0),
                )
            )
        queueing.after(chance.expovariate(most), come)

    come()


def shifts(queueing: Queueing) -> None:
    """Three teams that work and rest in turns of their own, and a card that gets hot and slow for minutes at a time."""
    chance = queueing.random
    rate = 0.62 * pace(queueing, 200)
    at_work = dict.fromkeys("uvw", True)

    def come(team: str) -> None:
        if at_work[team]:
            median = {"u": 50, "v": 160, "w": 400}[team]
            queueing.submit(
                Request(
                    owner=team,
                    tokens=length(chance, median, 0.7, 3000),
                    prompt_tokens=length(chance, 4 * median, 0.6),
                    patience_s=chance.uniform(30, 300) if chance.random() < 0.15 else 0.0,
                )
            )
        queueing.after(chance.expovariate(rate / 2), lambda: come(team))

    def turn(team: str) -> None:
        at_work[team] = not at_work[team]
        queueing.after(chance.expovariate(1 / 400), lambda: turn(team))

    def heat() -> None:
        for pool in queueing.pools.values():
            queueing.pace_to(pool, 0.02 if chance.random() < 0.7 else 0.028)
        queueing.after(chance.expovariate(1 / 300), heat)

    for team in at_work:
        come(team)
        turn(team)
    heat()


def _one(slots: int = 4) -> list[PoolModel]:
    return [PoolModel("p", slots=slots)]


def _unlike() -> list[PoolModel]:
    return [PoolModel("p", slots=4), PoolModel("q", slots=2, token_s=0.05)]


#: name -> pools and rule; nothing was tuned on "shifts"
QUEUES: dict[str, tuple[Callable[[], list[PoolModel]], Rule]] = {
    "poisson": (_one, lambda q: poisson(q, 0.85)),
    "one slot": (lambda: _one(1), lambda q: poisson(q, 0.8)),
    "heavy tails": (_one, lambda q: poisson(q, 0.9, sigma=1.5)),
    "unlike pools": (_unlike, lambda q: poisson(q, 0.9)),
    "bursts": (_one, lambda q: bursts(q, 0.7)),
    "closed loops": (_one, lambda q: agents(q, 14)),
    "with batch": (_one, lambda q: agents(q, 14, mixed=True)),
    "tide": (_one, tide),
    "shifts": (_one, shifts),
}


# --- traces for the simulator ------------------------------------------------------------------------------------


def joined(parts: Sequence[Sequence[TraceTask]]) -> list[TraceTask]:
    """Traces one after the other, two hours apart."""
    out: list[TraceTask] = []
    for number, part in enumerate(parts):
        base = len(out)
        for task in part:
            follows = task.after >= 0
            out.append(
                msgspec.structs.replace(
                    task,
                    n=task.n + base,
                    after=task.after + base if follows else -1,
                    at_ms=0 if follows else task.at_ms + number * HOURS_MS,
                    session=f"{number}-{task.session}" if task.session else "",
                )
            )
    return out


def on_reference_rig(kind: str, seeds: Sequence[int]) -> tuple[Rig, list[TraceTask]]:
    """Some hours of one of the simulator's kinds, by other seeds than the committed files have."""
    make = TRACES[kind][1]
    rig = reference_rig()
    models = [pool.model for pool in rig.pools]
    return rig, joined([make(random.Random(seed), models) for seed in seeds])


def committed() -> tuple[Rig, list[TraceTask]]:
    """The simulator's committed traces, one after the other."""
    rig = reference_rig()
    return rig, joined([read_trace(FOLDER / f"{kind}.jsonl") for kind in sorted(TRACES)])


def office(seed: int, hours: int) -> tuple[Rig, list[TraceTask]]:
    """Another machine and another day: one 24 GB card with a large model of four slots that is always loaded, and two
    small ones that share what is left; people come in waves, and a batch job sends its tasks every hour."""
    card = gpu(0, 24)
    sizes = {"daily-9g": (9, 4, True), "draft-6g": (6, 2, False), "vision-8g": (8, 2, False)}
    pools = tuple(
        ModelledPool(
            pool_id=name.split("-", maxsplit=1)[0],
            model=name,
            weights_bytes=gib * GIB,
            kv_bytes=GIB,
            overhead_bytes=400 * 2**20,
            devices=(card.device,),
            slots=slots,
            preload=loaded,
            pinned=loaded,
        )
        for name, (gib, slots, loaded) in sizes.items()
    )
    draw = random.Random(seed)
    arrivals: list[tuple[int, str, str]] = []
    at_ms = 0.0
    while at_ms < hours * 3_600_000:
        at_ms += draw.expovariate(1 / 2_000)
        if draw.random() < 0.15 + 0.85 * (1 + math.sin(at_ms / 900_000)) / 2:
            arrivals.append((round(at_ms), draw.choices([*sizes], [10, 2, 1])[0], "interactive"))
    arrivals += [(h * 3_600_000 + n * 50, "daily-9g", "batch") for h in range(hours) for n in range(60)]
    tasks = [
        TraceTask(
            n=n,
            at_ms=at,
            model=model,
            priority="batch" if priority == "batch" else "interactive",
            prompt_tokens=length(draw, 600, 0.9, 8000),
            output_tokens=length(draw, 130, 0.9, 1500),
        )
        for n, (at, model, priority) in enumerate(sorted(arrivals))
    ]
    return Rig(name="office", devices=(card,), pools=pools), tasks
