"""Recovery: what a killed server left is taken up again (RCV-1).

Engines survive the orchestrator, but generations do not. Attempts that were placed or running are given up,
their leases released, and their tasks return to their old place in the queue; the next attempt regenerates
and checks, or continues.
"""

from __future__ import annotations

from collections.abc import Container

from ..events.lease import LeaseReleased
from ..events.task import TaskAttemptFailed, TaskEnded
from ..journal.journal import Journal
from ..projections.head import Head
from ..projections.tasks import TaskState
from ..types import TaskPhase
from .ends import end_of


def recover(journal: Journal, watched: Container[str] = ()) -> int:
    """Append what follows from the restart; how many tasks go on.

    :param watched: leases whose slots somebody still watches, after a reopening within the same process.
    """
    head = journal.head
    events: list[object] = []
    for lease in sorted(head.leases.by_id.values(), key=lambda one: one.lease_id):
        if lease.lease_id in watched:
            continue
        events.append(
            LeaseReleased(lease_id=lease.lease_id, pool_id=lease.pool_id, task_id=lease.task_id, cause="restart")
        )
    for state in list(head.tasks.live.values()):
        if state.phase == TaskPhase.QUEUED:
            continue
        if state.entries and state.admitted.recovery == "none":
            events.append(_interrupted(head, state, journal.now_ns()))
            continue
        events.append(
            TaskAttemptFailed(
                task_id=state.task_id,
                attempt=state.attempt,
                pool_id=state.pool_id,
                code="restart",
                message="the server was restarted while the attempt ran",
            )
        )
    if events:
        journal.append(events, actor="recovery", correlation="")
    return len(head.tasks.live)


def _interrupted(head: Head, state: TaskState, now_ns: int) -> TaskEnded:
    message = "the server was restarted, and the task asked for no recovery"
    return end_of(head, state, now_ns, "failed", "error", code="INTERRUPTED", message=message, retriable=True)
