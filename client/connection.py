"""What both clients tell httpx2, and what its exceptions become."""

from __future__ import annotations

import httpx2

from llama_orch import __version__

from .errors import SilentError, TaskFailedError, UnreachableError
from .target import shown
from .types import Task

#: a stream sends a comment at least every 15 s; a silence of this length is a dead connection
STREAM_SILENCE_S = 60.0
#: how long one question for a task's end is held open
WAIT_MS = 20_000
#: longest time for a connection to be made
_CONNECT_S = 10.0

#: as many streams at a time as a program likes
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=20)

AGENT = f"llama-orch-python/{__version__}"


def timeouts(silence_s: float) -> httpx2.Timeout:
    """Time-outs of one call. :param silence_s: longest time without a byte."""
    return httpx2.Timeout(silence_s, connect=min(_CONNECT_S, silence_s))


def unreachable(error: Exception, url: str) -> UnreachableError:
    """A failure of the transport as ours."""
    slow = isinstance(error, httpx2.TimeoutException)
    what = "took too long to answer" if slow else "does not answer"
    kind = SilentError if slow else UnreachableError
    url = shown(url)
    return kind(f"the server at {url} {what} ({str(error) or type(error).__name__})", url=url)


def failed_task(task: Task) -> Task:
    """The task. :raises TaskFailedError: it failed."""
    if task.state == "failed":
        problem = task.error
        data = {"code": problem.code, "message": problem.message, "retriable": problem.retriable} if problem else {}
        raise TaskFailedError(data, task_id=task.task_id)
    return task
