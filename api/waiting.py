"""Waiting for a task's end on behalf of a client that may leave before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.services.container import Services
from ..core.services.tasks import TaskInfo
from .operations import Call

#: "until it ends": longer than any task's deadline
FOREVER_MS = 31_536_000_000


async def wait_for_end(services: Services, call: Call, task_id: str, timeout_ms: int = FOREVER_MS) -> TaskInfo:
    """The task once its end is durable, or as it is after the time; the caller counts as a reader of the task (STR-6).

    :raises asyncio.CancelledError: the client left; the layer above answers nobody.
    """
    connection = call.connection
    readers, caller = services.readers, call.caller
    task = asyncio.current_task()
    assert task is not None
    readers.attach(task_id)
    try:
        connection.on_lost(task.cancel)
        info: TaskInfo = await services.tasks.wait(task_id, caller, timeout_ms)
        return info
    finally:
        connection.on_lost(None)
        readers.detach(task_id, caller, gone=connection.lost)


async def wait_for_ends(services: Services, call: Call, task_ids: Sequence[str]) -> list[TaskInfo]:
    """The tasks once all of them have ended, or one of them failed: the others are left then (STR-6).

    :raises asyncio.CancelledError: the client left; the layer above answers nobody.
    """
    connection = call.connection
    readers, caller = services.readers, call.caller
    task = asyncio.current_task()
    assert task is not None
    found: dict[str, TaskInfo] = {}
    failed = False
    for task_id in task_ids:
        readers.attach(task_id)
    waits = [asyncio.ensure_future(services.tasks.wait(task_id, caller, FOREVER_MS)) for task_id in task_ids]
    try:
        connection.on_lost(task.cancel)
        for wait in asyncio.as_completed(waits):
            info: TaskInfo = await wait
            found[info.task_id] = info
            failed = info.state == "failed"
            if failed:
                break
        return [found[task_id] for task_id in task_ids if task_id in found]
    finally:
        connection.on_lost(None)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        for task_id in task_ids:
            # Whose request failed with one of its tasks has left the others.
            readers.detach(task_id, caller, gone=connection.lost or (failed and task_id not in found))
