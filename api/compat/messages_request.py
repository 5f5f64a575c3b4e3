"""What Anthropic's messages take, and the task that they ask for (API-2)."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from ...core.errors import InvalidParamsError
from ...core.types import TaskRequest
from ..workloads import require_sound
from .messages_content import Content, with_system
from .own_parameters import OwnParameters, own_fields, word
from .parameters import fields_of
from .sampling_request import Tokens, refused

_Object = dict[str, Any]
_EFFORTS: Final = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}
#: thinking budgets below these are that effort
_BUDGETS: Final = ((4_096, "low"), (16_384, "medium"))
_TOOL_KEYS: Final = frozenset({"type", "name", "description", "input_schema", "eager_input_streaming"})


class CountRequest(OwnParameters, kw_only=True, omit_defaults=True):
    """What is sent to the model: its tokens can be counted."""

    messages: Annotated[list[_Object], Meta(min_length=1, max_length=10_000)]
    system: str | Annotated[list[_Object], Meta(max_length=1_000)] | None = None
    tools: Annotated[list[_Object], Meta(max_length=512)] | None = None
    tool_choice: _Object | None = None
    #: ``enabled`` with ``budget_tokens``, ``adaptive`` or ``disabled``
    thinking: _Object | None = None
    #: ``effort``, and a JSON schema as ``format``
    output_config: _Object | None = None
    #: an older name of its ``format``
    output_format: _Object | None = None
    # --- parameters that would change the answer's meaning: refused rather than ignored ---
    mcp_servers: list[Any] | None = None
    container: Any = None
    thread: Any = None
    compaction: Any = None


class MessagesRequest(CountRequest, kw_only=True, omit_defaults=True):
    """Anthropic's parameters as far as they are served, and our own beside them (``session_id``, ``deadline_ms``, …)."""

    max_tokens: Tokens
    stream: bool | None = None
    stop_sequences: Annotated[list[Annotated[str, Meta(min_length=1, max_length=1024)]], Meta(max_length=16)] | None = (
        None
    )
    metadata: _Object | None = None
    grammar: str | None = None


#: names that are served
COUNTED: Final = fields_of(CountRequest)
KNOWN: Final = fields_of(MessagesRequest)
WITHIN: Final = {
    "thinking": frozenset({"type", "budget_tokens", "display"}),
    "output_config": frozenset({"effort", "format"}),
    "tool_choice": frozenset({"type", "name", "disable_parallel_tool_use"}),
    "metadata": frozenset({"user_id"}),
}
#: Anthropic's names of what errors name by a task's fields
NAMES: Final = {"model_ref": "model", "json_schema": "output_config.format", "stop": "stop_sequences"}


class Thinking(Struct, frozen=True):
    """What a client wants to see of the model's thoughts."""

    #: thoughts are part of the answer
    wanted: bool = False
    #: their blocks are there, without their text
    omitted: bool = False
    #: "" = the model's own
    effort: str = ""


class Asked(Struct, frozen=True):
    """A request, understood."""

    task: TaskRequest
    thinking: Thinking
    #: what of its depth had no effect
    ignored: list[str]


def asked(body: CountRequest) -> Asked:
    """The task behind a request.

    :raises InvalidParamsError: it asks for what is not served, naming the parameter.
    """
    if body.mcp_servers:
        raise refused("mcp_servers", "servers", "nothing here calls MCP servers", "Call them in the client, as tools.")
    if body.container is not None:
        raise refused("container", "a container", "nothing here runs containers", "Leave it out.")
    if body.compaction is not None:
        raise refused("compaction", "a compaction", "conversations are not shortened here", "Shorten it in the client.")
    if body.thread is not None:
        # Anthropic's client asks for it by itself, and goes on without when it is told so in these words.
        raise InvalidParamsError(
            "thread: no conversations are held for messages",
            field="thread",
            got="a thread",
            remedy="Send all messages of the conversation each time.",
            details={"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
        )
    if body.output_format is not None:
        body.output_config = {**(body.output_config or {}), "format": body.output_format}
    content = Content()
    messages = with_system(content.system(body.system), content.messages(body.messages))
    tools = [_tool(tool, at, content.ignored) for at, tool in enumerate(body.tools or ())]
    choice, parallel = _choice(body.tool_choice)
    config = body.output_config or {}
    thinking = _thinking(body.thinking, config, content.ignored)
    fields: dict[str, Any] = {}
    if isinstance(body, MessagesRequest):
        fields = {"max_tokens": body.max_tokens, "stop": list(body.stop_sequences or ()), "grammar": body.grammar}
    task = TaskRequest(
        workload="chat",
        messages=messages,
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=parallel if tools else None,
        reasoning_effort=thinking.effort or None,  # type: ignore[arg-type]
        json_schema=_schema(config.get("format")),
        **own_fields(body),
        **fields,
    )
    require_sound(task)
    return Asked(task, thinking, content.ignored)


def _tool(tool: _Object, at: int, ignored: list[str]) -> _Object:
    kind = tool.get("type")
    if kind is not None and word(kind) != "custom":
        shown = word(kind)
        raise refused(
            f"tools.{at}.type",
            shown,
            f"got {shown!r}, a tool that only Anthropic's servers and models know",
            "Describe the tool itself: name, description and input_schema.",
        )
    for key, value in tool.items():
        if key not in _TOOL_KEYS and value is not None:
            ignored.append("cache_control" if key == "cache_control" else f"tools.{key}")
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        msg = f"tools.{at}.input_schema: expected a JSON schema"
        raise InvalidParamsError(msg, field=f"tools.{at}.input_schema", got=type(schema).__name__, expected="an object")
    function = {"name": tool.get("name"), "parameters": schema}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _choice(choice: _Object | None) -> tuple[str | _Object | None, bool | None]:
    """The tool choice as OpenAI writes it, and whether several calls at once are allowed."""
    if choice is None:
        return None, None
    parallel = False if choice.get("disable_parallel_tool_use") is True else None
    kind = word(choice.get("type"))
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}, parallel
    words = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in words:
        msg = f"tool_choice.type: got {kind!r}, expected auto, any, tool or none"
        raise InvalidParamsError(msg, field="tool_choice.type", got=kind, expected="auto, any, tool or none")
    return words[kind], parallel


def _thinking(given: _Object | None, config: _Object, ignored: list[str]) -> Thinking:
    effort = word(config["effort"]) if config.get("effort") is not None else None
    if effort is not None and effort not in _EFFORTS:
        msg = f"output_config.effort: got {effort!r}, expected one of {', '.join(_EFFORTS)}"
        raise InvalidParamsError(msg, field="output_config.effort", got=effort)
    kind = word(given.get("type")) if given is not None else "disabled"
    if given is None or kind == "disabled":
        if effort is not None:
            ignored.append("output_config.effort")
        return Thinking()
    if kind not in ("enabled", "adaptive"):
        expected = "enabled, adaptive or disabled"
        msg = f"thinking.type: got {kind!r}, expected {expected}"
        raise InvalidParamsError(msg, field="thinking.type", got=kind, expected=expected)
    level = _EFFORTS[effort] if effort is not None else ""
    if kind == "enabled":
        budget = given.get("budget_tokens")
        if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
            msg = "thinking.budget_tokens: expected a number of tokens"
            shown = budget if isinstance(budget, int) else word(budget)
            raise InvalidParamsError(msg, field="thinking.budget_tokens", got=shown, expected="a number above 0")
        # Engines know degrees, not budgets.
        ignored.append("thinking.budget_tokens")
        level = level or next((name for bound, name in _BUDGETS if budget < bound), "high")
    return Thinking(wanted=True, omitted=given.get("display") == "omitted", effort=level)


def _schema(given: Any) -> _Object | None:
    if given is None:
        return None
    if isinstance(given, dict) and given.get("type") == "json_schema" and isinstance(given.get("schema"), dict):
        found: _Object = given["schema"]
        return found
    remedy = 'Send {"type": "json_schema", "schema": {...}}.'
    raise refused("output_config.format", type(given).__name__, "a JSON schema is expected", remedy)
