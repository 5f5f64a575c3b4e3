"""What OpenAI's responses take, and the task that they ask for (API-2)."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from ...core.errors import InvalidParamsError
from ...core.types import ChatMessage, TaskRequest
from ..workloads import require_plain, require_sound
from .messages_content import with_system
from .own_parameters import OwnParameters, own_fields, word
from .parameters import fields_of
from .responses_items import items_of, messages_of
from .sampling_request import Tokens, refused

_Object = dict[str, Any]
_LOGPROBS: Final = "message.output_text.logprobs"
_EFFORTS: Final = {**dict.fromkeys(("none", "minimal", "low", "medium", "high", "xhigh")), "max": "xhigh"}
_FORMATS: Final = ("text", "json_object", "json_schema")


class ResponsesRequest(OwnParameters, kw_only=True, omit_defaults=True):
    """OpenAI's parameters as far as they are served, and our own beside them (``session_id``, ``deadline_ms``, …)."""

    #: text, or items: messages, function_call, function_call_output, reasoning
    input: str | Annotated[list[_Object], Meta(max_length=10_000)] | None = None
    instructions: str | None = None
    #: the response that this one goes on from
    previous_response_id: str | None = None
    #: of type ``function``
    tools: Annotated[list[_Object], Meta(max_length=512)] | None = None
    tool_choice: str | _Object | None = None
    parallel_tool_calls: bool | None = None
    #: ``format``: text, json_object or json_schema
    text: _Object | None = None
    #: ``effort``
    reasoning: _Object | None = None
    max_output_tokens: Tokens | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    #: ``message.output_text.logprobs``
    include: Annotated[list[str], Meta(max_length=32)] | None = None
    metadata: (
        Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
        | None
    ) = None
    #: it can be read and gone on from later
    store: bool | None = None
    #: the answer comes at once, and nobody's leaving cancels it
    background: bool | None = None
    stream: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    #: names the conversation where no header does
    prompt_cache_key: str | None = None
    stream_options: _Object | None = None
    grammar: str | None = None
    # --- parameters that would change the answer's meaning: refused rather than ignored ---
    conversation: Any = None
    prompt: Any = None


#: names that are served
KNOWN: Final = fields_of(ResponsesRequest)
WITHIN: Final = {
    "text": frozenset({"format"}),
    "reasoning": frozenset({"effort"}),
    "stream_options": frozenset(),
}
#: OpenAI's names of what errors name by a task's fields
NAMES: Final = {"model_ref": "model", "json_schema": "text.format", "messages": "input"}


class AskedResponse(Struct, frozen=True):
    """A request, understood."""

    task: TaskRequest
    #: what the response shows of it, and its items, for later
    shown: _Object
    #: what of its depth had no effect
    ignored: list[str]


def asked(body: ResponsesRequest, earlier: list[ChatMessage]) -> AskedResponse:
    """The task behind a request.

    :param earlier: the conversation that it goes on from.
    :raises InvalidParamsError: it asks for what is not served, naming the parameter.
    """
    _require_served(body)
    ignored: list[str] = []
    items = items_of(body.input if body.input is not None else [])
    # What is shown again later is journaled as it was sent.
    for name, kept in (("input", items), ("tools", body.tools), ("text", body.text), ("tool_choice", body.tool_choice)):
        require_plain(kept, name)
    messages = with_system(body.instructions or "", [*earlier, *messages_of(items, ignored)])
    if not messages:
        msg = "input is missing: a response answers something"
        raise InvalidParamsError(msg, field="input", got=None, expected="text, or items")
    tools = [_tool(tool, at, ignored) for at, tool in enumerate(body.tools or ())]
    wants = (body.text or {}).get("format")
    include = body.include or []
    ignored += [f"include.{name}" for name in include if name != _LOGPROBS]
    if body.truncation == "auto":
        ignored.append("truncation")
    effort = _effort(body.reasoning)
    logprobs = _LOGPROBS in include or bool(body.top_logprobs)
    fields = own_fields(body)
    if body.background:
        fields["cancel_on_disconnect"] = False
    task = TaskRequest(
        workload="chat",
        messages=messages,
        max_tokens=body.max_output_tokens,
        tools=tools or None,
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls if tools else None,
        reasoning_effort=effort,  # type: ignore[arg-type]
        json_schema=_schema(wants),
        logprobs=logprobs or None,
        top_logprobs=body.top_logprobs if logprobs else None,
        grammar=body.grammar,
        **fields,
    )
    require_sound(task)
    return AskedResponse(task, {"store": body.store is not False, "input": items, "echo": _echo(body)}, ignored)


def own_messages(messages: list[ChatMessage], instructions: str | None) -> list[ChatMessage]:
    """The messages of an earlier response without its instructions, which only it was given."""
    if not instructions or not messages or not isinstance(messages[0].content, str):
        return messages
    rest = messages[0].content.removeprefix(instructions).removeprefix("\n\n")
    return [ChatMessage(role="system", content=rest), *messages[1:]] if rest else messages[1:]


def _echo(body: ResponsesRequest) -> _Object:
    """What a response shows of its request."""
    return {
        "background": bool(body.background),
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
        "store": body.store is not False,
        "temperature": body.temperature,
        "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
        "tool_choice": body.tool_choice if body.tool_choice is not None else "auto",
        "tools": [
            {"type": "function", "name": t["name"], "description": None, "parameters": {}, "strict": None, **t}
            for t in body.tools or ()
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
    }


def _require_served(body: ResponsesRequest) -> None:
    if body.conversation is not None:
        remedy = "Send previous_response_id, or the conversation's items as input."
        raise refused("conversation", "a conversation", "conversations are not kept as such", remedy)
    if body.prompt is not None:
        raise refused("prompt", "a prompt template", "no prompt templates are kept", "Send instructions and input.")
    if body.background and body.store is False:
        raise refused("store", False, "what runs in the background has to be stored", "Leave store out.")


def _tool(tool: _Object, at: int, ignored: list[str]) -> _Object:
    kind = word(tool.get("type"))
    if kind != "function":
        remedy = "Describe it as a function, and call it in the client."
        raise refused(f"tools.{at}.type", kind, f"got a tool of type {kind!r}, only functions are served", remedy)
    known = ("type", "name", "description", "parameters", "strict")
    ignored += [f"tools.{key}" for key, value in tool.items() if key not in known and value is not None]
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        msg = f"tools.{at}.name: expected the function's name"
        raise InvalidParamsError(msg, field=f"tools.{at}.name", got=type(tool.get("name")).__name__)
    schema = tool.get("parameters")
    if schema is not None and not isinstance(schema, dict):
        msg = f"tools.{at}.parameters: expected a JSON schema"
        raise InvalidParamsError(msg, field=f"tools.{at}.parameters", got=type(schema).__name__, expected="an object")
    function: _Object = {"name": tool["name"], "parameters": schema or {"type": "object", "properties": {}}}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _choice(choice: str | _Object | None) -> str | _Object | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        shown = word(choice.get("type"))
        remedy = 'Send auto, none, required, or {"type": "function", "name": ...}.'
        raise refused("tool_choice.type", shown, f"got {shown!r}, which is not served", remedy)
    return {"type": "function", "function": {"name": choice.get("name")}}


def _effort(reasoning: _Object | None) -> str | None:
    given = (reasoning or {}).get("effort")
    if given is None:
        return None
    effort = word(given)
    if effort not in _EFFORTS:
        msg = f"reasoning.effort: got {effort!r}, expected one of {', '.join(_EFFORTS)}"
        raise InvalidParamsError(msg, field="reasoning.effort", got=effort)
    return _EFFORTS[effort] or effort


def _schema(wanted: Any) -> _Object | None:
    kind = word(wanted.get("type") if isinstance(wanted, dict) else wanted)
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        schema = wanted.get("schema")
        if isinstance(schema, dict):
            return schema
        raise refused("text.format.schema", None, "an object is expected", "Send the JSON schema there.")
    near = difflib.get_close_matches(kind, _FORMATS, n=1)
    raise refused(
        "text.format.type",
        kind,
        f"got {kind!r}, expected text, json_object or json_schema",
        f"Did you mean {near[0]}?" if near else "Send one of the three.",
    )
