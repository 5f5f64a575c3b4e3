"""Makes the committed traces: ``python -m llama_orch.simulator.make_traces`` (``--check``: are they what it makes?).

Each is two hours on the reference rig's eight models, from a fixed seed:

``poisson``  independent tasks of all models, the small ones asked for more often
``bursts``   every few minutes somebody fans out over three to five models at once, a trickle of others between that
``agents``   eight agents; each works in sessions on a main model, now and then asks a second one, and thinks between
``abcabc``   three models that only fit the large card, in turn: the order that makes a naive scheduler swap for each task
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .rig import reference_rig
from .trace import TraceTask, trace_bytes

FOLDER = Path(__file__).with_name("traces")
HOURS_MS = 2 * 3_600_000

Maker = Callable[[random.Random, Sequence[str]], list[TraceTask]]


def _gap(draw: random.Random, mean_ms: int) -> int:
    return round(draw.expovariate(1 / mean_ms))


def _tokens(draw: random.Random, median: int, most: int) -> int:
    """Lengths as they are in practice: many short ones, a long tail."""
    return max(8, min(most, round(median * draw.lognormvariate(0, 0.8))))


def poisson(draw: random.Random, models: Sequence[str]) -> list[TraceTask]:
    """Independent arrivals, one in five seconds."""
    weights = [8, 3, 7, 4, 5, 3, 4, 2]
    tasks: list[TraceTask] = []
    at_ms = _gap(draw, 5_000)
    while at_ms < HOURS_MS:
        tasks.append(
            TraceTask(
                n=len(tasks),
                at_ms=at_ms,
                model=draw.choices(models, weights)[0],
                prompt_tokens=_tokens(draw, 500, 8000),
                output_tokens=_tokens(draw, 150, 1200),
                priority="batch" if draw.random() < 0.15 else "interactive",
            )
        )
        at_ms += _gap(draw, 5_000)
    return tasks


def bursts(draw: random.Random, models: Sequence[str]) -> list[TraceTask]:
    """Bursts of 20 to 60 tasks, for three to five models in mixed order, and single tasks between them."""
    arrivals: list[tuple[int, str]] = []
    at_ms = 10_000
    while at_ms < HOURS_MS:
        asked = draw.sample(list(models), draw.randint(3, 5))
        at = at_ms
        for _ in range(draw.randint(20, 60)):
            arrivals.append((at, draw.choice(asked)))
            at += _gap(draw, 1_200)
        at_ms += 150_000 + _gap(draw, 120_000)
    at_ms = _gap(draw, 150_000)
    while at_ms < HOURS_MS:
        arrivals.append((at_ms, draw.choice(models)))
        at_ms += _gap(draw, 150_000)
    return [
        TraceTask(
            n=n,
            at_ms=at,
            model=model,
            prompt_tokens=_tokens(draw, 400, 6000),
            output_tokens=_tokens(draw, 120, 900),
        )
        for n, (at, model) in enumerate(sorted(arrivals))
    ]


def agents(draw: random.Random, models: Sequence[str]) -> list[TraceTask]:
    """Eight agents in sessions of several turns; a turn follows the end of the one before."""
    # Each agent's main model, and the one that it asks in between.
    pairs = [(4, 0), (6, 2), (7, 0), (5, 3), (4, 1), (6, 0), (2, 3), (3, 2)]
    tasks: list[TraceTask] = []
    for agent, (main, second) in enumerate(pairs):
        begins_ms, last = _gap(draw, 60_000), -1
        budget_ms, number = HOURS_MS - begins_ms, 0
        while budget_ms > 0:
            session, context = f"a{agent}s{number}", _tokens(draw, 900, 4000)
            number += 1
            shared = 0
            for turn in range(draw.randint(4, 14)):
                think_ms = 1_500 + _gap(draw, 9_000)
                if turn == 0:
                    think_ms += _gap(draw, 60_000)
                asks_second = draw.random() < 0.2
                said = _tokens(draw, 180, 1000)
                tasks.append(
                    TraceTask(
                        n=len(tasks),
                        at_ms=begins_ms if last < 0 else 0,
                        after=last,
                        delay_ms=0 if last < 0 else think_ms,
                        model=models[second if asks_second else main],
                        prompt_tokens=_tokens(draw, 250, 1500) if asks_second else min(12_000, context),
                        output_tokens=said,
                        session="" if asks_second else session,
                        shared_tokens=0 if asks_second else shared,
                    )
                )
                last = len(tasks) - 1
                # What a turn takes on an idle card, roughly: how many turns two hours hold is known only when it runs.
                budget_ms -= think_ms + said * 40 + 35_000
                if not asks_second:
                    shared = min(12_000, context + said)
                    context = shared + _tokens(draw, 200, 2500)
    return tasks


def abcabc(draw: random.Random, models: Sequence[str]) -> list[TraceTask]:
    """A, B, C, A, B, C, …: each needs the large card, and each comes when another one is loaded."""
    turn = (models[5], models[6], models[7])
    return [
        TraceTask(
            n=n,
            at_ms=n * 12_000 + draw.randint(0, 500),
            model=turn[n % 3],
            prompt_tokens=300,
            output_tokens=draw.randint(60, 180),
        )
        for n in range(HOURS_MS // 12_000)
    ]


TRACES: dict[str, tuple[int, Maker]] = {
    "poisson": (101, poisson),
    "bursts": (102, bursts),
    "agents": (103, agents),
    "abcabc": (104, abcabc),
}


def made(shift: int = 0) -> dict[str, bytes]:
    """Every trace's file, by its name; ``shift`` is added to the seeds, for traces that nothing was tuned on."""
    models = [pool.model for pool in reference_rig().pools]
    return {
        f"{name}.jsonl": trace_bytes(make(random.Random(seed + shift), models)) for name, (seed, make) in TRACES.items()
    }


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """Write the traces, or check them; the exit status."""
    parser = argparse.ArgumentParser(description="Make the committed traces.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 = a file is not what this makes")
    parser.add_argument("--shift", type=int, default=0, metavar="N", help="other traces of the same kinds")
    parser.add_argument("--into", type=Path, default=folder, metavar="FOLDER", help="where to write them")
    options: Any = parser.parse_args(arguments)
    wrong = []
    for name, content in made(options.shift).items():
        path = options.into / name
        if options.check:
            if not path.is_file() or path.read_bytes() != content:
                wrong.append(name)
        else:
            path.write_bytes(content)
    if wrong:
        sys.stderr.write(f"not what make_traces makes: {', '.join(wrong)}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
