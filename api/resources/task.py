"""``/v1/tasks/{id}``: state, result and usage of one task."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ...core.errors import JournalUnavailableError, NotFoundError
from ...core.services.tasks import TaskInfo
from ..operations import Call, Resource, operation, resource
from ..waiting import wait_for_end


class WaitQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the answer may wait."""

    #: milliseconds to wait for the task's end; 0 = answer at once
    wait: Annotated[int, Meta(ge=0, le=600_000)] = 0


@resource("/v1/tasks/{task_id}", tag="tasks")
class TaskResource(Resource):
    """One task."""

    @operation("Get a task: state, result, usage.", errors=(NotFoundError, JournalUnavailableError))
    async def on_get(self, call: Call, query: WaitQuery, task_id: str) -> TaskInfo:
        """With ``wait`` the answer comes when the task has ended, or after so many milliseconds as it is then."""
        if query.wait:
            return await wait_for_end(self.services, call, task_id, query.wait)
        info: TaskInfo = await self.services.tasks.get(task_id, call.caller)
        return info
