"""Stored responses: a task is one as long as its owner does not delete it (API-2)."""

from __future__ import annotations

from ..errors import NotFoundError
from ..events.response import ResponseDeleted
from ..events.task import TaskAdmitted
from ..journal.journal import Journal
from ..projections.responses import Responses
from .bodies import RequestBody
from .caller import Caller
from .cancel import CancelService
from .tasks import TaskQueries

#: which API a task was submitted by whose response may be stored
API = "openai.responses"


class ResponseService:
    """Finds stored responses, and forgets them."""

    def __init__(self, journal: Journal, tasks: TaskQueries, cancel: CancelService) -> None:
        self._journal = journal
        self._tasks = tasks
        self._cancel = cancel

    async def get(self, task_id: str, caller: Caller) -> tuple[TaskAdmitted, RequestBody]:
        """What a stored response asked for.

        :raises NotFoundError: there is none, it is somebody else's, it was not to be stored, or it was deleted.
        """
        if task_id in self._journal.head.of(Responses).deleted:
            raise NotFoundError("this response was deleted")
        admitted, body = await self._tasks.request_of(task_id, caller)
        if admitted.api != API or body.shown is None or body.shown.get("store") is False:
            raise NotFoundError("this task is no stored response")
        return admitted, body

    async def delete(self, task_id: str, caller: Caller, *, correlation: str) -> None:
        """Forget a response, and return once that is durable; while its task runs, it is cancelled first.

        :raises NotFoundError: as :meth:`get`.
        :raises JournalUnavailableError: it could not be made durable; trying again is safe.
        """
        admitted, _ = await self.get(task_id, caller)
        await self._cancel.cancel(task_id, caller, correlation=correlation)
        deleted = self._journal.head.of(Responses).deleted
        if task_id not in deleted:
            event = ResponseDeleted(task_id=task_id, owner=admitted.owner)
            self._journal.append([event], actor=caller.identity, correlation=correlation)
        await self._journal.synced(self._journal.head.next_seq)
