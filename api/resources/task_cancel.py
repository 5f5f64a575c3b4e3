"""``/v1/tasks/{id}/cancel`` (CAN-1)."""

from __future__ import annotations

from ...core.errors import JournalUnavailableError, NotFoundError
from ..operations import Call, Resource, operation, resource


@resource("/v1/tasks/{task_id}/cancel", tag="tasks")
class TaskCancelResource(Resource):
    """The cancel of a task."""

    @operation("Cancel a task.", status=204, errors=(NotFoundError, JournalUnavailableError))
    async def on_post(self, call: Call, task_id: str) -> None:
        """Idempotent: 204 once the cancel is durable, and for a task that has ended. No token follows it for any reader."""
        await self.services.cancel.cancel(task_id, call.caller, reason="client", correlation=call.correlation)
