"""Every error that a caller can meet, each with its stable code, HTTP status and remedy.

::

    OrchError
      RequestError                      the request is wrong; retrying it unchanged cannot help
        InvalidParamsError        400  INVALID_PARAMS
        ContextExceededError      400  CONTEXT_EXCEEDED
        DeadlineUnmetError        400  DEADLINE_UNMET
        MissingTokenError         401  MISSING_TOKEN
        BadTokenError             401  BAD_TOKEN
        ForbiddenError            403  FORBIDDEN
        PolicyDeniedError         403  POLICY_DENIED
        NotFoundError             404  NOT_FOUND
        ModelNotFoundError        404  MODEL_NOT_FOUND
        ConflictError             409  CONFLICT
        SessionTurnsExceededError 409  SESSION_TURNS_EXCEEDED
        SessionExpiredError       409  SESSION_EXPIRED
        ResumeLostError           409  RESUME_LOST
        PayloadTooLargeError      413  PAYLOAD_TOO_LARGE
      BackpressureError           429  ADMISSION_REJECT | QUEUE_FULL_DROP_LRU | RATE_LIMITED
      UnavailableError                  the request is fine; it may work later
        PoolUnreadyError          503  POOL_UNREADY
        PoolUnavailableError      503  POOL_UNAVAILABLE
        ReplicaExhaustedError     503  REPLICA_EXHAUSTED
        JournalUnavailableError   503  JOURNAL_UNAVAILABLE
      StreamError                       ends a stream, or breaks off a transport
        DecodeTimeoutError             DECODE_TIMEOUT
        WorkerResetError               WORKER_RESET
        InterruptedTaskError           INTERRUPTED
        BudgetExhaustedError      402  BUDGET_EXHAUSTED
        TaskCancelledError        409  CANCELLED
        InternalError             500  INTERNAL
      JournalError                      inside the journal; services turn them into UnavailableError
        StoreRefusedError              the frame was not written; the same frame may be tried again
        StoreUnknownError              the frame may or may not have been written
        FencedError                    another writer owns the journal; this process must stop
        CorruptJournalError            what was read does not verify
      ConfigError                       configuration: names the key, what it got and what it takes
"""

from __future__ import annotations

from typing import Any, ClassVar


class OrchError(Exception):
    """Root of all errors of llama-orch that carry a stable code."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500
    retriable: ClassVar[bool] = False
    remedy: ClassVar[str] = "Look at the server's log for the correlation id of this answer."

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        got: object = None,
        remedy: str | None = None,
        engine: str | None = None,
        pool_id: str | None = None,
        retry_after_ms: int | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.got = got
        self.engine = engine
        self.pool_id = pool_id
        self.retry_after_ms = retry_after_ms
        self.details = details
        self.what_to_do = remedy or self.remedy

    def to_dict(self) -> dict[str, Any]:
        """The error's body, as every route and error frame carries it (ADM-8)."""
        body: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "retriable": self.retriable,
            "remedy": self.what_to_do,
        }
        if self.field is not None:
            body["field"] = self.field
            body["got"] = self.got if isinstance(self.got, (str, int, bool, type(None))) else repr(self.got)
        for name in ("engine", "pool_id", "retry_after_ms"):
            value = getattr(self, name)
            if value is not None:
                body[name] = value
        body.update(self.details)
        return body


class RequestError(OrchError):
    """The request cannot be served as it stands."""

    status = 400


class InvalidParamsError(RequestError):
    """A field has a value that is not accepted."""

    code = "INVALID_PARAMS"
    remedy = "Correct the named field and send the request again."


class ContextExceededError(RequestError):
    """Prompt and requested output do not fit the model's context."""

    code = "CONTEXT_EXCEEDED"
    remedy = "Shorten the prompt, lower max_tokens, or use a model or pool with a larger context."


class DeadlineUnmetError(RequestError):
    """The deadline passes before the task could end."""

    code = "DEADLINE_UNMET"
    remedy = "Raise deadline_ms, or try again when the queue is shorter."


class UntrustedArtifactError(RequestError):
    """A model or artifact does not meet the trust policy."""

    code = "UNTRUSTED_ARTIFACT"
    remedy = "Sign the artifact with a trusted key, or relax catalog.trust_policy."


class MissingTokenError(RequestError):
    """The request brings no key, and this server asks for one."""

    code = "MISSING_TOKEN"
    status = 401
    remedy = "Send Authorization: Bearer KEY or x-api-key: KEY; `llama-orch keys create` makes one."


class BadTokenError(RequestError):
    """The key is not known, revoked or expired."""

    code = "BAD_TOKEN"
    status = 401
    remedy = "Use a key that is valid; `llama-orch keys list` shows them, `llama-orch keys create` makes one."


class ForbiddenError(RequestError):
    """The caller may not do this."""

    code = "FORBIDDEN"
    status = 403
    remedy = "Call over loopback with the server's own Host name, or use a key with the needed scope."


class PolicyDeniedError(RequestError):
    """A policy plugin refused the request."""

    code = "POLICY_DENIED"
    status = 403
    remedy = "Ask whoever runs the server which policy applies; the message names it."


class NotFoundError(RequestError):
    """There is nothing under this id."""

    code = "NOT_FOUND"
    status = 404
    remedy = "Check the id; GET /v1/tasks lists what exists."


class ModelNotFoundError(RequestError):
    """No pool serves this model."""

    code = "MODEL_NOT_FOUND"
    status = 404
    remedy = "Use one of the names in GET /v1/models."


class ConflictError(RequestError):
    """The request contradicts what the server already holds under that id or key."""

    code = "CONFLICT"
    status = 409
    remedy = "Use a new task_id or Idempotency-Key for a different request."


class SessionTurnsExceededError(RequestError):
    """The session has used up its turns."""

    code = "SESSION_TURNS_EXCEEDED"
    status = 409
    remedy = "Start a new session."


class SessionExpiredError(RequestError):
    """The session is over."""

    code = "SESSION_EXPIRED"
    status = 409
    remedy = "Start a new session."


class ResumeLostError(RequestError):
    """The id to resume from is beyond what the journal holds (a power loss took the tail)."""

    code = "RESUME_LOST"
    status = 409
    remedy = "Resume from last_id_held, or from the start; drop what you saw after it."


class ModelDeprecatedError(RequestError):
    """The model accepts no new work."""

    code = "MODEL_DEPRECATED"
    status = 410
    remedy = "Use the successor named in the catalog."


class PayloadTooLargeError(RequestError):
    """The body is larger than the server takes."""

    code = "PAYLOAD_TOO_LARGE"
    status = 413
    remedy = "Send a smaller body, or raise limits.body_bytes in the configuration."


class BackpressureError(OrchError):
    """The queue is full: the caller has to wait (ADM-4)."""

    code = "ADMISSION_REJECT"
    status = 429
    retriable = True
    remedy = "Wait retry_after_ms and send the same request again."


class RateLimitedError(BackpressureError):
    """The key sends more than its rate allows (ADM-7)."""

    code = "RATE_LIMITED"
    remedy = "Wait retry_after_ms; whoever runs the server can raise the key's limits."


class DroppedError(BackpressureError):
    """A queued batch task made room for a newer one."""

    code = "QUEUE_FULL_DROP_LRU"


class UnavailableError(OrchError):
    """The request is fine, the server cannot serve it now."""

    status = 503
    retriable = True


class PoolUnreadyError(UnavailableError):
    """The pool that has to serve this is not ready."""

    code = "POOL_UNREADY"
    remedy = "GET /v1/pools/{id}/health says why; the pool retries by itself."


class PoolUnavailableError(UnavailableError):
    """No pool can serve this now."""

    code = "POOL_UNAVAILABLE"
    remedy = "GET /v1/pools says what each pool is waiting for."


class ReplicaExhaustedError(UnavailableError):
    """Every replica failed this task within the retry bound."""

    code = "REPLICA_EXHAUSTED"
    remedy = "Send the request again; GET /v1/pools shows the engines' last errors."


class JournalUnavailableError(UnavailableError):
    """The journal cannot be written, so nothing can be accepted."""

    code = "JOURNAL_UNAVAILABLE"
    remedy = "Free disk space or repair the database; the server resumes by itself. A retry with the same key is safe."


class StreamError(OrchError):
    """Ends a stream."""

    retriable = True


class DecodeTimeoutError(StreamError):
    """The engine stayed silent, or the task ran, for longer than allowed."""

    code = "DECODE_TIMEOUT"
    remedy = "Send the task again; raise timeouts.idle_ms or timeouts.wall_ms of the pool if the model is slow."


class WorkerResetError(StreamError):
    """The engine died or broke off."""

    code = "WORKER_RESET"
    remedy = "Send the task again; the pool's health shows the engine's last error."


class InterruptedTaskError(StreamError):
    """The task could not be continued after a crash as its recovery setting demands."""

    code = "INTERRUPTED"
    remedy = "Send the task again, or use recovery: continue."


class BudgetExhaustedError(StreamError):
    """The budget is used up."""

    code = "BUDGET_EXHAUSTED"
    status = 402
    retriable = False
    remedy = "Raise the budget or wait for its next window."


class TaskCancelledError(StreamError):
    """Somebody cancelled the task before its end, and its answer is not whole."""

    code = "CANCELLED"
    status = 409
    retriable = False
    remedy = "Send the request again if its answer is still wanted."


class InternalError(StreamError):
    """A defect in llama-orch."""

    code = "INTERNAL"
    status = 500
    retriable = False


class JournalError(OrchError):
    """Something went wrong inside the journal."""


class StoreRefusedError(JournalError):
    """The store did not write the frame (busy, full, read-only): the same frame may be tried again."""


class StoreUnknownError(JournalError):
    """The store failed in a way that leaves open whether the frame was written (I/O error, lost connection)."""


class FencedError(JournalError):
    """Another writer has taken the journal over; this process may not write any more."""


class CorruptJournalError(JournalError):
    """Bytes in the journal do not match their hashes, or rows are missing, swapped or doubled."""


class JournalLockedError(JournalError):
    """Another process holds the journal's lock."""

    remedy = "Another server uses this data directory: `llama-orch status` shows it; use its URL or another data_dir."


class ConfigError(OrchError):
    """The configuration is wrong."""

    code = "INVALID_CONFIG"
    remedy = "`llama-orch config schema` prints every key; `llama-orch config check FILE` checks a file."
