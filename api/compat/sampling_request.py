"""What OpenAI's chat and text completions take alike, and what of it becomes a task."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from ...core.errors import InvalidParamsError
from ...core.types import Determinism, Name, PlacementRequest, Recovery, Sampling, Uuid
from .parameters import fields_of

Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
Tokens = Annotated[int, Meta(ge=1, le=100_000_000)]


class StreamOptions(Struct, frozen=True):
    """What a stream tells beside the text."""

    #: a last chunk with the usage
    include_usage: bool = False


#: names that are served of parameters that are objects
WITHIN: Final = {"stream_options": fields_of(StreamOptions)}


class SamplingRequest(Sampling, kw_only=True, omit_defaults=True):
    """Parameters of OpenAI's completions of either kind, and our own beside them (``session_id``, ``deadline_ms``, …)."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=16)] | None = None
    #: -1 = any
    seed: int | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    #: a number as vLLM and LiteLLM take it (above 0 = batch), or our word for it
    priority: int | Literal["interactive", "batch"] | None = None
    #: vLLM's name of ``repeat_penalty``
    repetition_penalty: Annotated[float, Meta(ge=0, le=10)] | None = None
    #: llama.cpp's: false = start without a cached prefix (``kv_hint: cold``)
    cache_prompt: bool | None = None
    #: names the conversation where no header does
    prompt_cache_key: str | None = None
    # --- our own ---
    task_id: Uuid | None = None
    session_id: Uuid | None = None
    session_ttl_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | None = None
    session_turn_limit: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    engine: str | None = None
    ctx: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None
    determinism: Determinism = "best_effort"
    sampler_profile_version: str | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | None = None
    expected_tokens: Tokens | None = None
    kv_hint: Literal["reuse", "cold"] | None = None
    recovery: Recovery = "continue"
    cancel_on_disconnect: bool | None = None
    placement: PlacementRequest | None = None


_SAME = (
    "n",
    "logit_bias",
    "task_id",
    "session_id",
    "session_ttl_ms",
    "session_turn_limit",
    "engine",
    "ctx",
    "determinism",
    "sampler_profile_version",
    "grammar",
    "deadline_ms",
    "expected_tokens",
    "recovery",
    "cancel_on_disconnect",
    "placement",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
)


def refused(field: str, got: object, why: str, remedy: str) -> InvalidParamsError:
    """The error for a parameter that would change the answer and is not served."""
    return InvalidParamsError(f"{field}: {why}", field=field, got=got, remedy=remedy)


def task_fields(body: SamplingRequest) -> dict[str, Any]:
    """Fields of a task, as far as both kinds of completions say them alike.

    :raises InvalidParamsError: two names of one thing say different things.
    """
    fields: dict[str, Any] = {name: getattr(body, name) for name in _SAME}
    fields["model_ref"] = body.model
    fields["stop"] = [] if body.stop is None else [body.stop] if isinstance(body.stop, str) else list(body.stop)
    fields["seed"] = seed_of(body.seed)
    fields["priority"] = priority_of(body.priority)
    fields["repeat_penalty"] = _one_of(body, "repeat_penalty", "repetition_penalty")
    fields["kv_hint"] = body.kv_hint
    if body.cache_prompt is not None:
        wanted = "reuse" if body.cache_prompt else "cold"
        if body.kv_hint not in (None, wanted):
            raise refused("cache_prompt", body.cache_prompt, f"kv_hint says {body.kv_hint}", "Send one of the two.")
        fields["kv_hint"] = wanted
    return fields


def _one_of(body: SamplingRequest, ours: str, theirs: str) -> Any:
    """A value that has two names."""
    one, other = getattr(body, ours), getattr(body, theirs)
    if one is not None and other is not None and one != other:
        raise refused(theirs, other, f"{ours} says {one}", "Send one of the two.")
    return one if one is not None else other


def seed_of(seed: int | None) -> int | None:
    """A seed as engines take it; ``None`` = any.

    OpenAI's seeds have 64 bits and engines' 32, of which the last one means "any" to some of them; the seed in use is
    told with the task.
    """
    if seed is None or seed == -1:
        return None
    seed &= 0xFFFF_FFFF
    return seed if seed != 0xFFFF_FFFF else 0


def priority_of(priority: int | str | None) -> Literal["interactive", "batch"]:
    """The class of a task for a number as vLLM and LiteLLM take it (lower = sooner), or for our word for it."""
    if isinstance(priority, str):
        return "batch" if priority == "batch" else "interactive"
    return "batch" if priority is not None and priority > 0 else "interactive"
