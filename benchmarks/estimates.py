"""How good predicted starts are: `python -m benchmarks.estimates`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from llama_orch.core.projections.calibration import Calibration

from .queueing import PoolModel, Queueing, Request, lengths


def poisson(queueing: Queueing, load: float, *, sigma: float = 1.0) -> None:
    """Callers come independently of each other, at a share of what the pools can do; three kinds of them."""
    chance = queueing.random
    mean = 150 * 2.718 ** (sigma * sigma / 2)
    pace = sum(p.slots / (mean * p.token_s * (1 + p.crowding * (p.slots - 1)) + 0.1) for p in queueing.pools.values())

    def come() -> None:
        owner = chance.choice("abc")
        tokens = lengths(chance, {"a": 60, "b": 150, "c": 300}[owner], sigma)
        cap = 512 if owner == "b" else 0
        queueing.submit(
            Request(
                owner=owner,
                tokens=min(tokens, cap) if cap else tokens,
                max_tokens=cap,
                prompt_tokens=lengths(chance, 300, 0.8),
                patience_s=chance.expovariate(1 / 120) if chance.random() < 0.1 else 0.0,
            )
        )
        queueing.after(chance.expovariate(load * pace), come)

    come()


def bursts(queueing: Queueing, load: float) -> None:
    """Many at once, then a pause."""
    chance = queueing.random
    pace = sum(p.slots / (280 * p.token_s * (1 + p.crowding * (p.slots - 1)) + 0.1) for p in queueing.pools.values())

    def burst() -> None:
        size = chance.choice((3, 10, 30))
        for _ in range(size):
            queueing.after(
                chance.expovariate(2.0),
                lambda: queueing.submit(
                    Request(tokens=lengths(chance, 150, 1.1), prompt_tokens=lengths(chance, 300, 0.8))
                ),
            )
        queueing.after(chance.expovariate(load * pace / 14.3), burst)

    burst()


def agents(queueing: Queueing, number: int, *, mixed: bool = False) -> None:
    """Closed loops: each agent thinks, asks, waits for the answer; contexts grow by the turn."""
    chance = queueing.random

    def ask(name: str, turn: int) -> None:
        kind = int(name[1:]) % 3
        tokens = lengths(chance, (60, 200, 500)[kind], 0.9)
        queueing.submit(
            Request(
                owner=name,
                priority="batch" if mixed and kind == 2 else "interactive",
                tokens=tokens,
                prompt_tokens=300 + 200 * turn,
                then=lambda _: queueing.after(
                    chance.expovariate(1 / (1.0 if chance.random() < 0.7 else 20.0)), lambda: ask(name, (turn + 1) % 12)
                ),
            )
        )

    for number_ in range(number):
        queueing.after(chance.uniform(0, 10), lambda n=number_: ask(f"a{n}", 0))


def swapped(queueing: Queueing, load: float) -> None:
    """As Poisson, but somebody else takes the memory now and then, and gives it back a while later."""
    chance = queueing.random
    poisson(queueing, load)

    def take() -> None:
        for pool in queueing.pools.values():
            queueing.unload(pool)
        queueing.after(chance.uniform(10, 40), give)

    def give() -> None:
        for pool in queueing.pools.values():
            queueing.load(pool)
        queueing.after(chance.expovariate(1 / 120), take)

    queueing.after(30, take)


TRACES: dict[str, tuple[Callable[[], list[PoolModel]], Callable[[Queueing], None]]] = {
    "poisson": (lambda: [PoolModel("p", slots=4)], lambda q: poisson(q, 0.85)),
    "one slot": (lambda: [PoolModel("p", slots=1)], lambda q: poisson(q, 0.8)),
    "heavy tails": (lambda: [PoolModel("p", slots=4)], lambda q: poisson(q, 0.85, sigma=1.5)),
    "two pools": (
        lambda: [PoolModel("p", slots=4), PoolModel("q", slots=2, token_s=0.05)],
        lambda q: poisson(q, 0.9),
    ),
    "bursts": (lambda: [PoolModel("p", slots=4)], lambda q: bursts(q, 0.7)),
    "agents": (lambda: [PoolModel("p", slots=4)], lambda q: agents(q, 14)),
    "agents, batch": (lambda: [PoolModel("p", slots=4)], lambda q: agents(q, 14, mixed=True)),
    "swaps": (lambda: [PoolModel("p", slots=4, load_s=8)], lambda q: swapped(q, 0.5)),
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--starts", type=int, default=6000)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    for name, (pools, trace) in TRACES.items():
        if options.only and options.only not in name:
            continue
        began = time.perf_counter()
        queueing = Queueing(pools(), options.seed)
        trace(queueing)
        queueing.run(options.starts)
        took = time.perf_counter() - began
        for (group, band), found in sorted(queueing.head.of(Calibration).bands.items()):
            score = found.score
            if group or not score.n:
                continue
            n = score.n
            mid = sorted(o[1] for o in queueing.outcomes if o[0] == band)[n // 2]
            print(
                f"{name:14}{band:12}{n:6}  cover {score.covered / n:6.1%}  width {score.width_ms / n:9.0f}"
                f"  pinball {score.pinball_us / 3000 / n:8.1f} | average: {score.average_covered / n:6.1%}"
                f" {score.average_width_ms / n:9.0f} {score.average_pinball_us / 3000 / n:8.1f}  median wait {mid}"
            )
        print(f"{name:14}{took:6.1f} s")


if __name__ == "__main__":
    main()
