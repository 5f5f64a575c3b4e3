"""The error that a compatible API's client hears when the task behind its request failed."""

from __future__ import annotations

from ...core.errors import InternalError, OrchError, StreamError
from ...core.events.task import TaskEnded
from ...core.services.tasks import TaskInfo
from ..problems import STATUS_OF_CODE


class TaskFailedError(StreamError):
    """The task behind a request failed: under its own code, with that code's status where it has one."""

    def __init__(self, code: str, message: str, *, retriable: bool, task_id: str) -> None:
        super().__init__(
            message or code,
            remedy=f"GET /v1/tasks/{task_id} tells more." + (" Send the request again." if retriable else ""),
            retry_after_ms=1000 if retriable else None,
            task_id=task_id,
        )
        self.code = code or InternalError.code  # type: ignore[misc]
        self.retriable = retriable  # type: ignore[misc]
        known = STATUS_OF_CODE.get(self.code, 500)
        self.status = known if known != 500 or not retriable else 503  # type: ignore[misc]


def failure_of_info(info: TaskInfo) -> OrchError:
    """The error behind a failed task."""
    problem = info.error
    if problem is None:
        return InternalError("the task failed without a reason")
    return TaskFailedError(problem.code, problem.message, retriable=problem.retriable, task_id=info.task_id)


def failure_of_event(event: TaskEnded) -> OrchError:
    """The error behind a failed end."""
    return TaskFailedError(event.code, event.message, retriable=event.retriable, task_id=event.task_id)
