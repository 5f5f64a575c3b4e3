"""Cancel: the end is in the journal before the engine hears of it (CAN-1, CAN-2)."""

from __future__ import annotations

import asyncio

from ..events.task import TaskCancelled
from ..journal.journal import Journal
from .caller import Caller
from .dispatch import Dispatcher
from .streams import not_found


class CancelService:
    """Cancels tasks. Race-free by construction: after the end, head takes no entry of any attempt."""

    def __init__(self, journal: Journal, dispatcher: Dispatcher) -> None:
        self._journal = journal
        self._dispatcher = dispatcher

    async def cancel(self, task_id: str, caller: Caller, *, reason: str = "client", correlation: str = "") -> None:
        """Cancel a task and return once that is durable; a task that has ended stays as it is.

        :raises NotFoundError: there is no such task of this caller.
        :raises JournalUnavailableError: it could not be made durable; trying again is safe.
        """
        head = self._journal.head
        state = self._journal.task(task_id)
        if state is None:
            row = await asyncio.to_thread(self._journal.store.index_row, task_id)
            if row is None or row.owner != caller.owner:
                raise not_found(task_id)
            return
        if state.admitted.owner != caller.owner:
            raise not_found(task_id)
        seq = head.next_seq
        if state.ended is None:
            seq = self.cancel_now(task_id, reason=reason, actor=caller.identity, correlation=correlation)
        await self._journal.synced(seq)

    def cancel_now(self, task_id: str, *, reason: str, actor: str, correlation: str = "") -> int:
        """Append the cancel of a live task and stop its engine; the seq to wait for.

        :raises JournalUnavailableError: nothing was applied.
        """
        state = self._journal.head.tasks.live[task_id]
        cancelled = TaskCancelled(task_id=task_id, reason=reason)
        group = state.admitted.group
        seq = self._dispatcher.end_task(
            state,
            [cancelled],
            actor=actor,
            correlation=correlation or state.correlation,
            outcome="cancelled",
            finish_reason="cancelled",
        )
        self._dispatcher.pump(group)
        return seq
