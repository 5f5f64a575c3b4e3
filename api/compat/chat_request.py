"""What OpenAI's chat completions take, and the task that it asks for."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ...core.errors import InvalidParamsError
from ...core.types import ChatMessage, Determinism, Name, PlacementRequest, Recovery, Sampling, TaskRequest, Uuid
from ..requests import explain, not_json
from ..workloads import require_sound

_Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
_Tokens = Annotated[int, Meta(ge=1, le=100_000_000)]


class StreamOptions(Struct, frozen=True):
    """What a stream tells beside the text."""

    #: a last chunk with the usage
    include_usage: bool = False


class ChatCompletionRequest(Sampling, kw_only=True, omit_defaults=True):
    """OpenAI's parameters as far as they are served, and our own beside them (`session_id`, `deadline_ms`, …)."""

    model: Name
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=10_000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    #: one choice only
    n: int | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=16)] | None = None
    seed: int | None = None
    response_format: dict[str, Any] | None = None
    #: a number as vLLM and LiteLLM take it (above 0 = batch), or our word for it
    priority: int | Literal["interactive", "batch"] | None = None
    # --- parameters that would change the answer's meaning: refused rather than ignored ---
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    # --- our own ---
    task_id: Uuid | None = None
    session_id: Uuid | None = None
    engine: str | None = None
    determinism: Determinism = "best_effort"
    sampler_profile_version: str | None = None
    grammar: str | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | None = None
    expected_tokens: _Tokens | None = None
    kv_hint: Literal["reuse", "cold"] | None = None
    recovery: Recovery = "continue"
    cancel_on_disconnect: bool | None = None
    placement: PlacementRequest | None = None


_KNOWN = frozenset(f.encode_name for f in msgspec.structs.fields(ChatCompletionRequest))
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def ignored_parameters(raw: bytes) -> list[str]:
    """Parameters of the body that are not served, in its order; unprintable names are left out.

    :raises InvalidParamsError: a name is no text, which nobody saw while it was skipped.
    """
    try:
        names = _keys(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(raw, error) from None
    return [name for name in names if name not in _KNOWN and name.isascii() and name.isprintable()][:64]


def _refuse(field: str, got: object, why: str, remedy: str) -> InvalidParamsError:
    return InvalidParamsError(f"{field}: {why}", field=field, got=got, remedy=remedy)


def _require_served(body: ChatCompletionRequest) -> None:
    if body.n is not None and body.n != 1:
        raise _refuse(
            "n", body.n, f"got {body.n}, only 1 choice is served", "Send n: 1, or the request once per choice."
        )
    if body.tools or body.functions:
        raise _refuse(
            "tools" if body.tools else "functions",
            "a list of tools",
            "tool calls are not served by this version",
            "Leave tools out, or send an empty list.",
        )
    if body.logprobs or body.top_logprobs:
        raise _refuse("logprobs", True, "log-probabilities are not served here", "Leave logprobs and top_logprobs out.")
    if body.logit_bias:
        raise _refuse("logit_bias", "biases", "logit_bias is not served by this version", "Leave logit_bias out.")
    if body.audio is not None or (body.modalities and body.modalities != ["text"]):
        raise _refuse("modalities", "audio", "only text is served", 'Send modalities: ["text"], or leave it out.')


def _schema(body: ChatCompletionRequest) -> dict[str, Any] | None:
    wanted = body.response_format
    if wanted is None or wanted.get("type") == "text":
        return None
    if wanted.get("type") == "json_object":
        return {"type": "object"}
    if wanted.get("type") == "json_schema":
        schema = wanted.get("json_schema")
        if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
            found: dict[str, Any] = schema["schema"]
            return found
        raise _refuse(
            "response_format.json_schema.schema", None, "an object is expected", "Send the JSON schema there."
        )
    kind = wanted.get("type")
    near = difflib.get_close_matches(str(kind), ["text", "json_object", "json_schema"], n=1)
    raise _refuse(
        "response_format.type",
        kind if isinstance(kind, str) else None,
        f"got {kind!r}, expected text, json_object or json_schema",
        f"Did you mean {near[0]}?" if near else "Send one of the three.",
    )


def _messages(given: list[dict[str, Any]]) -> list[ChatMessage]:
    """Messages as tasks take them; what clients add for their own use (annotations, refusal, …) is dropped."""
    out = []
    for at, message in enumerate(given):
        kept = {k: v for k, v in message.items() if k in ("role", "content", "name", "tool_calls", "tool_call_id")}
        if kept.get("role") == "function":
            raise _refuse(f"messages.{at}.role", "function", "functions are not served", "Send text messages.")
        try:
            out.append(msgspec.convert(kept, ChatMessage))
        except msgspec.ValidationError as error:
            found = explain(error, ChatMessage, kept)
            field = f"messages.{at}" if found.field in (None, "body") else f"messages.{at}.{found.field}"
            text = f"messages.{at}: {found.message}"
            raise InvalidParamsError(text, field=field, got=found.got, **found.details) from None
    return out


def task_of(body: ChatCompletionRequest) -> TaskRequest:
    """The task behind the request.

    :raises InvalidParamsError: it asks for what is not served, naming the parameter.
    """
    _require_served(body)
    stop = body.stop
    seed: int | None = body.seed
    if seed is not None:
        seed &= 0xFFFFFFFF  # OpenAI's seeds have 64 bits, engines' 32; the one in use is told in the task
        seed = seed if seed != 0xFFFFFFFF else 0
    priority = body.priority
    task = TaskRequest(
        model_ref=body.model,
        workload="chat",
        task_id=body.task_id,
        session_id=body.session_id,
        engine=body.engine,
        priority="batch" if priority == "batch" or (isinstance(priority, int) and priority > 0) else "interactive",
        seed=seed,
        determinism=body.determinism,
        sampler_profile_version=body.sampler_profile_version,
        messages=_messages(body.messages),
        max_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
        stop=[] if stop is None else [stop] if isinstance(stop, str) else list(stop),
        grammar=body.grammar,
        json_schema=_schema(body),
        deadline_ms=body.deadline_ms,
        expected_tokens=body.expected_tokens,
        kv_hint=body.kv_hint,
        recovery=body.recovery,
        cancel_on_disconnect=body.cancel_on_disconnect,
        placement=body.placement,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repeat_penalty=body.repeat_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
    )
    require_sound(task)
    return task
