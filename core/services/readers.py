"""Who reads which task now: the last reader's leaving may cancel the task (STR-6)."""

from __future__ import annotations

from ..errors import JournalUnavailableError
from ..journal.journal import Journal
from .caller import Caller
from .cancel import CancelService


class Readers:
    """Counts readers per task."""

    def __init__(self, journal: Journal, cancel: CancelService) -> None:
        self._journal = journal
        self._cancel = cancel
        self._count: dict[str, int] = {}

    @property
    def open(self) -> int:
        """Readers of all tasks."""
        return sum(self._count.values())

    def attach(self, task_id: str) -> None:
        """A reader came."""
        self._count[task_id] = self._count.get(task_id, 0) + 1

    def detach(self, task_id: str, caller: Caller, *, gone: bool) -> None:
        """A reader left; ``gone``: its connection broke before the end of the stream."""
        left = self._count.get(task_id, 1) - 1
        if left > 0:
            self._count[task_id] = left
            return
        self._count.pop(task_id, None)
        state = self._journal.head.tasks.live.get(task_id)
        if not gone or state is None or not state.admitted.cancel_on_disconnect:
            return
        try:
            self._cancel.cancel_now(task_id, reason="disconnect", actor=caller.identity)
        except JournalUnavailableError:
            return  # the task goes on; its deadline and watchdogs still hold
