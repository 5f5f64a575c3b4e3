"""What a task needs of its engine, and which pools have it (ADM-2, ENG-1)."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InvalidParamsError
from ..projections.pools import PoolState
from ..types import ChatMessage, TaskRequest

#: the field that asks for an ability
_FIELDS = {
    "tools": "tools",
    "images": "messages",
    "logprobs": "logprobs",
    "prompt_ids": "prompt_ids",
    "logit_bias": "logit_bias",
    "grammar": "grammar",
    "json_schema": "json_schema",
}
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})


def needs_of(request: TaskRequest) -> list[str]:
    """The workload and the features that a request asks for, in the order of their names."""
    needs = {str(request.workload)}
    if request.tools or any(m.tool_calls or m.role == "tool" for m in request.messages or ()):
        needs.add("tools")
    if any(_has_image(message) for message in request.messages or ()):
        needs.add("images")
    if request.logprobs or request.top_logprobs:
        needs.add("logprobs")
    for name in ("prompt_ids", "logit_bias", "grammar"):
        if getattr(request, name):
            needs.add(name)
    if request.json_schema is not None:
        needs.add("json_schema")
    return sorted(needs)


def _has_image(message: ChatMessage) -> bool:
    parts = message.content
    return isinstance(parts, list) and any(part.get("type") not in _TEXT_PARTS for part in parts)


def missing(pool: PoolState, needs: Sequence[str]) -> list[str]:
    """What of it the pool's engine does not have; what is not known of it yet is not missing."""
    known = pool.observed.abilities if pool.observed is not None else []
    return [need for need in needs if need not in known] if known else []


def require_able(pools: Sequence[PoolState], needs: Sequence[str], model_ref: str) -> None:
    """:raises InvalidParamsError: none of these pools can do what is asked for, whatever becomes of them."""
    lacks = [missing(pool, needs) for pool in pools]
    if not pools or not all(lacks):
        return
    need = lacks[0][0]
    field = _FIELDS.get(need, "workload")
    engines = ", ".join(sorted({pool.declared.engine for pool in pools}))
    what = {"images": "pictures or other media", "tools": "tool calls"}.get(need, need)
    msg = f"{field}: {model_ref!r} is served by {engines}, which does not do {what} as it was started"
    raise InvalidParamsError(
        msg,
        field=field,
        got=need,
        remedy="GET /v1/capabilities says what each pool can; ask another model, or leave it out.",
    )
