"""What types alone cannot say of a request: which text belongs to which workload, what a tool is, and what a key may look like."""

from __future__ import annotations

import math
from typing import Any, Final

from ..core.errors import InvalidParamsError
from ..core.types import ChatMessage, TaskRequest
from .operations import Call

#: most characters of an Idempotency-Key
KEY_CHARS: Final = 255
#: how deep a free-form value (a JSON schema, a message's part) may be nested
DEPTH: Final = 100
_TEXT_OF: Final = {"completion": "prompt", "chat": "messages", "embedding": "inputs", "rerank": "inputs"}
_TEXTS: Final = ("prompt", "prompt_ids", "messages", "inputs")
_SPEAKING: Final = frozenset({"completion", "chat"})
#: what only some workloads take
_ONLY: Final = {
    **dict.fromkeys(("tools", "tool_choice", "parallel_tool_calls"), frozenset({"chat"})),
    **dict.fromkeys(("reasoning_effort", "chat_template_kwargs"), frozenset({"chat"})),
    **dict.fromkeys(("n", "logprobs", "top_logprobs", "logit_bias", "stop", "max_tokens"), _SPEAKING),
    **dict.fromkeys(("grammar", "json_schema"), _SPEAKING),
    "dimensions": frozenset({"embedding"}),
    "query": frozenset({"rerank"}),
}
_CHOICES: Final = ("auto", "none", "required")


def idempotency_key(call: Call) -> str | None:
    """The request's Idempotency-Key. :raises InvalidParamsError: it is empty, too long, or not printable."""
    key = call.header("Idempotency-Key")
    if key is None:
        return None
    if not key or len(key) > KEY_CHARS or not key.isprintable():
        msg = f"Idempotency-Key: expected 1 to {KEY_CHARS} printable characters"
        raise InvalidParamsError(msg, field="Idempotency-Key", got=key[:64])
    return key


def require_sound(request: TaskRequest) -> None:
    """Check what decoding could not.

    :raises InvalidParamsError: the workload's text is missing or another one is there, a parameter is not for this
        workload, a number is not finite, a message, a tool or a part of a message is none.
    """
    _require_text_of_workload(request)
    for name, workloads in _ONLY.items():
        if getattr(request, name) and request.workload not in workloads:
            msg = f"{name}: a task of workload {request.workload} does not take it"
            expected = f"workload {' or '.join(sorted(workloads))}"
            raise InvalidParamsError(msg, field=name, got=type(getattr(request, name)).__name__, expected=expected)
    if request.grammar is not None and request.json_schema is not None:
        msg = "grammar and json_schema exclude each other"
        raise InvalidParamsError(msg, field="json_schema", got="both", expected="one of them")
    for name in ("json_schema", "chat_template_kwargs"):
        if getattr(request, name) is not None:
            require_plain(getattr(request, name), name)
    for token in request.logit_bias or ():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            msg = f"logit_bias: got {token[:40]!r}, expected token ids as keys"
            raise InvalidParamsError(msg, field="logit_bias", got=token[:40], expected='token ids, such as "15043"')
    _require_tools(request)
    for at, message in enumerate(request.messages or ()):
        _require_message(message, f"messages.{at}")


def _require_text_of_workload(request: TaskRequest) -> None:
    text = _TEXT_OF[request.workload]
    given = [name for name in _TEXTS if getattr(request, name) is not None]
    if text == "prompt" and given == ["prompt_ids"]:
        return
    if text not in given:
        msg = f"{text} is missing: a task of workload {request.workload} takes it"
        if given:
            msg += f", not {given[0]}"
        raise InvalidParamsError(msg, field=text, got=None, expected=f"{text}, as workload is {request.workload}")
    for other in given:
        if other != text:
            msg = f"{other}: a task of workload {request.workload} takes {text} alone"
            raise InvalidParamsError(msg, field=other, got=type(getattr(request, other)).__name__, expected="nothing")
    if request.workload == "rerank" and not request.query:
        msg = "query is missing: what inputs are ranked by"
        raise InvalidParamsError(msg, field="query", got=request.query, expected="a text")


def _require_tools(request: TaskRequest) -> None:
    names = set()
    for at, tool in enumerate(request.tools or ()):
        require_plain(tool, f"tools.{at}")
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            kind = tool.get("type")
            kind = kind[:64] if isinstance(kind, str) else None
            field, msg = f"tools.{at}.type", f"tools.{at}: got a tool of type {kind!r}, only functions are served"
            if kind == "function":
                field, msg = f"tools.{at}.function", f"tools.{at}.function is missing, or no object"
            raise InvalidParamsError(
                msg,
                field=field,
                got=kind,
                expected='{"type": "function", "function": {"name": ..., "parameters": {...}}}',
            )
        name = function.get("name")
        if not isinstance(name, str) or not name or len(name) > 256:
            msg = f"tools.{at}.function.name: expected a name of 1 to 256 characters"
            raise InvalidParamsError(
                msg, field=f"tools.{at}.function.name", got=name if isinstance(name, str) else None
            )
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            msg = f"tools.{at}.function.parameters: expected a JSON schema"
            field = f"tools.{at}.function.parameters"
            raise InvalidParamsError(msg, field=field, got=type(parameters).__name__, expected="an object")
        names.add(name)
    _require_choice(request.tool_choice, names)


def _require_choice(choice: str | dict[str, Any] | None, names: set[str]) -> None:
    """:raises InvalidParamsError: no tool is meant by it."""
    if choice is None or choice in ("auto", "none"):
        return
    expected = "auto, none, required, or one of the functions of tools"
    wanted: Any = choice
    if isinstance(choice, dict):
        require_plain(choice, "tool_choice")
        function = choice.get("function")
        wanted = function.get("name") if choice.get("type") == "function" and isinstance(function, dict) else None
        if isinstance(wanted, str) and wanted in names:
            return
    elif choice in _CHOICES and names:
        return
    shown = wanted if isinstance(wanted, str) else "an object"
    msg = f"tool_choice: got {shown[:64]!r}, expected {expected}"
    if not names:
        msg = "tool_choice: there are no tools to choose from"
    raise InvalidParamsError(msg, field="tool_choice", got=shown[:64], expected=expected)


def _require_message(message: ChatMessage, where: str) -> None:
    """:raises InvalidParamsError: the message says nothing, or has parts or tool calls that are none."""
    for at, call in enumerate(message.tool_calls or ()):
        require_plain(call, f"{where}.tool_calls.{at}")
        function = call.get("function")
        sound = isinstance(function, dict) and isinstance(function.get("name"), str)
        if not sound or not isinstance(function.get("arguments", ""), str):  # type: ignore[union-attr]
            msg = f"{where}.tool_calls.{at}: expected a function's name, and its arguments as text"
            expected = '{"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}}'
            raise InvalidParamsError(msg, field=f"{where}.tool_calls.{at}", got="something else", expected=expected)
    if message.tool_calls and message.role != "assistant":
        msg = f"{where}.tool_calls: only an assistant calls tools, this is a {message.role}"
        raise InvalidParamsError(msg, field=f"{where}.tool_calls", got=message.role, expected="role assistant")
    content = message.content
    if content is None:
        if message.role == "assistant" and (message.tool_calls or message.reasoning_content):
            return
        msg = f"{where}.content is missing"
        raise InvalidParamsError(msg, field=f"{where}.content", got=None, expected="text, or a list of parts")
    if isinstance(content, str):
        return
    for at, part in enumerate(content):
        require_plain(part, f"{where}.content.{at}")
        _require_part(part, f"{where}.content.{at}")


def _require_part(part: dict[str, Any], where: str) -> None:
    kind = part.get("type")
    if not isinstance(kind, str):
        msg = f"{where}.type is missing"
        raise InvalidParamsError(msg, field=f"{where}.type", got=None, expected='"text" or "image_url"')
    if kind == "text" and not isinstance(part.get("text"), str):
        msg = f"{where}.text is missing"
        raise InvalidParamsError(msg, field=f"{where}.text", got=None, expected='{"type": "text", "text": "..."}')
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url.startswith("data:"):
            msg = f"{where}.image_url: expected the picture itself as a data: URL; engines fetch nothing"
            raise InvalidParamsError(
                msg,
                field=f"{where}.image_url",
                got=url[:64] if isinstance(url, str) else None,
                expected="data:image/png;base64,...",
                remedy="Read the picture, and send its bytes in base64.",
            )


def require_plain(value: Any, field: str) -> None:
    """:raises InvalidParamsError: a free-form value holds numbers that are not finite, or is nested too deeply."""
    pending = [(value, 0)]
    while pending:
        one, depth = pending.pop()
        if depth > DEPTH:
            msg = f"{field}: it is nested more than {DEPTH} levels deep"
            raise InvalidParamsError(msg, field=field, got="deeply nested JSON", expected=f"at most {DEPTH} levels")
        if isinstance(one, dict):
            pending += [(below, depth + 1) for below in one.values()]
        elif isinstance(one, list):
            pending += [(below, depth + 1) for below in one]
        elif isinstance(one, float) and not math.isfinite(one):
            msg = f"{field}: numbers must be finite"
            raise InvalidParamsError(msg, field=field, got=str(one), expected="finite numbers")
