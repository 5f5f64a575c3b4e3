"""The queues of the serving groups: who waits, in which order (ADM-3).

A task keeps its number (the seq of its admission) as its ticket, so that a task whose attempt broke off
returns to the place it had.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..events.task import TaskAdmitted, TaskAttemptFailed, TaskEnded, TaskPlaced
from .projection import Projection, Recorded, on
from .rank import RankSet

INTERACTIVE = "interactive"
BATCH = "batch"


class Lane:
    """The tasks of one priority in one group, first come first served."""

    def __init__(self) -> None:
        self.tickets = RankSet()
        self.tasks: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.tasks)

    def add(self, ticket: int, task_id: str) -> None:
        """Queue a task at its ticket's place."""
        self.tickets.add(ticket)
        self.tasks[ticket] = task_id

    def remove(self, ticket: int) -> None:
        """Take a task out."""
        self.tickets.remove(ticket)
        del self.tasks[ticket]

    def first(self) -> tuple[int, str] | None:
        """Ticket and id of the task at the head."""
        ticket = self.tickets.first()
        return None if ticket is None else (ticket, self.tasks[ticket])


class GroupQueue:
    """The queue of one serving group."""

    def __init__(self) -> None:
        self.interactive = Lane()
        self.batch = Lane()
        #: since when the first of the batch lane has been the first, Unix ns
        self.batch_since_ns = 0

    def __len__(self) -> int:
        return len(self.interactive) + len(self.batch)

    def lane(self, priority: str) -> Lane:
        """The lane of a priority."""
        return self.batch if priority == BATCH else self.interactive


class Queue(Projection):
    """All groups' queues."""

    name = "queue"
    version = 2

    def __init__(self) -> None:
        self.groups: dict[str, GroupQueue] = {}
        #: group, priority, ticket of every task that is queued or placed
        self._places: dict[str, tuple[str, str, int]] = {}

    def position(self, task_id: str) -> int:
        """How many tasks are before this one (0 = next), or -1 when it does not wait."""
        place = self._places.get(task_id)
        if place is None:
            return -1
        group, priority, ticket = place
        queue = self.groups.get(group)
        if queue is None or ticket not in queue.lane(priority).tickets:
            return -1
        before = queue.lane(priority).tickets.rank(ticket)
        return before + len(queue.interactive) if priority == BATCH else before

    def waiting(self, group: str) -> Iterator[tuple[str, str]]:
        """``(task_id, priority)`` of a group's queued tasks in the order of the lanes."""
        queue = self.groups.get(group)
        if queue is not None:
            for priority in (INTERACTIVE, BATCH):
                lane = queue.lane(priority)
                for ticket in sorted(lane.tasks):
                    yield lane.tasks[ticket], priority

    def first_waiting(self, group: str, limit: int) -> list[str]:
        """The first tasks of a group in the order of its lanes, at most ``limit`` of each lane."""
        out: list[str] = []
        queue = self.groups.get(group)
        for lane in (queue.interactive, queue.batch) if queue is not None else ():
            ticket = lane.tickets.first()
            left = limit
            while ticket is not None and left:
                out.append(lane.tasks[ticket])
                ticket = lane.tickets.after(ticket)
                left -= 1
        return out

    def depth(self) -> int:
        """Tasks queued in all groups."""
        return sum(len(q) for q in self.groups.values())

    def _enter(self, task_id: str, now_ns: int) -> None:
        group, priority, ticket = self._places[task_id]
        queue = self.groups.get(group)
        if queue is None:
            queue = self.groups[group] = GroupQueue()
        lane = queue.lane(priority)
        lane.add(ticket, task_id)
        if lane is queue.batch and lane.tickets.first() == ticket:
            queue.batch_since_ns = now_ns

    def _leave(self, task_id: str, now_ns: int) -> None:
        group, priority, ticket = self._places[task_id]
        queue = self.groups.get(group)
        if queue is not None and ticket in queue.lane(priority).tickets:
            lane = queue.lane(priority)
            if lane is queue.batch and lane.tickets.first() == ticket:
                queue.batch_since_ns = now_ns
            lane.remove(ticket)
            if not len(queue):
                del self.groups[group]

    @on(TaskAdmitted)
    def _admitted(self, record: Recorded) -> None:
        event: TaskAdmitted = record.payload
        self._places[event.task_id] = (event.group, event.priority, record.seq)
        self._enter(event.task_id, record.time_ns)

    @on(TaskPlaced)
    def _placed(self, record: Recorded) -> None:
        self._leave(record.payload.task_id, record.time_ns)

    @on(TaskAttemptFailed)
    def _attempt_failed(self, record: Recorded) -> None:
        self._enter(record.payload.task_id, record.time_ns)

    @on(TaskEnded)
    def _ended(self, record: Recorded) -> None:
        task_id = record.payload.task_id
        if task_id in self._places:
            self._leave(task_id, record.time_ns)
            del self._places[task_id]

    def dump(self) -> Any:
        """Places of all tasks in order of their tickets, with whether they wait; since when batch tasks are first."""
        rows = sorted(
            (ticket, task_id, group, priority, self.position(task_id) >= 0)
            for task_id, (group, priority, ticket) in self._places.items()
        )
        since = {name: queue.batch_since_ns for name, queue in sorted(self.groups.items())}
        return {"places": [list(row) for row in rows], "batch_since_ns": since}

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.__init__()  # type: ignore[misc]
        for ticket, task_id, group, priority, waits in data["places"]:
            self._places[task_id] = (group, priority, ticket)
            if waits:
                self._enter(task_id, 0)
        for name, since_ns in data["batch_since_ns"].items():
            self.groups[name].batch_since_ns = since_ns
