"""What happens to clients, for golden journals: keys, budgets, sessions, one event of each type with every field filled once."""

from __future__ import annotations

from llama_orch.core.events.budget import BudgetRemoved, BudgetReserved, BudgetRolled, BudgetSet, PriceRecord
from llama_orch.core.events.key import KeyChanged, KeyCreated, KeyExpired, KeyRevoked, KeyRotated
from llama_orch.core.events.response import ResponseDeleted
from llama_orch.core.events.session import SessionEvicted, SessionOpened
from llama_orch.core.events.task import TaskAdmitted, TaskEnded
from llama_orch.core.types import Amount

DAY_NS = 86_400_000_000_000
START_NS = 1_790_000_000_000_000_000
LATER_NS = START_NS + 10 * DAY_NS


def _admitted(task_id: str, session_id: str, body_id: str) -> TaskAdmitted:
    return TaskAdmitted(
        task_id=task_id,
        owner="key-1",
        group="m",
        model_ref="m",
        workload="chat",
        priority="interactive",
        body_id=body_id,
        request_digest="e" * 64,
        seed=7,
        session_id=session_id,
        n=2,
        logprobs=True,
        top_logprobs=3,
        needs=["chat", "logprobs", "tools"],
        api="openai.chat",
    )


def batches(body_id: str) -> list[list[object]]:
    """The events, in batches as they are appended.

    :param body_id: of a body that is in the journal.
    """
    prices = PriceRecord(input_pico=150_000, cached_pico=75_000, output_pico=600_000, decode_us_pico=1)
    return [
        [
            KeyCreated(
                key_id="key-1",
                name="agents",
                digest="a" * 64,
                scopes=["inference", "read"],
                models=["m*"],
                routes=["/v1/chat/*"],
                batch_only=True,
                requests_per_minute=60,
                tokens_per_minute=10_000,
                expires_ns=LATER_NS,
            ),
            KeyCreated(key_id="key-2", name="old", digest="b" * 64, scopes=["admin"]),
            KeyCreated(key_id="key-3", name="timed", digest="c" * 64, scopes=["read"], expires_ns=START_NS + 1),
        ],
        [
            KeyChanged(key_id="key-1", name="agents", scopes=["inference"], models=["m*"], requests_per_minute=90),
            KeyRotated(key_id="key-1", digest="f" * 64, previous_until_ns=LATER_NS),
            KeyExpired(key_id="key-3"),
            KeyRevoked(key_id="key-2"),
        ],
        [
            BudgetSet(
                account="key/key-1/day",
                scope="key",
                subject="key-1",
                window="day",
                timezone="Europe/Berlin",
                tokens=1_000,
                decode_us=60_000_000,
                cost_pico=10**12,
                window_start_ns=START_NS,
                window_end_ns=START_NS + DAY_NS,
            ),
            BudgetSet(account="key/local/none", scope="key", subject="local", window="none", by_default=True),
        ],
        [
            SessionOpened(session_id="s-2", owner="key-1", ttl_ms=60_000, turn_limit=3),
            BudgetSet(account="session/s-2/none", scope="session", subject="s-2", window="none", tokens=500),
            _admitted("t-paid", "s-2", body_id),
        ],
        [
            BudgetReserved(
                task_id="t-paid",
                hold=Amount(tokens=100, decode_us=1_000_000, cost_pico=60_000_000),
                accounts=["key/key-1/day", "session/s-2/none"],
                prompt_tokens=40,
                prices=prices,
            )
        ],
        [
            BudgetReserved(task_id="t-paid", hold=Amount(tokens=200, decode_us=2_000_000, cost_pico=120_000_000)),
            TaskEnded(
                task_id="t-paid",
                outcome="failed",
                finish_reason="error",
                entries=0,
                tokens_out=0,
                code="BUDGET_EXHAUSTED",
                message="spent",
                charge=Amount(tokens=40, cost_pico=6_000_000),
            ),
            ResponseDeleted(task_id="t-paid", owner="key-1"),
        ],
        [
            BudgetRolled(
                account="key/key-1/day",
                window_start_ns=START_NS + DAY_NS,
                window_end_ns=START_NS + 2 * DAY_NS,
                spent=Amount(tokens=40, cost_pico=6_000_000),
            ),
            BudgetRemoved(account="session/s-2/none"),
            SessionEvicted(session_id="s-2", pool_id="p", slot=1, kv_tokens=40, cause="slot-needed", task_id="t-runs"),
        ],
        # One that still holds something when the journal ends.
        [_admitted("t-holds", "s-2", body_id)],
        [
            BudgetReserved(
                task_id="t-holds",
                hold=Amount(tokens=50, decode_us=500_000, cost_pico=30_000_000),
                accounts=["key/key-1/day"],
                prompt_tokens=40,
                prices=prices,
            )
        ],
    ]
