"""The Python SDK: submit tasks, follow their streams across broken connections and restarts, and look at the server.

::

    from llama_orch.client import Client, TaskRequest

    with Client() as client:
        task = client.submit(TaskRequest(model_ref="haiku", prompt="Write a haiku about rain"))
        for piece in task.text():
            print(piece, end="", flush=True)

:class:`AsyncClient` is the same with ``await``. Nothing here knows the server's own code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    ApiError,
    BackpressureError,
    BadTokenError,
    BudgetExhaustedError,
    ConflictError,
    ContextExceededError,
    DeadlineUnmetError,
    DroppedError,
    ForbiddenError,
    InvalidParamsError,
    JournalUnavailableError,
    LlamaOrchError,
    MissingTokenError,
    ModelDeprecatedError,
    ModelNotFoundError,
    NotFoundError,
    PayloadTooLargeError,
    PolicyDeniedError,
    PoolUnavailableError,
    PoolUnreadyError,
    RateLimitedError,
    ReplicaExhaustedError,
    ResumeLostError,
    ServerDefectError,
    SessionExpiredError,
    SessionTurnsExceededError,
    SilentError,
    StreamBrokenError,
    TaskCancelledError,
    TaskFailedError,
    UnavailableError,
    UnreachableError,
    UntrustedArtifactError,
)
from .events import End, Event, Metrics, Queued, Reconnected, Restarted, Started, Token
from .sse import Frame
from .sync import Client, TaskHandle
from .sync_stream import Frames, Stream
from .types import (
    Admission,
    Budget,
    BudgetCap,
    Caps,
    ChatMessage,
    Choice,
    Model,
    NewSession,
    Placement,
    Pool,
    Problem,
    Quantities,
    Queue,
    QueueEntry,
    QueueGroup,
    Session,
    Task,
    TaskPage,
    TaskRequest,
    TokenLogprob,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from .aio import AsyncClient, AsyncTaskHandle
    from .aio_stream import AsyncFrames, AsyncStream

__all__ = [
    "Admission",
    "ApiError",
    "AsyncClient",
    "AsyncFrames",
    "AsyncStream",
    "AsyncTaskHandle",
    "BackpressureError",
    "BadTokenError",
    "Budget",
    "BudgetCap",
    "BudgetExhaustedError",
    "Caps",
    "ChatMessage",
    "Choice",
    "Client",
    "ConflictError",
    "ContextExceededError",
    "DeadlineUnmetError",
    "DroppedError",
    "End",
    "Event",
    "ForbiddenError",
    "Frame",
    "Frames",
    "InvalidParamsError",
    "JournalUnavailableError",
    "LlamaOrchError",
    "Metrics",
    "MissingTokenError",
    "Model",
    "ModelDeprecatedError",
    "ModelNotFoundError",
    "NewSession",
    "NotFoundError",
    "PayloadTooLargeError",
    "Placement",
    "PolicyDeniedError",
    "Pool",
    "PoolUnavailableError",
    "PoolUnreadyError",
    "Problem",
    "Quantities",
    "Queue",
    "QueueEntry",
    "QueueGroup",
    "Queued",
    "RateLimitedError",
    "Reconnected",
    "ReplicaExhaustedError",
    "Restarted",
    "ResumeLostError",
    "ServerDefectError",
    "Session",
    "SessionExpiredError",
    "SessionTurnsExceededError",
    "SilentError",
    "Started",
    "Stream",
    "StreamBrokenError",
    "Task",
    "TaskCancelledError",
    "TaskFailedError",
    "TaskHandle",
    "TaskPage",
    "TaskRequest",
    "Token",
    "TokenLogprob",
    "ToolCall",
    "UnavailableError",
    "UnreachableError",
    "UntrustedArtifactError",
    "Usage",
]

_ASYNC = {"AsyncClient": "aio", "AsyncTaskHandle": "aio", "AsyncFrames": "aio_stream", "AsyncStream": "aio_stream"}


def __getattr__(name: str) -> Any:
    """The asynchronous half, imported when it is asked for: programs without asyncio start quicker."""
    if name not in _ASYNC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_ASYNC[name]}", __name__), name)
