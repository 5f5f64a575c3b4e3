"""``/v1/queue``: what waits, per serving group."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ..operations import Call, Resource, operation, resource


class QueueQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many tasks are listed."""

    #: tasks per group
    limit: Annotated[int, Meta(ge=0, le=10_000)] = 1000


class QueueEntry(msgspec.Struct, frozen=True):
    """A task that waits."""

    task_id: str
    position: int
    priority: str
    waited_ms: int
    predicted_start_ms: int


class GroupQueueBody(msgspec.Struct, frozen=True, kw_only=True):
    """The queue of the pools that serve one model."""

    group: str
    #: tasks per priority
    depth: dict[str, int]
    capacity: int
    #: the first tasks, in the order in which they will start
    entries: list[QueueEntry]


class QueueBody(msgspec.Struct, frozen=True):
    """All queues."""

    groups: list[GroupQueueBody]


@resource("/v1/queue", tag="queue")
class QueueResource(Resource):
    """The queue."""

    @operation("Show the queue.")
    async def on_get(self, call: Call, query: QueueQuery) -> QueueBody:
        """Depth per priority and the waiting tasks with place and predicted start."""
        groups = [
            GroupQueueBody(
                group=group["group"],
                depth=group["depth"],
                capacity=group["capacity"],
                entries=[QueueEntry(**entry) for entry in group["tasks"]],
            )
            for group in self.services.tasks.queue(query.limit)
        ]
        return QueueBody(groups)
