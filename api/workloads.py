"""What types alone cannot say of a request: which text belongs to which workload, and what a key may look like."""

from __future__ import annotations

import math
from typing import Any

from ..core.errors import InvalidParamsError
from ..core.types import ChatMessage, TaskRequest
from .operations import Call

#: most characters of an Idempotency-Key
KEY_CHARS = 255
#: how deep a free-form value (a JSON schema, a message's part) may be nested
DEPTH = 100
_TEXT_OF = {"completion": "prompt", "chat": "messages"}
_TEXTS = ("prompt", "messages", "inputs")


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

    :raises InvalidParamsError: the workload is not served, its text is missing or another one is there, a number is not
        finite, a message has parts that are no text.
    """
    text = _TEXT_OF.get(request.workload)
    if text is None:
        msg = (
            f"workload: {request.workload!r} is not served by the engines of this version, expected completion or chat"
        )
        raise InvalidParamsError(msg, field="workload", got=request.workload, expected="completion or chat")
    given = [name for name in _TEXTS if getattr(request, name) is not None]
    if text not in given:
        msg = f"{text} is missing: a {request.workload} task takes it"
        if given:
            msg += f", not {given[0]}"
        raise InvalidParamsError(msg, field=text, got=None, expected=f"{text}, as workload is {request.workload}")
    for other in given:
        if other != text:
            msg = f"{other}: a {request.workload} task takes {text} alone"
            raise InvalidParamsError(msg, field=other, got=type(getattr(request, other)).__name__, expected="nothing")
    if request.grammar is not None and request.json_schema is not None:
        msg = "grammar and json_schema exclude each other"
        raise InvalidParamsError(msg, field="json_schema", got="both", expected="one of them")
    if request.json_schema is not None:
        _require_plain(request.json_schema, "json_schema")
    for at, message in enumerate(request.messages or ()):
        require_text(message, f"messages.{at}")


def require_text(message: ChatMessage, where: str) -> None:
    """:raises InvalidParamsError: the message has no text, or parts that are something else."""
    if message.tool_calls or message.tool_call_id is not None or message.role == "tool":
        msg = f"{where}: tool calls are not served by this version"
        raise InvalidParamsError(msg, field=where, got="a tool message", expected="text")
    content = message.content
    if content is None:
        msg = f"{where}.content is missing"
        raise InvalidParamsError(msg, field=f"{where}.content", got=None, expected="text, or a list of text parts")
    if isinstance(content, str):
        return
    for at, part in enumerate(content):
        _require_plain(part, f"{where}.content.{at}")
        kind = part.get("type")
        if kind != "text" or not isinstance(part.get("text"), str):
            msg = f"{where}.content.{at}: got a part of type {kind!r}; only text parts are served"
            raise InvalidParamsError(
                msg,
                field=f"{where}.content.{at}.type",
                got=kind if isinstance(kind, str) else None,
                expected='{"type": "text", "text": "..."}',
                remedy="Send text alone; images, audio and files are not served by the engines of this version.",
            )


def _require_plain(value: Any, field: str) -> None:
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
