"""What can go wrong, as exceptions: one class per stable code of the server, under one root.

::

    LlamaOrchError
      UnreachableError              no server answers, or the connection broke
        SilentError                 it took longer than the time-out
      StreamBrokenError             a stream broke off, and came back too seldom
      TaskFailedError               a task was accepted and ended with an error
      ApiError                      the server refused, with its code, remedy and whether it is worth to come again
        InvalidParamsError, …       a class per code, see :data:`BY_CODE`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class LlamaOrchError(Exception):
    """Root of everything that this package raises on purpose."""

    #: stable, for programs
    code: str = ""
    #: whether the same request may succeed later
    retriable: bool = False
    #: what to do next
    remedy: str = ""
    #: how long to wait before it, as the server says; ``None`` = it does not say
    retry_after_ms: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UnreachableError(LlamaOrchError):
    """Nothing answers at the address, or the connection broke before the answer was whole."""

    code = "UNREACHABLE"
    retriable = True
    remedy = "`llama-orch status` shows what runs; `llama-orch serve` starts a server."

    def __init__(self, message: str, *, url: str = "") -> None:
        super().__init__(message)
        self.url = url


class SilentError(UnreachableError):
    """The server took longer than the time-out."""

    code = "TIMEOUT"


class StreamBrokenError(LlamaOrchError):
    """A stream broke off and could not be taken up again as often as it was allowed to; the task may still run.

    :param last_id: the id of the last frame seen: a new stream that begins ``after`` it misses nothing.
    """

    code = "STREAM_BROKEN"
    retriable = True
    remedy = "The task may still run: follow it again, after last_id."

    def __init__(self, message: str, *, task_id: str, last_id: str) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.last_id = last_id


class TaskFailedError(LlamaOrchError):
    """A task ended with an error.

    :param data: the stream's ``error`` frame, or the task's ``error``.
    """

    def __init__(self, data: Mapping[str, Any], *, task_id: str) -> None:
        super().__init__(str(data.get("message") or data.get("code") or "no reason given"))
        self.code = str(data.get("code") or "")
        self.retriable = bool(data.get("retriable"))
        self.remedy = str(data.get("remedy") or ("Send the task again." if self.retriable else ""))
        self.retry_after_ms = int(data.get("retry_after_ms") or 0) or None
        self.task_id = task_id
        self.data = dict(data)


class ApiError(LlamaOrchError):
    """The server answered with an error.

    :param status: HTTP status.
    :param body: the error's body without its envelope.
    """

    def __init__(self, status: int, body: Mapping[str, Any], message: str = "") -> None:
        super().__init__(message or str(body.get("message") or f"HTTP {status}"))
        self.status = status
        self.body = dict(body)
        self.code = str(body.get("code") or "")
        self.retriable = bool(body.get("retriable", status in {429, 502, 503, 504}))
        self.remedy = str(body.get("remedy") or "")
        wait_ms = body.get("retry_after_ms")
        self.retry_after_ms = wait_ms if isinstance(wait_ms, int) else None
        #: the field at fault and what was found there
        self.field, self.got = body.get("field"), body.get("got")
        #: names this answer in the server's log
        self.correlation_id = str(body.get("correlation_id") or "")


class InvalidParamsError(ApiError):
    """A field has a value that is not accepted."""


class ContextExceededError(ApiError):
    """Prompt and wanted output do not fit the model's context."""


class DeadlineUnmetError(ApiError):
    """The deadline passes before the task could end."""


class UntrustedArtifactError(ApiError):
    """A model does not meet the trust policy."""


class MissingTokenError(ApiError):
    """The server asks for a key."""


class BadTokenError(ApiError):
    """The key is not known, revoked or expired."""


class BudgetExhaustedError(ApiError):
    """The budget is used up."""


class ForbiddenError(ApiError):
    """The caller may not do this."""


class PolicyDeniedError(ApiError):
    """A policy of the server refused the request."""


class NotFoundError(ApiError):
    """There is nothing under this id."""


class ModelNotFoundError(ApiError):
    """No pool serves this model."""


class ConflictError(ApiError):
    """The request contradicts what the server holds under that id or key."""


class SessionTurnsExceededError(ApiError):
    """The session has used up its turns."""


class SessionExpiredError(ApiError):
    """The session is over."""


class ResumeLostError(ApiError):
    """The server lost what it had sent last (a power loss took the end of its journal).

    What was seen after :attr:`last_id_held` may come again, and differ: drop it, and follow the task again from there.
    """

    #: the id of the last frame that the reader had seen
    seen: str = ""

    @property
    def last_id_held(self) -> str:
        """Id of the last frame that is left of those the reader may have seen; "" = none."""
        return str(self.body.get("last_id_held") or "")


class ModelDeprecatedError(ApiError):
    """The model accepts no new work."""


class PayloadTooLargeError(ApiError):
    """The body is larger than the server takes."""


class BackpressureError(ApiError):
    """The queue is full."""


class DroppedError(BackpressureError):
    """A waiting task made room for another one."""


class RateLimitedError(BackpressureError):
    """The key sends more than its rate allows."""


class TaskCancelledError(ApiError):
    """Somebody cancelled the task before its end, and its answer is not whole."""


class UnavailableError(ApiError):
    """The request is fine; the server cannot serve it now."""


class PoolUnreadyError(UnavailableError):
    """The pool that has to serve this is not ready."""


class PoolUnavailableError(UnavailableError):
    """No pool can serve this now."""


class ReplicaExhaustedError(UnavailableError):
    """Every replica failed this task."""


class JournalUnavailableError(UnavailableError):
    """The server's journal cannot be written."""


class ServerDefectError(ApiError):
    """A defect of the server."""


#: which exception a code becomes
BY_CODE: dict[str, type[ApiError]] = {
    "ADMISSION_REJECT": BackpressureError,
    "BAD_TOKEN": BadTokenError,
    "BUDGET_EXHAUSTED": BudgetExhaustedError,
    "CANCELLED": TaskCancelledError,
    "CONFLICT": ConflictError,
    "CONTEXT_EXCEEDED": ContextExceededError,
    "DEADLINE_UNMET": DeadlineUnmetError,
    "FORBIDDEN": ForbiddenError,
    "INTERNAL": ServerDefectError,
    "INVALID_PARAMS": InvalidParamsError,
    "JOURNAL_UNAVAILABLE": JournalUnavailableError,
    "MISSING_TOKEN": MissingTokenError,
    "MODEL_DEPRECATED": ModelDeprecatedError,
    "MODEL_NOT_FOUND": ModelNotFoundError,
    "NOT_FOUND": NotFoundError,
    "PAYLOAD_TOO_LARGE": PayloadTooLargeError,
    "POLICY_DENIED": PolicyDeniedError,
    "POOL_UNAVAILABLE": PoolUnavailableError,
    "POOL_UNREADY": PoolUnreadyError,
    "QUEUE_FULL_DROP_LRU": DroppedError,
    "RATE_LIMITED": RateLimitedError,
    "REPLICA_EXHAUSTED": ReplicaExhaustedError,
    "RESUME_LOST": ResumeLostError,
    "SESSION_EXPIRED": SessionExpiredError,
    "SESSION_TURNS_EXCEEDED": SessionTurnsExceededError,
    "UNTRUSTED_ARTIFACT": UntrustedArtifactError,
}

#: what a status means where the answer has no code that is known
_BY_STATUS: dict[int, type[ApiError]] = {
    401: BadTokenError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: PayloadTooLargeError,
    429: BackpressureError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}


def api_error(status: int, raw: bytes, headers: Mapping[str, str] | None = None) -> ApiError:
    """An answer with a status of 300 or more as its exception; a body in OpenAI's or Anthropic's envelope is opened.

    :param headers: names in lower case; ``Retry-After`` counts where the body says nothing.
    """
    try:
        body = json.loads(raw) if raw else {}
    except (ValueError, RecursionError):
        body = {}
    told: dict[str, Any] = body if isinstance(body, dict) else {}
    if isinstance(told.get("error"), dict):
        told = told["error"]
    text = raw.decode("utf-8", "replace")
    message = text if not told and 0 < len(text) < 500 else ""
    seconds = (headers or {}).get("retry-after", "")
    if "retry_after_ms" not in told and seconds.isascii() and seconds.isdigit() and len(seconds) < 10:
        told = {**told, "retry_after_ms": int(seconds) * 1000}
    if status < 400:  # a key is not taken elsewhere
        told = {"remedy": "Name the server's own address: this one only leads to another."}
        message = f"the answer leads elsewhere (HTTP {status}), and no redirect is followed"
    kind = BY_CODE.get(str(told.get("code")), _BY_STATUS.get(status, ApiError))
    return kind(status, told, message)
