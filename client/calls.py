"""Calls as values: what is asked, what the answer is, and whether it may be asked again. Both clients share them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from .errors import ApiError, LlamaOrchError, UnreachableError, api_error
from .types import (
    Admission,
    Budget,
    BudgetCap,
    Budgets,
    Models,
    NewSession,
    Pools,
    Queue,
    Session,
    Sessions,
    Task,
    TaskPage,
    TaskRequest,
    encode,
)

T = TypeVar("T")

#: longest that a server may ask an automatic retry to wait
LONGEST_RETRY_AFTER_S = 60.0
#: answers after which the same call may be sent again, when it may be sent again at all
_AGAIN_LATER = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call of the server's API."""

    method: str
    path: str
    #: type of the JSON answer; ``None`` = there is none, ``bytes`` = as it comes
    answer: Any = None
    query: Mapping[str, object] = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: sent twice it does what it does once
    repeatable: bool = False
    #: more time than usual for the answer
    extra_s: float = 0.0

    @property
    def target(self) -> str:
        """Path and query; values that are ``None`` are left out."""
        given = {name: _word(value) for name, value in self.query.items() if value is not None}
        return self.path + ("?" + urlencode(given) if given else "")

    def all_headers(self, token: str, agent: str) -> dict[str, str]:
        """Everything that is said beside the body."""
        headers = {"Accept": "application/json", "Authorization": f"Bearer {token}", "User-Agent": agent}
        if self.body is not None:
            headers["Content-Type"] = "application/json"
        return headers | dict(self.headers)

    def result(self, status: int, raw: bytes, headers: Mapping[str, str]) -> T:
        """What the answer says. :raises ApiError: it is an error, or leads elsewhere. :raises LlamaOrchError: it is none of ours."""
        if status >= 300:
            raise api_error(status, raw, headers)
        if self.answer is bytes:
            return raw  # type: ignore[return-value]
        if self.answer is None:
            return None  # type: ignore[return-value]
        try:
            found: T = msgspec.json.decode(raw, type=self.answer)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise LlamaOrchError(
                f"the answer to {self.method} {self.path} is not what a llama-orch server sends: {error}"
            ) from error
        return found


@dataclass(slots=True)
class Backoff:
    """Pauses that grow, with jitter, and give up.

    :param most: how often in a row; ``None`` = for ever.
    :param rand: a number from 0 to 1, for the jitter.
    """

    most: int | None
    first_s: float = 0.1
    longest_s: float = 5.0
    rand: Callable[[], float] = random.random
    failures: int = 0

    def again(self, error: LlamaOrchError) -> float | None:
        """Seconds to wait before the next attempt, from half to all of a pause that doubles, and at least what the server
        asked for; ``None`` = give up."""
        self.failures += 1
        if self.most is not None and self.failures > self.most:
            return None
        pause_s = min(self.longest_s, self.first_s * 2 ** min(self.failures - 1, 30)) * (0.5 + self.rand() / 2)
        asked_s = (error.retry_after_ms or 0) / 1000
        return None if asked_s > LONGEST_RETRY_AFTER_S else max(pause_s, asked_s)


def may_repeat(call: Call[Any], error: LlamaOrchError) -> bool:
    """Whether a call that failed so may be sent again without being done twice, and with some hope."""
    if not call.repeatable:
        return False
    return isinstance(error, UnreachableError) or (isinstance(error, ApiError) and error.status in _AGAIN_LATER)


# --- the calls ------------------------------------------------------------------------------------------------------


def submit(request: TaskRequest, idempotency_key: str) -> Call[Admission]:
    """Put a task into its queue; the key makes it one task however often it is sent."""
    return Call(
        "POST",
        "/v1/tasks",
        Admission,
        body=encode(request),
        headers={"Idempotency-Key": idempotency_key},
        repeatable=True,
    )


def task(task_id: str, *, wait_ms: int = 0) -> Call[Task]:
    """A task as it stands, after at most ``wait_ms`` of waiting for its end."""
    return _get(_task_path(task_id), Task, {"wait": wait_ms or None}, extra_s=wait_ms / 1000)


def tasks(
    *, state: str | None, model_ref: str | None, session_id: str | None, before: str | None, limit: int | None
) -> Call[TaskPage]:
    """A page of tasks."""
    given = {"state": state, "model_ref": model_ref, "session_id": session_id, "before": before, "limit": limit}
    return _get("/v1/tasks", TaskPage, given)


def cancel(task_id: str) -> Call[None]:
    """Cancel a task."""
    return Call("POST", _task_path(task_id) + "/cancel", repeatable=True)


def decision(task_id: str) -> Call[dict[str, Any]]:
    """Why a task runs where it does."""
    return _get(_task_path(task_id) + "/decision", dict[str, Any])


def stream(task_id: str, *, after: str, progress: bool, metrics: bool) -> Call[None]:
    """Follow a task, after a frame."""
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"} | (
        {"Last-Event-ID": after} if after else {}
    )
    asked = {"progress": 1 if progress else None, "metrics": 1 if metrics else None}
    return Call("GET", _task_path(task_id) + "/stream", query=asked, headers=headers, repeatable=True)


def sessions() -> Call[Sessions]:
    """Open sessions."""
    return _get("/v1/sessions", Sessions)


def session(session_id: str) -> Call[Session]:
    """One session."""
    return _get(f"/v1/sessions/{_quoted(session_id)}", Session)


def open_session(session: NewSession) -> Call[Session]:
    """Open a session."""
    return Call("POST", "/v1/sessions", Session, body=encode(session))


def end_session(session_id: str) -> Call[None]:
    """End a session and free what it keeps."""
    return Call("DELETE", f"/v1/sessions/{_quoted(session_id)}", repeatable=True)


def budgets(scope: str | None, subject: str | None) -> Call[Budgets]:
    """Budgets, of one subject where it is named."""
    if scope is not None and subject is not None:
        return _get(_budget_path(scope, subject), Budgets)
    return _get("/v1/budgets", Budgets, {"scope": scope})


def set_budget(scope: str, subject: str, cap: BudgetCap) -> Call[Budget]:
    """Set what a subject may spend in a window."""
    return Call("PUT", _budget_path(scope, subject), Budget, body=encode(cap), repeatable=True)


def remove_budget(scope: str, subject: str, window: str | None) -> Call[None]:
    """Remove the budget of a window, or all."""
    return Call("DELETE", _budget_path(scope, subject), query={"window": window}, repeatable=True)


def queue(limit: int | None) -> Call[Queue]:
    """What waits."""
    return _get("/v1/queue", Queue, {"limit": limit})


def pools() -> Call[Pools]:
    """All pools."""
    return _get("/v1/pools", Pools)


def pool_health(pool_id: str) -> Call[dict[str, Any]]:
    """How a pool is."""
    return _get(f"/v1/pools/{_quoted(pool_id)}/health", dict[str, Any])


def models() -> Call[Models]:
    """Models and their aliases."""
    return _get("/v1/models", Models)


def capabilities() -> Call[dict[str, Any]]:
    """What the server can do now."""
    return _get("/v1/capabilities", dict[str, Any])


def _get(path: str, answer: Any, query: Mapping[str, object] | None = None, *, extra_s: float = 0.0) -> Call[Any]:
    return Call("GET", path, answer, query=query or {}, repeatable=True, extra_s=extra_s)


def _task_path(task_id: str) -> str:
    return f"/v1/tasks/{_quoted(task_id)}"


def _budget_path(scope: str, subject: str) -> str:
    return f"/v1/budgets/{_quoted(scope)}/{_quoted(subject)}"


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _word(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)
