"""``/v1/sessions/{id}``: one open session (SES-1, reading)."""

from __future__ import annotations

from ...core.errors import NotFoundError
from ..operations import Call, Resource, operation, resource
from .sessions import SessionBody, body_of, open_sessions


@resource("/v1/sessions/{session_id}", tag="sessions")
class SessionResource(Resource):
    """One session."""

    @operation("Get a session.", errors=(NotFoundError,))
    async def on_get(self, call: Call, session_id: str) -> SessionBody:
        """Turns taken and left, and how long it may stay idle."""
        now = self.context.now_ns()
        for state in open_sessions(self.services, call.caller.owner, now):
            if state.session_id == session_id:
                return body_of(state, now)
        msg = f"there is no open session {session_id}"
        raise NotFoundError(
            msg,
            field="session_id",
            got=session_id,
            remedy="GET /v1/sessions lists the open ones; a task with a new session_id opens one.",
        )
