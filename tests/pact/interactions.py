"""What clients ask of a server and what they rely on in its answers: the words of the pacts, apart from who says them.

A client relies on the fields that stand here, not on others: an answer may hold more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pact import match

TOKEN = "pact-key"
MODEL = "mock"
#: a model whose queue takes one task
NARROW = "narrow"
PROMPT = "[[mock tokens=3]]"
ENDED = "00000000-0000-4000-8000-000000000001"
FAILED = "00000000-0000-4000-8000-000000000002"
RUNNING = "00000000-0000-4000-8000-000000000003"
SESSION = "00000000-0000-4000-8000-000000000004"
UNKNOWN = "00000000-0000-4000-8000-00000000dead"


@dataclass(frozen=True)
class Interaction:
    """One question and its answer."""

    description: str
    method: str
    path: str
    status: int = 200
    #: what must be so on the server
    state: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    token: str = TOKEN
    answer: Any = None
    answer_headers: Mapping[str, Any] = field(default_factory=dict)
    #: an event stream, and what it looks like
    stream: str = ""
    stream_pattern: str = ""


def like_error(code: str, status: int, **more: Any) -> dict[str, Any]:
    """What every error says."""
    return {
        "code": code,
        "message": match.str("what is wrong"),
        "retriable": status in {429, 503},
        "remedy": match.str("what to do"),
        "correlation_id": match.str("9d1cc97ebcb22609"),
        **more,
    }


def sse(event: str, data: str, frame_id: str) -> str:
    return f"event: {event}\nid: {frame_id}\ndata: {data}\n\n"


def pattern(text: str) -> str:
    """An event stream in which epochs and what stands in started and end may differ, and texts and token ids."""
    escaped = re.escape(text).replace("\\ ", " ").replace("\\\n", "\\n").replace("\\:", ":").replace("\\-", "-")
    escaped = re.sub(r'"t":"[^"]*"', '"t":"[^"]*"', escaped)
    escaped = re.sub(r'"id":\d+', r'"id":\\d+', escaped)
    escaped = re.sub(r"(event: (?:started|end)\\nid: [^ ]*data: )\\\{.*?\\\}(?=\\n\\n)", r"\1\\{.*\\}", escaped)
    return "^" + re.sub(r"id: 1\\\.", r"id: \\d+\\.", escaped) + "$"


START = sse("started", '{"pool_id":"mock","engine":"mock","seed":7,"queue_time_ms":1}', "1.0")
PIECES = "".join(sse("token", f'{{"t":" bara","i":{n},"id":26{n}}}', f"1.{n + 1}") for n in range(3))
END = sse("end", '{"tokens_out":3,"finish_reason":"stop","decode_ms":1}', "1.4")

ACCEPTED = {
    "task_id": match.uuid(ENDED),
    "queue_position": match.int(0),
    "predicted_start_ms": match.int(5),
    "predicted_start_ms_p10": match.int(1),
    "predicted_start_ms_p90": match.int(9),
    "backoff_ms": match.int(0),
    "attached": match.boolean(False),
}
USAGE = {
    "prompt_tokens": match.int(4),
    "cached_tokens": match.int(0),
    "completion_tokens": match.int(3),
    "total_tokens": match.int(7),
}
TASK = {
    "task_id": ENDED,
    "state": "completed",
    "model_ref": MODEL,
    "priority": "interactive",
    "created_ms": match.int(1795000000000),
    "pool_id": MODEL,
    "engine": "mock",
    "seed": match.int(7),
    "finish_reason": "stop",
    "usage": USAGE,
    "text": match.str(" bara bara bara"),
}
DECISION = {
    "attempt": match.int(1),
    "selected_pool_id": MODEL,
    "decision_reason": match.str("the only pool"),
    "candidates_considered": [MODEL],
    "filters_applied": [],
    "scores_ms": {MODEL: match.int(5)},
    "tie_breakers_applied": [],
    "pinned": False,
    "fallback_used": False,
    "policy": match.str("default"),
    "policy_version": match.str("2"),
}
POOL = {
    "pool_id": match.str(MODEL),
    "engine": "mock",
    "model_ref": match.str(MODEL),
    "ready": True,
    "draining": False,
    "slots": match.int(2),
    "leases": match.int(0),
    "ctx": match.int(4096),
    "engine_version": match.str("mock-1"),
}
QUANTITIES = {"tokens": match.int(0), "cost": match.str("0")}
BUDGET = {
    "scope": "session",
    "subject": SESSION,
    "window": "day",
    "timezone": "UTC",
    "caps": {"tokens": 500},
    "spent": QUANTITIES,
    "reserved": QUANTITIES,
}
ENDED_STATE = "a task of three tokens has ended"

EVERY = [
    Interaction(
        "submit a prompt", "POST", "/v1/tasks", 202,
        headers={"Idempotency-Key": "key-0", "Content-Type": "application/json"},
        body={"model_ref": MODEL, "prompt": PROMPT}, answer=ACCEPTED,
    ),
    Interaction(
        "submit a prompt without a key of its own", "POST", "/v1/tasks", 202,
        body={"model_ref": MODEL, "workload": "completion", "prompt": PROMPT}, answer=ACCEPTED,
    ),
    Interaction(
        "submit for a model that is not served", "POST", "/v1/tasks", 404, headers={"Idempotency-Key": "key-1"},
        body={"model_ref": "nothing", "prompt": "x"}, answer=like_error("MODEL_NOT_FOUND", 404, field="model_ref", got="nothing"),
    ),
    Interaction(
        "submit with a field that is wrong", "POST", "/v1/tasks", 400, headers={"Idempotency-Key": "key-2"},
        body={"model_ref": MODEL, "prompt": "x", "max_tokens": 0},
        answer=like_error("INVALID_PARAMS", 400, field="max_tokens", got=0),
    ),
    Interaction(
        "submit with the Idempotency-Key of another task", "POST", "/v1/tasks", 409, state="the key taken was used",
        headers={"Idempotency-Key": "taken"}, body={"model_ref": MODEL, "prompt": "another"}, answer=like_error("CONFLICT", 409),
    ),
    Interaction(
        "submit to a full queue", "POST", "/v1/tasks", 429, state="the queue of the narrow model is full",
        headers={"Idempotency-Key": "key-3"}, body={"model_ref": NARROW, "prompt": "x"},
        answer=like_error("ADMISSION_REJECT", 429, retry_after_ms=match.int(1000), policy_label="reject"),
        answer_headers={"Retry-After": match.regex("1", regex=r"^\d+$"), "X-Backoff-Ms": match.regex("1000", regex=r"^\d+$")},
    ),
    Interaction(
        "ask with a key that is not known", "GET", "/v1/pools", 401, token="unknown", answer=like_error("BAD_TOKEN", 401),
    ),
    Interaction("get a task that has ended", "GET", f"/v1/tasks/{ENDED}", state=ENDED_STATE, answer=TASK),
    Interaction(
        "wait for a task that has ended", "GET", f"/v1/tasks/{ENDED}", state=ENDED_STATE, query={"wait": "20000"}, answer=TASK,
    ),
    Interaction(
        "get a task that failed", "GET", f"/v1/tasks/{FAILED}", state="a task has failed",
        answer={"task_id": FAILED, "state": "failed",
                "error": {"code": match.str("WORKER_RESET"), "message": match.str("why"), "retriable": match.boolean(True)}},
    ),
    Interaction("get a task that is not there", "GET", f"/v1/tasks/{UNKNOWN}", 404, answer=like_error("NOT_FOUND", 404)),
    Interaction(
        "list tasks", "GET", "/v1/tasks", state=ENDED_STATE, query={"limit": "20"},
        answer={"tasks": match.each_like({"task_id": match.uuid(ENDED), "state": match.str("completed"),
                "model_ref": match.str(MODEL), "priority": match.str("interactive"), "created_ms": match.int(1)}, min=1),
                "next": match.str("1")},
    ),
    Interaction(
        "follow a task from its start", "GET", f"/v1/tasks/{ENDED}/stream", state=ENDED_STATE, stream=START + PIECES + END,
        stream_pattern=pattern(START + PIECES + END),
    ),
    Interaction(
        "follow a task with its place in the queue", "GET", f"/v1/tasks/{ENDED}/stream", state=ENDED_STATE,
        query={"progress": "1"}, stream=START + PIECES + END, stream_pattern=pattern(START + PIECES + END),
    ),
    Interaction(
        "follow a task from its last frame but one", "GET", f"/v1/tasks/{ENDED}/stream", state=ENDED_STATE,
        headers={"Last-Event-ID": "1.3"}, stream=END, stream_pattern=pattern(END),
    ),
    Interaction(
        "follow a task from a frame that the server does not hold", "GET", f"/v1/tasks/{ENDED}/stream", 409, state=ENDED_STATE,
        headers={"Last-Event-ID": "1.99"},
        answer=like_error("RESUME_LOST", 409, last_id_held=match.regex("1.3", regex=r"^\d+\.3$")),
    ),
    Interaction("cancel a task that runs", "POST", f"/v1/tasks/{RUNNING}/cancel", 204, state="a task runs"),
    Interaction("cancel a task that is not there", "POST", f"/v1/tasks/{UNKNOWN}/cancel", 404, answer=like_error("NOT_FOUND", 404)),
    Interaction(
        "ask why a task ran where it did", "GET", f"/v1/tasks/{ENDED}/decision", state=ENDED_STATE,
        answer={"task_id": ENDED, "selected_pool_id": MODEL, "decision_reason": match.str("the only pool"),
                "waiting_for": {}, "state": "completed", "decisions": match.each_like(DECISION, min=1)},
    ),
    Interaction(
        "look at the queue", "GET", "/v1/queue", state="the queue of the narrow model is full",
        answer={"groups": match.each_like({"group": match.str(NARROW), "depth": match.like({"interactive": match.int(1)}),
                "capacity": match.int(1), "entries": match.each_like({"task_id": match.uuid(ENDED), "position": match.int(0),
                "priority": match.str("interactive"), "waited_ms": match.int(1), "predicted_start_ms": match.int(1)}, min=1)}, min=1)},
    ),
    Interaction("list pools", "GET", "/v1/pools", answer={"pools": match.each_like(POOL, min=1)}),
    Interaction(
        "ask how a pool is", "GET", f"/v1/pools/{MODEL}/health",
        answer={"pool_id": MODEL, "ready": True, "draining": False, "slots": match.int(2)},
    ),
    Interaction("ask whether it is ready", "GET", "/readyz", answer={"ready": True}),
    Interaction(
        "list models", "GET", "/v1/models",
        answer={"data": match.each_like({"id": match.str(MODEL), "root": match.str(MODEL), "ready": match.boolean(True),
                "max_model_len": match.int(4096), "pools": match.each_like(MODEL)}, min=1)},
    ),
    Interaction(
        "ask what the server can do", "GET", "/v1/capabilities",
        answer={"api_version": match.str("1"), "engines": match.each_like({"engine": "mock", "engine_version": match.str("mock-1"),
                "ctx_max": match.int(4096), "slots_free": match.int(1), "concurrency": match.int(2)}, min=1),
                "models": match.each_like({"id": match.str(MODEL)}, min=1)},
    ),
    Interaction(
        "list sessions", "GET", "/v1/sessions", state="a session is open",
        answer={"sessions": match.each_like({"session_id": match.uuid(SESSION), "turns": match.int(1),
                "turns_remaining": match.int(7), "ttl_ms_remaining": match.int(1), "pool_id": match.str(MODEL)}, min=1)},
    ),
    Interaction(
        "get a session", "GET", f"/v1/sessions/{SESSION}", state="a session is open",
        answer={"session_id": SESSION, "turns": match.int(1), "turn_limit": match.int(8), "ttl_ms": match.int(600000),
                "kv_warmth": match.boolean(True), "kv_tokens": match.int(7), "kv_bytes": match.int(0)},
    ),
    Interaction("end a session that is gone", "DELETE", f"/v1/sessions/{UNKNOWN}", 204),
    Interaction(
        "set a session's budget", "PUT", f"/v1/budgets/session/{SESSION}", state="a session is open",
        body={"window": "day", "tokens": 500}, answer=BUDGET,
    ),
    Interaction(
        "list budgets", "GET", "/v1/budgets", state="a session has a budget", answer={"budgets": match.each_like(BUDGET, min=1)},
    ),
    Interaction("remove a session's budgets", "DELETE", f"/v1/budgets/session/{SESSION}", 204, state="a session has a budget"),
]  # fmt: skip

BY_DESCRIPTION = {interaction.description: interaction for interaction in EVERY}
