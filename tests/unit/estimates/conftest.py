"""A head that events are folded into by hand; and the benchmarks, which are no part of the package, are found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from llama_orch.core.events.lease import LeaseGranted, LeaseReleased
from llama_orch.core.events.pool import PoolDeclared, PoolReady
from llama_orch.core.events.task import DecisionRecord, TaskAdmitted, TaskEnded, TaskPlaced, TaskStarted
from llama_orch.core.journal.pending import stream_name
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.projection import EntriesRecorded, Recorded
from llama_orch.core.registry import type_of

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

DECISION = DecisionRecord(
    selected_pool_id="p",
    candidates_considered=[],
    filters_applied=[],
    scores_ms={},
    tie_breakers_applied=[],
    pinned=False,
    fallback_used=False,
    decision_reason="",
    policy="",
    policy_version="",
)


class Fold:
    """Folds events at times that a test sets, in milliseconds."""

    def __init__(self) -> None:
        self.head = Head()
        self.now_ms = 1_000_000

    @property
    def now_ns(self) -> int:
        return self.now_ms * 1_000_000

    def __call__(self, event: Any) -> None:
        declared = type_of(event)
        stream = stream_name(declared, event)
        position = self.head.positions.get(stream, 0)
        seq = self.head.next_seq
        self.head.fold(Recorded(seq, seq, 1, stream, position, declared.name, self.now_ns, "", "", event))

    def later(self, milliseconds: int) -> None:
        self.now_ms += milliseconds

    # --- shorthand -----------------------------------------------------------------------------------------------

    def pool(self, name: str = "p", group: str = "m", slots: int = 2, **ready: Any) -> None:
        self(PoolDeclared(pool_id=name, engine="mock", model_ref=group, slots=slots))
        self(PoolReady(pool_id=name, replica_id="r0", generation=1, engine_version="1", slots=slots, ctx=4096, **ready))

    def admit(self, task_id: str, group: str = "m", **fields: Any) -> None:
        values: dict[str, Any] = {
            "owner": "local",
            "model_ref": group,
            "workload": "completion",
            "priority": "interactive",
            "body_id": "b",
            "request_digest": "d",
            "seed": 1,
        }
        self(TaskAdmitted(task_id=task_id, group=group, **(values | fields)))

    def place(self, task_id: str, pool: str = "p", slot: int = 0, attempt: int = 1) -> None:
        self(TaskPlaced(task_id=task_id, attempt=attempt, pool_id=pool, replica_id="r0", decision=DECISION))
        self(LeaseGranted(lease_id=f"l-{task_id}", pool_id=pool, task_id=task_id, attempt=attempt, slot=slot))

    def start(self, task_id: str, pool: str = "p", attempt: int = 1, **fields: Any) -> None:
        self(
            TaskStarted(
                task_id=task_id,
                attempt=attempt,
                pool_id=pool,
                replica_id="r0",
                engine="mock",
                engine_version="1",
                seed=1,
                **fields,
            )
        )

    def say(self, task_id: str, tokens: int) -> None:
        state = self.head.tasks.live[task_id]
        elapsed_us = (self.now_ns - state.entry_ns) // 1000
        self.head.fold_entries(
            EntriesRecorded(
                frame_no=1,
                epoch=1,
                task_no=state.task_no,
                attempt=1,
                first_ordinal=state.entries + 1,
                entries=tokens,
                tokens=tokens,
                first_us=elapsed_us,
                elapsed_us=elapsed_us,
            )
        )

    def end(self, task_id: str, pool: str = "p", **fields: Any) -> None:
        values: dict[str, Any] = {"outcome": "completed", "finish_reason": "stop", "entries": 0, "tokens_out": 0}
        self(TaskEnded(task_id=task_id, **(values | fields)))
        if f"l-{task_id}" in self.head.leases.by_id:
            self(LeaseReleased(lease_id=f"l-{task_id}", pool_id=pool, task_id=task_id, cause="slot-free"))

    def run(self, task_id: str, *, tokens: int, token_ms: int = 20, wait_ms: int = 0, **fields: Any) -> None:
        """A whole task, one after the other."""
        self.admit(task_id, **{k: v for k, v in fields.items() if k in ("owner", "max_tokens", "prompt_tokens")})
        self.later(wait_ms)
        self.place(task_id)
        self.later(5)
        self.start(task_id, queue_time_ms=wait_ms + 5)
        self.later(token_ms * (tokens - 1))
        self.end(
            task_id,
            tokens_out=tokens,
            decode_ms=token_ms * (tokens - 1),
            finish_reason=fields.get("finish_reason", "stop"),
            outcome=fields.get("outcome", "completed"),
        )


@pytest.fixture
def fold() -> Fold:
    return Fold()
