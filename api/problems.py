"""Errors as answers: body, status and headers, in our shape, in OpenAI's and in Anthropic's (ADM-4, ADM-8)."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ..core.errors import (
    InternalError,
    JournalUnavailableError,
    NotFoundError,
    OrchError,
    StoreRefusedError,
    StoreUnknownError,
)

_encode = msgspec.json.Encoder().encode

#: field names of TaskRequest under the names that OpenAI's clients know
_OPENAI_PARAMS = {"model_ref": "model"}
#: OpenAI's word for a status; what is not here is a ``server_error``
OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    410: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_types(root: type[OrchError] = OrchError) -> list[type[OrchError]]:
    """An error type and all below it, in the order of their declaration."""
    return [root, *(t for below in root.__subclasses__() for t in error_types(below))]


#: HTTP status by stable code
STATUS_OF_CODE = {kind.code: kind.status for kind in reversed(error_types())}


class RouteError(OrchError):
    """A request that the HTTP layer itself refuses, with a status beside those of the stable codes."""

    def __init__(self, status: int, code: str, message: str, *, remedy: str, field: str, got: object = None) -> None:
        super().__init__(message, field=field, got=got, remedy=remedy)
        self.status = status  # type: ignore[misc]
        self.code = code  # type: ignore[misc]


def no_route(path: str, near: str = "") -> NotFoundError:
    """There is no such route.

    :param near: one of nearly this name.
    """
    msg = f"there is no route {path[:200]!r}" + (f"; did you mean {near}?" if near else "")
    return NotFoundError(msg, field="path", got=path[:200], remedy="GET /openapi.json describes every route.")


def told(error: OrchError) -> OrchError:
    """The error as callers are told of it: a database that cannot be read now is a journal that is not there now."""
    if isinstance(error, (StoreRefusedError, StoreUnknownError)):
        return JournalUnavailableError(error.message, retry_after_ms=1000)
    return error


def headers_of(error: OrchError) -> dict[str, str]:
    """Headers that go with an error: how long to wait, for those who may come again, and for others that it is no use.

    Both official clients send a request again after 409 and any 5xx, unless they are told not to.
    """
    if error.status == 401:
        return {"WWW-Authenticate": 'Bearer realm="llama-orch"'}
    wait_ms = error.retry_after_ms
    if wait_ms is None and error.status in (429, 503):
        wait_ms = 1000
    if wait_ms is None or error.status not in (429, 503):
        return {"x-should-retry": "false"} if not error.retriable and error.status >= 409 else {}
    return {"Retry-After": str(max(1, math.ceil(wait_ms / 1000))), "X-Backoff-Ms": str(wait_ms)}


def native_body(error: OrchError, correlation: str) -> dict[str, Any]:
    """The error as our own routes say it."""
    body = error.to_dict()
    if error.status == 429:
        body.setdefault("policy_label", "reject")
        body.setdefault("retry_after_ms", 1000)
    body["correlation_id"] = correlation
    return body


def openai_body(error: OrchError, correlation: str) -> dict[str, Any]:
    """The error as OpenAI's clients expect it; what else there is to say stands beside."""
    body = native_body(error, correlation)
    field = body.pop("field", None)
    return {
        "error": {
            "message": body.pop("message"),
            "type": OPENAI_TYPES.get(error.status, "server_error"),
            "param": _OPENAI_PARAMS.get(field, field),
            "code": body.pop("code"),
            **body,
        }
    }


def anthropic_body(error: OrchError, correlation: str) -> dict[str, Any]:
    """The error as Anthropic's clients expect it; what else there is to say stands beside its type and message."""
    body = native_body(error, correlation)
    field = body.get("field")
    if field is not None:
        body["field"] = _OPENAI_PARAMS.get(field, field)
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, **body}, "request_id": correlation}


def body_of(error: OrchError, shape: str, correlation: str) -> bytes:
    """The error's body in the shape of its route."""
    if shape == "openai":
        return _encode(openai_body(error, correlation))
    return _encode(anthropic_body(error, correlation) if shape == "anthropic" else native_body(error, correlation))


def internal(correlation: str) -> InternalError:
    """What a caller hears of a defect: nothing but where to look."""
    return InternalError(
        "the server met a defect of its own",
        remedy=f"Look for correlation id {correlation} in the server's log, and report it.",
    )
