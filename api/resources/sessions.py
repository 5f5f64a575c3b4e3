"""``/v1/sessions``: open sessions, and opening one by name (SES-1)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ...core.amounts import decimal
from ...core.errors import ConflictError, JournalUnavailableError, SessionExpiredError
from ...core.services.sessions import SessionView
from ...core.settings import BudgetCapSettings
from ...core.types import Uuid
from ..operations import Answer, Call, Resource, operation, resource


class SessionBody(msgspec.Struct, frozen=True, kw_only=True):
    """A session: turns that belong together."""

    session_id: str
    owner: str
    #: idle time after which it expires; a task that waits or runs keeps it
    ttl_ms: int
    ttl_ms_remaining: int
    turns: int
    turn_limit: int
    turns_remaining: int
    #: tasks that wait or run
    active_tasks: int
    created_ms: int
    #: pool of its last task
    pool_id: str
    #: an engine that runs holds its KV cache, so that its next turn need not read all of the conversation again
    kv_warmth: bool
    #: tokens that it held at the end of the last turn
    kv_tokens: int
    #: memory that these take; 0 where the pool's memory was never computed
    kv_bytes: int
    #: what its budgets and its key's still allow; null where none bounds it
    tokens_budget_remaining: int | None = None
    time_budget_remaining_ms: int | None = None
    cost_budget_remaining: str | None = None


class SessionsBody(msgspec.Struct, frozen=True):
    """Sessions by id."""

    sessions: list[SessionBody]


class NewSession(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a session shall be; what is left out is as configured."""

    session_id: Uuid | None = None
    ttl_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | None = None
    turn_limit: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    #: at most one for each window
    budgets: Annotated[list[BudgetCapSettings], Meta(max_length=3)] = []


def body_of(view: SessionView) -> SessionBody:
    """A session as routes show it."""
    state, left = view.state, view.remaining
    return SessionBody(
        session_id=state.session_id,
        owner=state.owner,
        ttl_ms=state.ttl_ms,
        ttl_ms_remaining=view.ttl_ms_remaining,
        turns=state.turns,
        turn_limit=state.turn_limit,
        turns_remaining=max(0, state.turn_limit - state.turns),
        active_tasks=state.live,
        created_ms=state.opened_ns // 1_000_000,
        pool_id=state.pool_id,
        kv_warmth=view.kv_warmth,
        kv_tokens=state.kv.tokens if state.kv is not None and view.kv_warmth else 0,
        kv_bytes=view.kv_bytes,
        tokens_budget_remaining=left.tokens if left is not None else None,
        time_budget_remaining_ms=left.decode_us // 1000 if left is not None and left.decode_us is not None else None,
        cost_budget_remaining=decimal(left.cost_pico) if left is not None and left.cost_pico is not None else None,
    )


@resource("/v1/sessions", tag="sessions")
class SessionsResource(Resource):
    """All open sessions."""

    @operation("List sessions.")
    async def on_get(self, call: Call) -> SessionsBody:
        """The caller's open sessions; with the scope ``admin`` all of them."""
        return SessionsBody([body_of(view) for view in self.services.sessions.views(call.caller)])

    @operation("Open a session.", status=201, errors=(ConflictError, SessionExpiredError, JournalUnavailableError))
    async def on_post(self, call: Call, body: NewSession) -> SessionBody | Answer:
        """A task with a new ``session_id`` opens one too; here it can have budgets of its own from the start."""
        view = await self.services.sessions.create(
            call.caller,
            session_id=body.session_id,
            ttl_ms=body.ttl_ms,
            turn_limit=body.turn_limit,
            budgets=body.budgets,
            correlation=call.correlation,
        )
        told = body_of(view)
        return Answer(told, status=201, headers={"Location": f"/v1/sessions/{told.session_id}"})
