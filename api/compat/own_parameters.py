"""Our own parameters that Anthropic's messages and OpenAI's responses take beside theirs (API-2)."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from ...core.types import Determinism, Name, PlacementRequest, Recovery, Sampling, Uuid
from .sampling_request import Tokens, priority_of, seed_of


class OwnParameters(Sampling, kw_only=True, omit_defaults=True):
    """What a task can be told that neither API knows of, and the sampling that both have."""

    model: Name
    task_id: Uuid | None = None
    session_id: Uuid | None = None
    session_ttl_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | None = None
    session_turn_limit: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    #: a number as vLLM and LiteLLM take it (above 0 = batch), or our word for it
    priority: int | Literal["interactive", "batch"] | None = None
    #: -1 = any
    seed: int | None = None
    engine: str | None = None
    determinism: Determinism = "best_effort"
    sampler_profile_version: str | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | None = None
    expected_tokens: Tokens | None = None
    kv_hint: Literal["reuse", "cold"] | None = None
    recovery: Recovery = "continue"
    cancel_on_disconnect: bool | None = None
    placement: PlacementRequest | None = None


_SAME: Final = (
    "task_id",
    "session_id",
    "session_ttl_ms",
    "session_turn_limit",
    "engine",
    "determinism",
    "sampler_profile_version",
    "deadline_ms",
    "expected_tokens",
    "kv_hint",
    "recovery",
    "cancel_on_disconnect",
    "placement",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def word(value: object) -> str:
    """A value that shall be one of some words; what is no text is none of them, and told by what it is instead."""
    if isinstance(value, str):
        return value[:64]
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def own_fields(body: OwnParameters) -> dict[str, Any]:
    """The fields of a task that these parameters are."""
    fields: dict[str, Any] = {name: getattr(body, name) for name in _SAME}
    return {**fields, "model_ref": body.model, "seed": seed_of(body.seed), "priority": priority_of(body.priority)}
