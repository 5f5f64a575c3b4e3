"""What happens to a task, from admission to its transcript."""

from __future__ import annotations

import msgspec

from ..registry import event
from ..types import Amount


class FilterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One placement filter and what it excluded."""

    name: str
    #: excluded pools with the reason, ``{pool_id: reason}``
    excluded: dict[str, str]


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task was placed where it was (PLC-2)."""

    selected_pool_id: str
    candidates_considered: list[str]
    filters_applied: list[FilterRecord]
    #: predicted end per candidate, milliseconds from the decision
    scores_ms: dict[str, int]
    tie_breakers_applied: list[str]
    pinned: bool
    fallback_used: bool
    decision_reason: str
    policy: str
    policy_version: str


class PlacementRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The caller's placement overrides as journaled (PLC-3)."""

    mode: str = "auto"
    pin_pool_id: str = ""
    prefer_pools: list[str] = []
    avoid_pools: list[str] = []
    require_device_mask: str = ""
    allow_fallback: bool = True


@event("task.admitted", durable=True)
class TaskAdmitted:
    """A task passed admission and waits in the queue of its serving group."""

    task_id: str
    #: the API key's id that pays and may see it; "local" without keys
    owner: str
    #: serving group, the name of the model that its pools serve
    group: str
    model_ref: str
    workload: str
    priority: str
    #: content id of the request's text (prompt or messages, stop, grammar, schema)
    body_id: str
    #: digest of the canonical request, to compare duplicates
    request_digest: str
    #: digest of the Idempotency-Key, or ""
    idempotency_digest: str = ""
    #: until when (Unix ns) duplicates attach
    idempotency_until_ns: int = 0
    session_id: str = ""
    engine: str = ""
    determinism: str = "best_effort"
    recovery: str = "continue"
    sampler_profile_version: str = ""
    seed: int
    #: sampling parameters that the caller set, decimals as shortest-repr strings
    sampling: dict[str, str] = {}
    max_tokens: int = 0
    #: answers to one prompt
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    ctx: int = 0
    #: tokens of the prompt: exact where known, else an upper bound
    prompt_tokens: int = 0
    prompt_tokens_exact: bool = False
    #: of all inputs together, upper bound, where a task has several (embedding, rerank)
    inputs_tokens: int = 0
    expected_tokens: int = 0
    #: Unix ns, 0 = none
    deadline_ns: int = 0
    cancel_on_disconnect: bool = False
    #: the caller wants no cached prefix
    kv_cold: bool = False
    placement: PlacementRecord | None = None
    #: workload and features that its engine must have
    needs: list[str] = []
    #: digests of what a conversation is known by, most telling first: what the client calls it, then the prompt's
    #: beginnings, longest first; only without a session (SES-2)
    prefixes: list[str] = []
    #: which rendering the caller asked for: "tasks", "openai.chat", ...
    api: str = "tasks"
    queue_position: int = 0
    predicted_start_ms: int = 0
    predicted_start_ms_p10: int = 0
    predicted_start_ms_p90: int = 0
    #: how busy its group was: predictions are corrected and scored by it
    load_band: str = ""
    #: 10, 50 and 90 % of the predicted start before that correction
    modelled_start_ms: list[int] = []


@event("task.rejected", stream="rejections", key="")
class TaskRejected:
    """A request was turned away before the queue: it never became a task, so all of them share one stream."""

    task_id: str
    owner: str
    model_ref: str
    code: str
    reason: str
    retry_after_ms: int = 0


@event("task.placed")
class TaskPlaced:
    """A placement decision bound the task to a pool; the attempt begins."""

    task_id: str
    attempt: int
    pool_id: str
    replica_id: str
    decision: DecisionRecord


@event("task.started")
class TaskStarted:
    """The engine took the task: all that a rerun needs."""

    task_id: str
    attempt: int
    pool_id: str
    replica_id: str
    engine: str
    engine_version: str
    engine_flags: str = ""
    model_digest: str = ""
    tokenizer_digest: str = ""
    template_digest: str = ""
    sampler_profile_version: str = ""
    device: str = ""
    driver: str = ""
    seed: int
    #: sampling parameters in force, decimals as shortest-repr strings
    effective: dict[str, str] = {}
    #: content id of the rendered prompt
    rendered_id: str = ""
    prompt_tokens: int = 0
    #: of these the engine had so many in its cache; 0 = it did not say
    cached_tokens: int = 0
    #: whether the engine could start from a cached prefix
    cache_prompt: bool = False
    #: its slot worked on the same conversation last, so that the engine may still hold its KV cache (SES-2)
    kv_warmth: bool = False
    #: what its session had elsewhere is lost: nothing of a KV cache is ever moved
    kv_lost: bool = False
    #: other tasks on the same engine at the start
    neighbours: int = 0
    #: entries already journaled that this attempt repeats (checked) or continues from
    resumed_at: int = 0
    #: "" | "regenerate" | "continue"
    recovery_used: str = ""
    queue_time_ms: int = 0
    queue_position: int = 0
    predicted_start_ms: int = 0


@event("task.attempt_failed")
class TaskAttemptFailed:
    """An attempt broke off; the task goes back to placement unless an end follows."""

    task_id: str
    attempt: int
    pool_id: str
    code: str
    message: str


@event("task.cancelled", durable=True)
class TaskCancelled:
    """Somebody, or a watchdog, cancelled the task; its end follows in the same batch (CAN-1)."""

    task_id: str
    #: "client" | "disconnect" | "deadline" | "drop-lru" | "shutdown"
    reason: str


@event("task.ended", durable=True)
class TaskEnded:
    """The one terminal of a task; carries all totals."""

    task_id: str
    outcome: str
    #: "stop" | "length" | "tool_calls" | "cancelled" | "error"
    finish_reason: str
    #: of each choice, when there are several
    finish_reasons: list[str] = []
    #: the stop string that ended it, where its engine told; of the first choice
    stop_sequence: str = ""
    #: entries in the transcript; the terminal frame's ordinal follows the last
    entries: int
    tokens_out: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    queue_ms: int = 0
    prefill_ms: int = 0
    decode_ms: int = 0
    attempts: int = 0
    #: stable code when failed, else ""
    code: str = ""
    message: str = ""
    retriable: bool = False
    recovery_used: str = ""
    #: result of an embedding or rerank task: content id, or ""
    result_id: str = ""
    #: what its budgets are charged, and with that freed of the rest that was reserved; ``None`` = it has none
    charge: Amount | None = None


@event("task.transcribed")
class TaskTranscribed:
    """The task's entries stand in one transcript; the frames' copies may be dropped (JRN-7)."""

    task_id: str
    entries: int
    #: SHA-256 of the transcript's bytes
    digest: str
    bytes: int
