"""An ended task's words and its end, as its stream shows them: what an answer in one piece is put together from."""

from __future__ import annotations

from ...core.entries import EntryBatch
from ...core.errors import CorruptJournalError
from ...core.events.task import TaskEnded
from ...core.journal.live import Segment
from ...core.services.container import Services
from ...core.services.streams import Ended


async def spoken(services: Services, owner: str, task_id: str) -> tuple[list[EntryBatch], TaskEnded]:
    """All entries of an ended task, and its end.

    :raises NotFoundError: there is no such task of this owner.
    :raises CorruptJournalError: its stream has no end.
    """
    batches: list[EntryBatch] = []
    async for items in await services.streams.open(task_id, owner=owner):
        for item in items:
            if isinstance(item, Segment):
                batches.append(item.batch)
            elif isinstance(item, Ended):
                return batches, item.payload
    msg = f"the stream of task {task_id} has no end"
    raise CorruptJournalError(msg)
