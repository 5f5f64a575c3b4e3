"""What is sent and what comes back. Fields that a newer server adds are ignored; those that are missing have defaults.

Times end in ``_ms`` (milliseconds; ``created_ms`` and the like since 1970).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct


class ChatMessage(Struct, omit_defaults=True):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Placement(Struct, omit_defaults=True):
    """Where the task may run."""

    mode: Literal["auto", "pin", "prefer"] = "auto"
    pin_pool_id: str | None = None
    prefer_pools: list[str] = []
    avoid_pools: list[str] = []
    require_device_mask: str | None = None
    allow_fallback: bool = True


class TaskRequest(Struct, omit_defaults=True, kw_only=True):
    """What a task asks for; ``None`` leaves a field to the server. The reference of HTTP tells each field."""

    model_ref: str
    workload: Literal["completion", "chat", "embedding", "rerank"] = "completion"
    task_id: str | None = None
    session_id: str | None = None
    engine: str | None = None
    ctx: int | None = None
    priority: Literal["interactive", "batch"] = "interactive"
    seed: int | None = None
    determinism: Literal["strict", "best_effort"] = "best_effort"
    sampler_profile_version: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    inputs: list[str] | None = None
    max_tokens: int | None = None
    stop: list[str] = []
    prompt_ids: list[int] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logit_bias: dict[str, float] | None = None
    dimensions: int | None = None
    query: str | None = None
    session_ttl_ms: int | None = None
    session_turn_limit: int | None = None
    deadline_ms: int | None = None
    expected_tokens: int | None = None
    kv_hint: Literal["reuse", "cold"] | None = None
    recovery: Literal["strict", "continue", "none"] = "continue"
    cancel_on_disconnect: bool | None = None
    placement: Placement | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Admission(Struct, frozen=True, kw_only=True):
    """A task that was accepted and waits; the prediction counts from then."""

    task_id: str
    #: tasks before it
    queue_position: int = 0
    predicted_start_ms: int = 0
    predicted_start_ms_p10: int = 0
    predicted_start_ms_p90: int = 0
    #: how long to hold back the next task
    backoff_ms: int = 0
    #: it was known already, by its Idempotency-Key or task_id
    attached: bool = False


class Usage(Struct, frozen=True):
    """Tokens that a task took."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    #: of the completion's, those that were thought and not said
    reasoning_tokens: int = 0


class Problem(Struct, frozen=True):
    """Why a task failed."""

    code: str
    message: str
    retriable: bool = False


class ToolCall(Struct, frozen=True, kw_only=True):
    """A call that the model asks for; ``arguments`` is JSON, as far as the model wrote it."""

    call_id: str
    name: str = ""
    arguments: str = ""


class TokenLogprob(Struct, frozen=True, array_like=True):
    """How likely a token was."""

    token: str
    #: natural logarithm, as a decimal
    logprob: str
    #: the token's bytes, where the engine tells them
    raw: bytes = b""
    #: the likeliest tokens at its place
    top: list[TokenLogprob] = []


class Choice(Struct, frozen=True, kw_only=True):
    """One answer of a task."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    finish_reason: str = ""
    logprobs: list[TokenLogprob] = []


class Quantities(Struct, frozen=True, kw_only=True):
    """What was counted, exact to the last unit; ``cost`` is a decimal."""

    tokens: int = 0
    decode_ms: float = 0
    cost: str = "0"


class Task(Struct, frozen=True, kw_only=True):
    """A task as it stands."""

    task_id: str
    #: queued, placed, running, completed, cancelled or failed
    state: str
    model_ref: str = ""
    owner: str = ""
    priority: str = ""
    workload: str = ""
    session_id: str = ""
    created_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    #: -1 = it does not wait
    queue_position: int = -1
    predicted_start_ms: int = 0
    pool_id: str = ""
    engine: str = ""
    engine_version: str = ""
    seed: int = 0
    attempts: int = 0
    finish_reason: str = ""
    recovery_used: str = ""
    usage: Usage = Usage()
    error: Problem | None = None
    #: what budgets were charged for it; ``None`` = it is counted on none, or has not ended
    charge: Quantities | None = None
    text: str | None = None
    #: all answers, where there is more than one plain text
    choices: list[Choice] | None = None
    embeddings: list[list[float]] | None = None
    scores: list[float] | None = None

    @property
    def ended(self) -> bool:
        """It is over, in whatever way."""
        return self.state in {"completed", "cancelled", "failed"}


class TaskPage(Struct, frozen=True):
    """Tasks, newest first."""

    tasks: list[Task]
    #: ``before`` of the next page; "" at the end
    next: str = ""


class Session(Struct, frozen=True, kw_only=True):
    """Turns that belong together."""

    session_id: str
    owner: str = ""
    ttl_ms: int = 0
    ttl_ms_remaining: int = 0
    turns: int = 0
    turn_limit: int = 0
    turns_remaining: int = 0
    #: tasks that wait or run
    active_tasks: int = 0
    created_ms: int = 0
    pool_id: str = ""
    #: an engine holds its KV cache
    kv_warmth: bool = False
    kv_tokens: int = 0
    kv_bytes: int = 0
    #: what its budgets and its key's still allow; ``None`` where none bounds it
    tokens_budget_remaining: int | None = None
    time_budget_remaining_ms: int | None = None
    cost_budget_remaining: str | None = None


class Sessions(Struct, frozen=True):
    """Open sessions."""

    sessions: list[Session]


class Caps(Struct, frozen=True, kw_only=True):
    """Bounds; ``None`` where there is none."""

    tokens: int | None = None
    decode_ms: float | None = None
    cost: str | None = None


class Budget(Struct, frozen=True, kw_only=True):
    """What a key or session may spend in a window, and has spent."""

    #: key or session
    scope: str
    subject: str
    #: none, day or month
    window: str = "none"
    timezone: str = ""
    #: it follows from the configuration
    by_default: bool = False
    caps: Caps = Caps()
    spent: Quantities = Quantities()
    #: promised to tasks that run
    reserved: Quantities = Quantities()
    #: neither spent nor promised
    remaining: Caps = Caps()
    window_start_ms: int = 0
    window_end_ms: int = 0


class Budgets(Struct, frozen=True):
    """Budgets by scope, subject and window."""

    budgets: list[Budget]


class BudgetCap(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may be spent in a window; what is left out is counted and not bounded."""

    window: Literal["none", "day", "month"] = "none"
    timezone: str = "UTC"
    tokens: int | None = None
    decode_ms: int | None = None
    #: a decimal
    cost: str | None = None


class NewSession(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A session to be opened; ``None`` leaves a field to the server."""

    session_id: str | None = None
    ttl_ms: int | None = None
    turn_limit: int | None = None
    budgets: list[BudgetCap] = []


class QueueEntry(Struct, frozen=True, kw_only=True):
    """A task that waits."""

    task_id: str
    position: int = 0
    priority: str = ""
    waited_ms: int = 0
    predicted_start_ms: int = 0


class QueueGroup(Struct, frozen=True, kw_only=True):
    """The queue of the pools that serve one model."""

    group: str
    #: tasks per priority
    depth: dict[str, int] = {}
    capacity: int = 0
    entries: list[QueueEntry] = []


class Queue(Struct, frozen=True):
    """All queues."""

    groups: list[QueueGroup]


class Pool(Struct, frozen=True, kw_only=True):
    """An engine with one model on one device, or several."""

    pool_id: str
    engine: str = ""
    model_ref: str = ""
    ready: bool = False
    draining: bool = False
    slots: int = 0
    leases: int = 0
    ctx: int = 0
    engine_version: str = ""
    model_digest: str = ""
    device_mask: str = ""
    replica_id: str = ""
    #: thousandths of a token per second; 0 = not measured yet
    decode_mtok_s: int = 0
    tokens_outstanding: int = 0
    free_bytes: int = -1
    kv_tokens_free: int = -1
    on_demand: bool = False
    #: why it is not ready
    cause: str = ""


class Pools(Struct, frozen=True):
    """All pools."""

    pools: list[Pool]


class Model(Struct, frozen=True, kw_only=True):
    """A name under which a model can be asked for."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = ""
    #: the model behind an alias
    root: str = ""
    ready: bool = False
    #: largest context of its pools, tokens; 0 = not known yet
    max_model_len: int = 0
    pools: list[str] = []
    type: str = "model"
    display_name: str = ""
    #: ``created`` as RFC 3339 writes it
    created_at: str = ""


class Models(Struct, frozen=True):
    """All models."""

    data: list[Model]


#: what a request is encoded with, for both clients
encode = msgspec.json.Encoder().encode
