"""``/v1/tasks``: submit a task, list tasks (ADM-1)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ...core.errors import (
    BackpressureError,
    BudgetExhaustedError,
    ConflictError,
    ContextExceededError,
    DeadlineUnmetError,
    DroppedError,
    JournalUnavailableError,
    ModelNotFoundError,
    PoolUnreadyError,
    SessionExpiredError,
    SessionTurnsExceededError,
)
from ...core.services.tasks import TaskInfo
from ...core.types import TaskRequest, Uuid
from ..budget_headers import BUDGET_HELP, budget_headers
from ..operations import Answer, Call, Resource, operation, resource
from ..workloads import idempotency_key, require_sound

SUBMIT_ERRORS = (
    ContextExceededError,
    DeadlineUnmetError,
    ModelNotFoundError,
    ConflictError,
    SessionTurnsExceededError,
    SessionExpiredError,
    BudgetExhaustedError,
    BackpressureError,
    DroppedError,
    PoolUnreadyError,
    JournalUnavailableError,
)


class Accepted(msgspec.Struct, frozen=True):
    """A task that waits in its queue; the prediction counts from now."""

    task_id: str
    #: tasks before it
    queue_position: int
    predicted_start_ms: int
    #: the task starts between these two with 80 % probability
    predicted_start_ms_p10: int
    predicted_start_ms_p90: int
    #: how long to hold back the next task; 0 = not at all
    backoff_ms: int
    #: the Idempotency-Key or task_id was seen before: this is that task
    attached: bool


class TaskQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tasks a page holds."""

    state: Literal["queued", "placed", "running", "completed", "cancelled", "failed"] | None = None
    model_ref: Annotated[str, Meta(max_length=512)] = ""
    session_id: Uuid | None = None
    #: ``next`` of the page before
    before: Annotated[str, Meta(pattern=r"^[0-9]{0,18}$")] = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class TaskPage(msgspec.Struct, frozen=True):
    """Tasks, newest first."""

    tasks: list[TaskInfo]
    #: value of ``before`` for the next page; "" at the end
    next: str


@resource("/v1/tasks", tag="tasks")
class TasksResource(Resource):
    """All tasks."""

    @operation(
        "Submit a task.",
        status=202,
        errors=SUBMIT_ERRORS,
        request_headers={
            "Idempotency-Key": "The same key with the same body attaches to the task that it admitted (24 h)."
        },
        answer_headers=BUDGET_HELP,
    )
    async def on_post(self, call: Call, body: TaskRequest) -> Accepted | Answer:
        """Accepted tasks wait in the queue of the model's pools and survive crashes. The answer comes once that is durable."""
        require_sound(body)
        admission = await self.services.admission.submit(
            body,
            call.caller,
            correlation=call.correlation,
            idempotency_key=idempotency_key(call),
            api="tasks",
        )
        accepted = Accepted(
            admission.task_id,
            admission.queue_position,
            admission.predicted_start_ms,
            admission.predicted_start_ms_p10,
            admission.predicted_start_ms_p90,
            admission.backoff_ms,
            admission.attached,
        )
        headers = {"Location": f"/v1/tasks/{admission.task_id}"}
        headers |= budget_headers(self.services, call.caller, body.session_id)
        return Answer(accepted, status=202, headers=headers)

    @operation("List tasks, newest first.")
    async def on_get(self, call: Call, query: TaskQuery) -> TaskPage:
        """Waiting, running and ended tasks of the caller, in pages."""
        infos, following = await self.services.tasks.page(
            call.caller,
            state=query.state or "",
            model_ref=query.model_ref,
            session_id=query.session_id or "",
            before=query.before,
            limit=query.limit,
        )
        return TaskPage(infos, following)
