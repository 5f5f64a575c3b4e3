"""Value types shared by all rooms: what a task asks for, and what a snapshot for decisions holds.

Requests (:class:`TaskRequest` and its parts) may hold floats, as callers send them; nothing here is an
event. Field constraints are checked once, where a request is decoded.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Workload = Literal["completion", "chat", "embedding", "rerank"]
Priority = Literal["interactive", "batch"]
Determinism = Literal["strict", "best_effort"]
Recovery = Literal["strict", "continue", "none"]

Uuid = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
Text = Annotated[str, Meta(max_length=16_000_000)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
TokenId = Annotated[int, Meta(ge=0, le=4_294_967_295)]

#: channels of entries: what is said aloud, what is thought, and for each tool call its function's name and its arguments
TEXT = ""
REASONING = "reasoning"
CALL = "call:"
TOOL = "tool:"


class ChatMessage(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One message of a chat; ``content`` is text or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    #: calls that the assistant made, as OpenAI writes them
    tool_calls: list[dict[str, Any]] | None = None
    #: of a tool's answer: the call that it answers
    tool_call_id: str | None = None
    #: what the assistant thought before it spoke, for templates that want it back
    reasoning_content: str | None = None


class PlacementRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Overrides of placement (PLC-3)."""

    mode: Literal["auto", "pin", "prefer"] = "auto"
    pin_pool_id: str | None = None
    prefer_pools: list[str] = []
    avoid_pools: list[str] = []
    require_device_mask: str | None = None
    allow_fallback: bool = True


class Sampling(Struct, omit_defaults=True, kw_only=True):
    """Sampling parameters under their OpenAI and llama.cpp names; ``None`` means the profile's or engine's default."""

    temperature: Annotated[float, Meta(ge=0, le=5)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0, le=10)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None


class TaskRequest(Sampling, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What ``POST /v1/tasks`` takes (ADM-1)."""

    model_ref: Name
    workload: Workload = "completion"
    task_id: Uuid | None = None
    session_id: Uuid | None = None
    engine: str | None = None
    #: context wanted, in tokens
    ctx: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None
    priority: Priority = "interactive"
    seed: Annotated[int, Meta(ge=0, le=4_294_967_295)] | None = None
    determinism: Determinism = "best_effort"
    sampler_profile_version: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=10_000)] | None = None
    #: texts to embed or to rank
    inputs: Annotated[list[Text], Meta(min_length=1, max_length=10_000)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=1024)]], Meta(max_length=16)] = []
    #: a prompt as token ids, instead of ``prompt``
    prompt_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=10_000_000)] | None = None
    grammar: Text | None = None
    json_schema: dict[str, Any] | None = None
    #: answers to one prompt; each has ``max_tokens``
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    #: log-probability of each token
    logprobs: bool | None = None
    #: beside each token the likeliest ones
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    #: functions that the model may call, as OpenAI writes them (chat)
    tools: Annotated[list[dict[str, Any]], Meta(max_length=512)] | None = None
    #: "auto", "none", "required", or the one to call, as OpenAI writes it
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    #: how much a model that can shall think: "none" switches it off
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    #: more variables of the model's chat template
    chat_template_kwargs: dict[str, Any] | None = None
    #: added to the logits of tokens, by token id
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    #: length of an embedding, for models that can shorten it
    dimensions: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    #: what ``inputs`` are ranked by (rerank)
    query: Text | None = None
    #: idle time after which a session that begins with this task expires
    session_ttl_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | None = None
    #: tasks that a session that begins with this task may have
    session_turn_limit: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    #: bounds the end, counted from admission
    deadline_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | None = None
    expected_tokens: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None
    kv_hint: Literal["reuse", "cold"] | None = None
    recovery: Recovery = "continue"
    cancel_on_disconnect: bool | None = None
    placement: PlacementRequest | None = None


class Entry(Struct, frozen=True, gc=False):
    """What an engine said in one step; one entry is one SSE frame (its id is ``<epoch>.<ordinal>``)."""

    #: UTF-8 text; empty while a partial character or half-matched stop string is held back
    text: str
    #: tokens it stands for; 0 where the engine does not say
    tokens: int = 1
    #: token ids, as far as the engine gave them
    ids: tuple[int, ...] = ()
    #: whether ``ids`` are all the tokens of ``text``
    ids_complete: bool = True
    #: index of the choice (``n`` > 1)
    choice: int = 0
    #: "" for text, "reasoning", "call:<index>" (a function's name), "tool:<index>" (its arguments, a piece of JSON)
    channel: str = ""
    #: log-probability of the token as a shortest-repr decimal string, or as :mod:`core.logprobs` packs more; "" = none
    logprob: str = ""


class TaskPhase(enum.StrEnum):
    """Where a live task stands; ended tasks are not live."""

    QUEUED = "queued"
    PLACED = "placed"
    RUNNING = "running"


class Amount(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What budgets count (BUD-1)."""

    #: of prompt and answer together
    tokens: int = 0
    #: from the first journaled entry to the last
    decode_us: int = 0
    #: in 10^-12 of the price list's currency
    cost_pico: int = 0


class PoolView(Struct, frozen=True, kw_only=True):
    """A pool as decisions see it: quantised facts from the journal only."""

    pool_id: str
    engine: str
    model_ref: str
    ready: bool
    draining: bool
    slots: int
    leases: int
    ctx: int
    engine_version: str = ""
    model_digest: str = ""
    device_mask: str = ""
    replica_id: str = "r0"
    #: measured decode rate, thousandths of a token per second; 0 when not measured yet
    decode_mtok_s: int = 0
    #: tokens that running tasks may still decode, upper bound
    tokens_outstanding: int = 0
    #: free on the fullest of its devices by what the journal holds of them; -1 = not known, or not believed
    free_bytes: int = -1
    #: tokens that its KV cache still takes, where its slots share one; -1 = each slot has its own
    kv_tokens_free: int = -1
    #: it is loaded when a task asks for its model
    on_demand: bool = False
    cause: str = ""


class TaskView(Struct, frozen=True, kw_only=True):
    """A task as placement sees it."""

    task_id: str
    model_ref: str
    engine: str = ""
    ctx_needed: int = 0
    max_tokens: int = 0
    priority: str = "interactive"
    session_pool_id: str = ""
    placement: PlacementRequest = msgspec.field(default_factory=PlacementRequest)
