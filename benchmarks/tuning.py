"""Slots that are tuned, beside fixed ones, on a trace of the simulator: `python -m benchmarks.tuning`.

The trace ``shared-card``: for eight minutes many people chat; in the twenty-two minutes after that a tool asks the same
model ten questions at once, every 70 s, while a batch job has a second model on the same card at work. How many streams
are too many, and how many are too few, changes each time. What counts is the share of tasks whose first token came within
45 s and whose tokens came at 52 ms or less each.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from llama_orch.core.events.pool import PoolSlotsTuned
from llama_orch.core.events.task import TaskAdmitted, TaskEnded
from llama_orch.core.projections.projection import Recorded
from llama_orch.core.settings import Settings, TuningSettings
from llama_orch.simulator.rig import GIB, ModelledPool, Rig, gpu
from llama_orch.simulator.trace import TraceTask
from llama_orch.simulator.world import World, settings_of

from .estimate_traces import length
from .report import table

CHAT, JOB = "chat-9g", "sort-4g"
FIRST_TOKEN_MS, INTER_TOKEN_MS = 45_000, 52
#: of a busy phase, and of it together with the quiet one that follows
BUSY_MS, ROUND_MS = 480_000, 1_800_000
SLOTS = 12


@dataclass
class Outcome:
    """How the chat tasks of one run fared."""

    name: str
    tasks: int = 0
    good: int = 0
    late: int = 0
    slow: int = 0
    first_ms: int = 0
    changes: int = 0

    @property
    def share(self) -> float:
        """Of tasks whose first token and whose pace were as aimed at."""
        return self.good / max(1, self.tasks)


def shared_card(seed: int, rounds: int) -> tuple[Rig, list[TraceTask]]:
    """The rig and its trace."""
    card = gpu(0, 24)

    def pool(name: str, gib: int, slots: int) -> ModelledPool:
        return ModelledPool(
            pool_id=name.split("-", maxsplit=1)[0],
            model=name,
            weights_bytes=gib * GIB,
            kv_bytes=2 * GIB,
            overhead_bytes=400 * 2**20,
            devices=(card.device,),
            slots=slots,
            ctx=8192,
            preload=True,
            pinned=True,
        )

    draw = random.Random(seed)
    arrivals: list[tuple[int, str]] = []
    at_ms = 0.0
    while at_ms < rounds * ROUND_MS:
        if at_ms % ROUND_MS < BUSY_MS:
            at_ms += draw.expovariate(0.62 / 1000)
            arrivals.append((round(at_ms), CHAT))
        else:
            at_ms += 70_000
            arrivals += [(round(at_ms) + 200 * n, CHAT) for n in range(10)]
    for number in range(rounds):
        arrivals += [(at, JOB) for at in range(number * ROUND_MS + BUSY_MS, (number + 1) * ROUND_MS, 12_000)]
    tasks = [
        TraceTask(
            n=n,
            at_ms=at,
            model=model,
            prompt_tokens=length(draw, 300, 0.7, 4000),
            output_tokens=length(draw, 280, 0.7, 1200) if model == CHAT else 900,
        )
        for n, (at, model) in enumerate(sorted(arrivals))
    ]
    return Rig(name="shared-card", devices=(card,), pools=(pool(CHAT, 9, SLOTS), pool(JOB, 4, 1))), tasks


def settings_for(rig: Rig, slots: int) -> Settings:
    """Fixed slots of the chat pool, or tuned ones (0)."""
    settings = settings_of(rig)
    tuned = TuningSettings(mode="auto", first_token_ms=5_000, inter_token_ms=INTER_TOKEN_MS)
    pools = [
        msgspec.structs.replace(p, slots=slots, tuning=TuningSettings() if slots else tuned) if p.model == CHAT else p
        for p in settings.pools
    ]
    return msgspec.structs.replace(settings, pools=pools)


def run(slots: int, *, seed: int = 11, rounds: int = 2) -> Outcome:
    """The trace with fixed slots, or tuned ones (0)."""
    rig, trace = shared_card(seed, rounds)
    world = World(rig, trace, settings=settings_for(rig, slots), name="shared-card")
    outcome = Outcome(f"fixed, {slots}" if slots else "tuned")
    chats: set[str] = set()

    def note(records: list[Recorded]) -> None:
        for record in records:
            event = record.payload
            if isinstance(event, TaskAdmitted) and event.group == CHAT:
                chats.add(event.task_id)
            elif isinstance(event, PoolSlotsTuned):
                outcome.changes += 1
            elif isinstance(event, TaskEnded) and event.task_id in chats and event.tokens_out > 1:
                _judge(outcome, event)

    world.journal.on_committed(note)
    world.run()
    return outcome


def _judge(outcome: Outcome, event: TaskEnded) -> None:
    first_ms = event.queue_ms + event.prefill_ms
    late = first_ms > FIRST_TOKEN_MS
    slow = event.decode_ms > INTER_TOKEN_MS * (event.tokens_out - 1)
    outcome.tasks += 1
    outcome.first_ms += first_ms
    outcome.late += late
    outcome.slow += slow
    outcome.good += not late and not slow


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; 1 = a fixed setting did as well as the tuned one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(words)
    found = [run(slots, seed=options.seed, rounds=options.rounds) for slots in (0, 2, 4, 6, 7, 8, 9, 10, SLOTS)]
    head = ["slots", "tasks", "good", "first token late", "tokens slow", "first token s", "changes"]
    rows = [
        [
            one.name,
            f"{one.tasks:,}",
            f"{one.share:.1%}",
            f"{one.late / one.tasks:.1%}",
            f"{one.slow / one.tasks:.1%}",
            f"{one.first_ms / one.tasks / 1000:.2f}",
            str(one.changes),
        ]
        for one in found
    ]
    print(table(head, rows))
    return int(any(one.share >= found[0].share for one in found[1:]))


if __name__ == "__main__":
    sys.exit(main())
