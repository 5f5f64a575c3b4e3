"""``/v1/tasks/{id}/decision``: why a task was placed where it was (PLC-2)."""

from __future__ import annotations

from typing import Any

from ...core.errors import NotFoundError
from ..operations import Call, Resource, operation, resource


@resource("/v1/tasks/{task_id}/decision", tag="tasks")
class TaskDecisionResource(Resource):
    """A task's placement."""

    @operation("Explain a task's placement.", errors=(NotFoundError,))
    async def on_get(self, call: Call, task_id: str) -> dict[str, Any]:
        """The last decision's fields, ``decisions`` with one per attempt, what a queued task waits for, per pool, and
        ``waits``: why its model is not loaded for it."""
        said: dict[str, Any] = await self.services.tasks.decision(task_id, call.caller)
        last = said["decisions"][-1] if said["decisions"] else {}
        waits = self.services.explaining.waits(task_id) if said["state"] == "queued" else ""
        return {**last, **said, "waits": waits}
