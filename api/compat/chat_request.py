"""What OpenAI's chat completions take, and the task that it asks for."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from ...core.errors import InvalidParamsError
from ...core.types import ChatMessage, TaskRequest
from ..requests import explain
from ..workloads import require_sound
from .own_parameters import word
from .parameters import fields_of
from .sampling_request import SamplingRequest, Tokens, refused, task_fields


class ChatCompletionRequest(SamplingRequest, kw_only=True, omit_defaults=True):
    """OpenAI's chat parameters as far as they are served, and our own beside them."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=10_000)]
    #: wins over ``max_tokens``
    max_completion_tokens: Tokens | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    #: likeliest tokens beside each one; needs ``logprobs``
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=512)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    #: more variables of the model's chat template, such as ``{"enable_thinking": false}``
    chat_template_kwargs: dict[str, Any] | None = None
    # --- parameters that would change the answer's meaning: refused rather than ignored ---
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


KNOWN: Final = fields_of(ChatCompletionRequest)
#: OpenAI's names of what errors name by a task's fields
NAMES: Final = {"model_ref": "model", "json_schema": "response_format", "workload": "model"}
_MESSAGE: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"})


def _require_served(body: ChatCompletionRequest) -> None:
    if body.functions or body.function_call is not None:
        field = "functions" if body.functions else "function_call"
        raise refused(field, "functions", "the older form of tools is not served", "Send tools and tool_choice.")
    if body.top_logprobs and not body.logprobs:
        raise refused("top_logprobs", body.top_logprobs, "it needs logprobs: true", "Send logprobs: true too.")
    if body.audio is not None or (body.modalities and body.modalities != ["text"]):
        raise refused("modalities", "audio", "only text is served", 'Send modalities: ["text"], or leave it out.')
    if body.web_search_options is not None:
        field, why = "web_search_options", "nothing here searches the web"
        raise refused(field, "a search", why, "Leave it out, or give the model a tool that searches.")
    if body.add_generation_prompt is False or body.continue_final_message:
        field = "continue_final_message" if body.continue_final_message else "add_generation_prompt"
        why, remedy = "a chat always asks for the assistant's next message", "Send a prompt to /v1/completions instead."
        raise refused(field, getattr(body, field), why, remedy)


def schema_of(wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    """The JSON schema that a ``response_format`` asks for; ``None`` = any text.

    :raises InvalidParamsError: it is no format that is served.
    """
    if wanted is None or wanted.get("type") == "text":
        return None
    kind = wanted.get("type")
    if kind == "json_object":
        # llama.cpp takes a schema here too
        schema = wanted.get("schema")
        return schema if isinstance(schema, dict) else {"type": "object"}
    if kind == "json_schema":
        told = wanted.get("json_schema", wanted)
        if isinstance(told, dict) and isinstance(told.get("schema"), dict):
            found: dict[str, Any] = told["schema"]
            return found
        field = "response_format.json_schema.schema"
        raise refused(field, None, "an object is expected", "Send the JSON schema there.")
    kind = word(kind)
    near = difflib.get_close_matches(kind, ["text", "json_object", "json_schema"], n=1)
    raise refused(
        "response_format.type",
        kind,
        f"got {kind!r}, expected text, json_object or json_schema",
        f"Did you mean {near[0]}?" if near else "Send one of the three.",
    )


def messages_of(given: list[dict[str, Any]]) -> list[ChatMessage]:
    """Messages as tasks take them.

    :raises InvalidParamsError: one of them is none, naming it.
    """
    out = []
    for at, message in enumerate(given):
        kept = {key: value for key, value in message.items() if key in _MESSAGE}
        if kept.get("role") == "function" or message.get("function_call"):
            remedy = "Send the assistant's tool_calls, and answers to them with role tool."
            raise refused(f"messages.{at}", "function", "the older form of tools is not served", remedy)
        if "reasoning_content" not in kept and isinstance(message.get("reasoning"), str):
            kept["reasoning_content"] = message["reasoning"]
        try:
            out.append(msgspec.convert(kept, ChatMessage))
        except msgspec.ValidationError as error:
            found = explain(error, ChatMessage, kept)
            field = f"messages.{at}" if found.field in (None, "body") else f"messages.{at}.{found.field}"
            text = f"messages.{at}: {found.message}"
            raise InvalidParamsError(text, field=field, got=found.got, **found.details) from None
    return out


def ignored_in_messages(given: list[dict[str, Any]]) -> list[str]:
    """Keys of messages that have no effect, such as ``messages.annotations``; empty ones say nothing."""
    return [
        f"messages.{key}"
        for message in given
        for key, value in message.items()
        if key not in _MESSAGE and key != "reasoning" and value not in (None, "", [], {})
    ]


def task_of(body: ChatCompletionRequest) -> TaskRequest:
    """The task behind the request.

    :raises InvalidParamsError: it asks for what is not served, naming the parameter.
    """
    _require_served(body)
    schema = schema_of(body.response_format)
    if schema is not None and body.json_schema is not None:
        raise refused("json_schema", "both", "response_format has one too", "Send one of the two.")
    task = TaskRequest(
        workload="chat",
        messages=messages_of(body.messages),
        max_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
        json_schema=schema if schema is not None else body.json_schema,
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
        tools=body.tools or None,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls if body.tools else None,
        reasoning_effort=body.reasoning_effort,
        chat_template_kwargs=body.chat_template_kwargs,
        **task_fields(body),
    )
    require_sound(task)
    return task
