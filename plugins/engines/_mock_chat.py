"""How the mock answers chats: which tools it calls with what, how long it thinks, and what JSON fits a schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from .. import CALL, REASONING, TEXT, TOOL, ChatJob
from ._mock_words import WORDS

_PIECES: Final = re.compile(r"\s*[\w.+-]+|\s*[^\w\s]|\s+")
#: deeper schemas end here
_DEPTH: Final = 12


class Piece(msgspec.Struct, frozen=True):
    """Something that is said as it stands."""

    channel: str
    text: str
    tokens: int = 1


class Plan(msgspec.Struct, frozen=True):
    """What is said before the words begin, and whether they do."""

    pieces: tuple[Piece, ...] = ()
    #: nothing follows
    complete: bool = False
    calls: bool = False


class RefusedError(ValueError):
    """Something that the mock cannot do; the message names the field."""


def plan(*, chat: ChatJob | None, schema: Mapping[str, Any] | None, calls: str, thoughts: int, seed: int) -> Plan:
    """What to say.

    Args:
        chat: messages and tools; ``None`` for a plain prompt.
        schema: of the JSON that is wanted.
        calls: names of the tools that the script wants called, with commas between.
        thoughts: tokens to think.
        seed: decides what is thought and what the arguments are.

    Raises:
        RefusedError: the choice of a tool names none.
    """
    pieces = [Piece(REASONING, word) for word in _thoughts(chat, thoughts, seed)]
    called = [] if chat is None else _called(chat, calls)
    for number, function in enumerate(called):
        pieces.append(Piece(f"{CALL}{number}", str(function.get("name", "")), 0))
        arguments = value_of(function.get("parameters") or {}, seed + number)
        pieces += [Piece(f"{TOOL}{number}", text) for text in _PIECES.findall(json.dumps(arguments))]
    if called:
        return Plan(tuple(pieces), complete=True, calls=True)
    if schema is not None:
        pieces += [Piece(TEXT, text) for text in _PIECES.findall(json.dumps(value_of(schema, seed)))]
    return Plan(tuple(pieces), complete=schema is not None)


def plain_texts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose parts are one text each.

    Raises:
        RefusedError: a part is no text.
    """
    return [{**message, "content": _text(message.get("content"))} for message in messages]


def _text(content: Any) -> str | None:
    if not isinstance(content, list):
        return None if content is None else str(content)
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or "text" not in part:
            msg = f"messages: the mock takes no parts of type {part.get('type')!r}"
            raise RefusedError(msg)
        texts.append(str(part["text"]))
    return "".join(texts)


def value_of(schema: Any, seed: int, root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """Some JSON value that a schema allows, as far as the mock understands it."""
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return None
    root = schema if root is None else root

    def inner(part: Any, step: int = 0) -> Any:
        return value_of(part, seed + step, root, depth + 1)

    if "$ref" in schema:
        return inner(_referred(root, str(schema["$ref"])))
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][seed % len(schema["enum"])]
    for several in ("anyOf", "oneOf", "allOf"):
        if schema.get(several):
            return inner(schema[several][0])
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "object" or (kind is None and "properties" in schema):
        properties = schema.get("properties") or {}
        return {name: inner(part, n) for n, (name, part) in enumerate(properties.items())}
    if kind == "array":
        least = int(schema.get("minItems", 1))
        return [inner(schema.get("items", {}), n) for n in range(max(least, 1) if schema.get("maxItems", 1) else 0)]
    if kind == "boolean":
        return seed % 2 == 0
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf) + 1)
        high = schema.get("maximum", schema.get("exclusiveMaximum", math.inf) - 1)
        if low == -math.inf:
            low = 0 if high >= 0 else high - 9
        low, high = math.ceil(low), math.floor(min(high, low + 9))
        return low + seed % (high - low + 1) if high > low else low
    if kind == "null":
        return None
    word = WORDS[seed % len(WORDS)].strip()
    return (word * (1 + int(schema.get("minLength", 0)) // len(word)))[: schema.get("maxLength")]


def _referred(root: Mapping[str, Any], reference: str) -> Any:
    found: Any = root
    for step in reference.removeprefix("#").split("/"):
        if step:
            found = found.get(step, {}) if isinstance(found, Mapping) else {}
    return found


def _thoughts(chat: ChatJob | None, count: int, seed: int) -> list[str]:
    if chat is None or chat.reasoning_effort == "none" or chat.template_kwargs.get("enable_thinking") is False:
        return []
    return [WORDS[(seed + 7 * n) % len(WORDS)] for n in range(count)]


def _called(chat: ChatJob, wanted: str) -> list[Mapping[str, Any]]:
    """Functions to call, in order."""
    functions = {f.get("name"): f for tool in chat.tools if isinstance(f := tool.get("function"), Mapping)}
    choice = chat.tool_choice or "auto"
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        if name not in functions:
            msg = f"tool_choice: it names no tool of this request: {name!r}"
            raise RefusedError(msg)
        return [functions[name]]
    if not functions or choice == "none":
        return []
    # What a tool said is answered, or a script would have it called for ever.
    answered = bool(chat.messages) and chat.messages[-1].get("role") == "tool"
    names: Sequence[str] = [name for name in wanted.split(",") if name in functions]
    if choice == "required":
        names = names or [str(next(iter(functions)))]
    elif answered:
        return []
    called = [functions[name] for name in names]
    return called[:1] if chat.parallel_tool_calls is False else called
