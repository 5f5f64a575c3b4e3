"""What the log says of clients' budgets and sessions: severity, fields and one sentence each (OBS-2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..core.amounts import decimal
from ..core.events.budget import BudgetRemoved, BudgetRolled, BudgetSet
from ..core.events.session import SessionClosed, SessionEvicted, SessionOpened
from ..core.projections.projection import Recorded

Fields = dict[str, Any]
Said = tuple[str, Fields, str]


def _set(record: Recorded) -> Said:
    event: BudgetSet = record.payload
    caps = [
        *([f"{event.tokens} tokens"] if event.tokens >= 0 else []),
        *([f"{event.decode_us / 1000:g} ms of decoding"] if event.decode_us >= 0 else []),
        *([f"{decimal(event.cost_pico)} of money"] if event.cost_pico >= 0 else []),
    ]
    allowed = f"may spend {', '.join(caps)}" if caps else "is counted, without a cap"
    window = "" if event.window == "none" else f" each {event.window} ({event.timezone})"
    fields: Fields = {"budget": event.account, "by_default": event.by_default}
    return "info", fields, f"The {event.scope} {event.subject} {allowed}{window}."


def _removed(record: Recorded) -> Said:
    event: BudgetRemoved = record.payload
    return "info", {"budget": event.account}, f"The budget {event.account} was removed."


def _rolled(record: Recorded) -> Said:
    event: BudgetRolled = record.payload
    spent = event.spent
    fields: Fields = {
        "budget": event.account,
        "tokens": spent.tokens,
        "decode_ms": spent.decode_us // 1000,
        "cost": decimal(spent.cost_pico),
    }
    human = (
        f"The window of the budget {event.account} begins anew; in the last one {spent.tokens} tokens,"
        f" {spent.decode_us / 1000:g} ms of decoding and {decimal(spent.cost_pico)} of money were spent."
    )
    return "info", fields, human


def _opened(record: Recorded) -> Said:
    event: SessionOpened = record.payload
    human = f"Session {event.session_id} is open for {event.turn_limit} turns, {event.ttl_ms} ms apart at most."
    return "info", {"session_id": event.session_id}, human


def _closed(record: Recorded) -> Said:
    event: SessionClosed = record.payload
    return "info", {"session_id": event.session_id}, f"Session {event.session_id} is closed ({event.cause})."


def _evicted(record: Recorded) -> Said:
    event: SessionEvicted = record.payload
    fields: Fields = {"session_id": event.session_id, "pool_id": event.pool_id, "cause": event.cause}
    if event.task_id:
        fields["task_id"] = event.task_id
    human = (
        f"Slot {event.slot} of pool {event.pool_id} gives up the KV cache of session {event.session_id}"
        f" ({event.kv_tokens} tokens, {event.cause})."
    )
    return "info", fields, human


SENTENCES: Final[dict[type, Callable[[Recorded], Said]]] = {
    BudgetSet: _set,
    BudgetRemoved: _removed,
    BudgetRolled: _rolled,
    SessionOpened: _opened,
    SessionClosed: _closed,
    SessionEvicted: _evicted,
}
