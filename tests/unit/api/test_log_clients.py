"""What log and streams say of budgets and sessions."""

from __future__ import annotations

from typing import Any

import pytest

from llama_orch.api.log_clients import SENTENCES
from llama_orch.api.render.sse import started_data
from llama_orch.core.events.budget import BudgetRemoved, BudgetRolled, BudgetSet
from llama_orch.core.events.session import SessionClosed, SessionEvicted, SessionOpened
from llama_orch.core.events.task import TaskStarted
from llama_orch.core.projections.projection import Recorded
from llama_orch.core.types import Amount

ACCOUNT: dict[str, Any] = {"account": "key/k/day", "scope": "key", "subject": "k", "window": "day"}


@pytest.mark.parametrize(
    "event, human",
    [
        (
            BudgetSet(**ACCOUNT, tokens=5, decode_us=1_500, cost_pico=25 * 10**11),
            "The key k may spend 5 tokens, 1.5 ms of decoding, 2.5 of money each day (UTC).",
        ),
        (
            BudgetSet(account="key/k/none", scope="key", subject="k", window="none"),
            "The key k is counted, without a cap.",
        ),
        (BudgetRemoved(account="key/k/day"), "The budget key/k/day was removed."),
        (
            BudgetRolled(account="key/k/day", window_start_ns=1, window_end_ns=2, spent=Amount(tokens=3, cost_pico=1)),
            (
                "The window of the budget key/k/day begins anew; in the last one 3 tokens, 0 ms of decoding and"
                " 0.000000000001 of money were spent."
            ),
        ),
        (
            SessionOpened(session_id="s", owner="k", ttl_ms=5, turn_limit=8),
            "Session s is open for 8 turns, 5 ms apart at most.",
        ),
        (SessionClosed(session_id="s", cause="expired"), "Session s is closed (expired)."),
        (
            SessionEvicted(session_id="s", pool_id="p", slot=1, kv_tokens=9, cause="slot-needed", task_id="t"),
            "Slot 1 of pool p gives up the KV cache of session s (9 tokens, slot-needed).",
        ),
    ],
)
def test_each_event_is_said_in_a_sentence(event: object, human: str) -> None:
    level, fields, said = SENTENCES[type(event)](Recorded(1, 1, 1, "s", 0, "n", 0, "a", "c", event))
    assert (level, said) == ("info", human)
    assert fields


@pytest.mark.parametrize(
    "how, told",
    [
        ({}, {}),
        ({"kv_warmth": True}, {"kv_warmth": True}),
        ({"kv_lost": True}, {"kv_warmth": False, "kv_migrated": False}),
    ],
)
def test_a_started_frame_says_what_became_of_the_kv_cache(how: dict[str, Any], told: dict[str, bool]) -> None:
    event = TaskStarted(
        task_id="t", attempt=1, pool_id="p", replica_id="r0", engine="e", engine_version="1", seed=1, **how
    )
    data = started_data(event)
    assert {name: data[name] for name in data if name.startswith("kv_")} == told
