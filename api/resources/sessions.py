"""``/v1/sessions``: open sessions (SES-1, reading)."""

from __future__ import annotations

import msgspec

from ...core.projections.sessions import SessionState
from ...core.services.container import Services
from ..operations import Call, Resource, operation, resource


class SessionBody(msgspec.Struct, frozen=True, kw_only=True):
    """A session: turns that belong together."""

    session_id: str
    ttl_ms: int
    ttl_ms_remaining: int
    turns: int
    turn_limit: int
    turns_remaining: int
    created_ms: int
    #: pool of its last task
    pool_id: str


class SessionsBody(msgspec.Struct, frozen=True):
    """Sessions by id."""

    sessions: list[SessionBody]


def body_of(state: SessionState, now_ns: int) -> SessionBody:
    """A session as routes show it."""
    idle_ms = (now_ns - state.used_ns) // 1_000_000
    return SessionBody(
        session_id=state.session_id,
        ttl_ms=state.ttl_ms,
        ttl_ms_remaining=max(0, state.ttl_ms - idle_ms),
        turns=state.turns,
        turn_limit=state.turn_limit,
        turns_remaining=max(0, state.turn_limit - state.turns),
        created_ms=state.opened_ns // 1_000_000,
        pool_id=state.pool_id,
    )


def open_sessions(services: Services, owner: str, now_ns: int) -> list[SessionState]:
    """An owner's sessions whose idle time is not over, by id."""
    states: dict[str, SessionState] = services.journal.head.sessions.by_id
    return [s for _, s in sorted(states.items()) if s.owner == owner and not s.due(now_ns)]


@resource("/v1/sessions", tag="sessions")
class SessionsResource(Resource):
    """All open sessions."""

    @operation("List sessions.")
    async def on_get(self, call: Call) -> SessionsBody:
        """The caller's open sessions."""
        now = self.context.now_ns()
        return SessionsBody([body_of(s, now) for s in open_sessions(self.services, call.caller.owner, now)])
