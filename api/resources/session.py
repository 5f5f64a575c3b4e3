"""``/v1/sessions/{id}``: one open session (SES-1)."""

from __future__ import annotations

from ...core.errors import JournalUnavailableError, NotFoundError
from ..operations import Answer, Call, Resource, operation, resource
from .sessions import SessionBody, body_of


@resource("/v1/sessions/{session_id}", tag="sessions")
class SessionResource(Resource):
    """One session."""

    @operation("Get a session.", errors=(NotFoundError,))
    async def on_get(self, call: Call, session_id: str) -> SessionBody:
        """Turns taken and left, how long it may stay idle, what an engine holds of it, what its budgets still allow."""
        return body_of(self.services.sessions.get(session_id, call.caller))

    @operation("Close a session.", status=204, errors=(JournalUnavailableError,))
    async def on_delete(self, call: Call, session_id: str) -> Answer:
        """Its KV cache is freed, at once or when its last task ends; its tasks go on. 204 also when it is gone."""
        await self.services.sessions.delete(session_id, call.caller, call.correlation)
        return Answer(status=204)
