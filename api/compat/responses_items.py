"""Items of OpenAI's responses as messages of a chat (API-2)."""

from __future__ import annotations

from typing import Any, Final

from ...core.errors import InvalidParamsError
from ...core.types import ChatMessage
from .own_parameters import word
from .sampling_request import refused

_Object = dict[str, Any]
_ROLES: Final = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})
#: keys of items that have an effect, or are what this server wrote itself
_KEYS: Final = {
    "message": frozenset({"type", "role", "content", "id", "status", "phase"}),
    "function_call": frozenset({"type", "call_id", "name", "arguments", "id", "status"}),
    "function_call_output": frozenset({"type", "call_id", "output", "id", "status"}),
    "reasoning": frozenset({"type", "summary", "content", "id", "status"}),
}


def items_of(given: str | list[_Object]) -> list[_Object]:
    """The input as items; text is a message of the user's."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return [item if "type" in item else {"type": "message", **item} for item in given]


class Turn:
    """Collects what an assistant says in one go: thoughts, text and calls are one message of a chat."""

    def __init__(self) -> None:
        self._thoughts: list[str] = []
        self._text: str | None = None
        self._calls: list[_Object] = []

    def think(self, text: str) -> None:
        """It thought."""
        if text:
            self._thoughts.append(text)

    def says(self, text: str) -> bool:
        """It said something; ``False``: it had said or called something before, so this is another message."""
        if self._text is not None or self._calls:
            return False
        self._text = text
        return True

    def call(self, call: _Object) -> None:
        """It called a function."""
        self._calls.append(call)

    def message(self) -> list[ChatMessage]:
        """The message, if there is one; the next turn begins."""
        if self._text is None and not self._calls and not self._thoughts:
            return []
        said = ChatMessage(
            role="assistant",
            content=self._text if self._text is not None or self._calls else "",
            tool_calls=self._calls or None,
            reasoning_content="\n".join(self._thoughts) or None,
        )
        self.__init__()  # type: ignore[misc]
        return [said]


def messages_of(items: list[_Object], ignored: list[str], where: str = "input") -> list[ChatMessage]:
    """The messages that items are.

    :param ignored: gets the names of what had no effect.
    :raises InvalidParamsError: an item is none, or not served, naming it.
    """
    out: list[ChatMessage] = []
    turn = Turn()
    for at, item in enumerate(items):
        place = f"{where}.{at}"
        kind = word(item.get("type"))
        if kind not in _KEYS:
            remedy = "Send messages, function_call, function_call_output and reasoning items."
            raise refused(f"{place}.type", kind, f"got an item of type {kind!r}, which is not served", remedy)
        for key, value in item.items():
            if key not in _KEYS[kind] and value not in (None, "", [], {}):
                ignored.append(f"{where}.{key}")
        if kind == "reasoning":
            turn.think(_thoughts(item, place))
        elif kind == "function_call":
            function = {"name": _str(item, "name", place), "arguments": _str(item, "arguments", place)}
            turn.call({"id": _str(item, "call_id", place), "type": "function", "function": function})
        elif kind == "function_call_output":
            out += turn.message()
            said = _content(item.get("output"), f"{place}.output")
            out.append(ChatMessage(role="tool", content=said, tool_call_id=_str(item, "call_id", place)))
        else:
            role = word(item.get("role"))
            if role not in _ROLES:
                msg = f"{place}.role: got {role!r}, expected one of {', '.join(_ROLES)}"
                raise InvalidParamsError(msg, field=f"{place}.role", got=role)
            content = _content(item.get("content"), f"{place}.content")
            if role == "assistant":
                text = content if isinstance(content, str) else _no_pictures(f"{place}.content")
                if not turn.says(text):
                    out += turn.message()
                    turn.says(text)
            else:
                out += turn.message()
                out.append(ChatMessage(role=_ROLES[role], content=content))  # type: ignore[arg-type]
    return out + turn.message()


def _content(given: Any, where: str) -> str | list[_Object]:
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not all(isinstance(part, dict) for part in given):
        msg = f"{where}: expected text or a list of parts"
        raise InvalidParamsError(msg, field=where, got=type(given).__name__, expected="text")
    parts: list[_Object] = [_part(part, f"{where}.{at}") for at, part in enumerate(given)]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(part: _Object, where: str) -> _Object:
    kind = word(part.get("type"))
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": _str(part, "text", where)}
    if kind == "refusal":
        return {"type": "text", "text": _str(part, "refusal", where)}
    if kind == "input_image":
        url = part.get("image_url")
        if not isinstance(url, str) or not url.startswith("data:"):
            shown = url[:64] if isinstance(url, str) else None
            remedy = 'Send its bytes: {"type": "input_image", "image_url": "data:image/png;base64,..."}.'
            raise refused(f"{where}.image_url", shown, "engines fetch no pictures", remedy)
        return {"type": "image_url", "image_url": {"url": url}}
    remedy = "Send its text; what engines here read beside text is pictures, where they can."
    raise refused(f"{where}.type", kind, f"got a part of type {kind!r}, which is not served", remedy)


def _thoughts(item: _Object, where: str) -> str:
    """What is known of thoughts: all of them, else their summary."""
    for key in ("content", "summary"):
        if item.get(key):
            said = _content(item[key], f"{where}.{key}")
            return said if isinstance(said, str) else _no_pictures(f"{where}.{key}")
    return ""


def _no_pictures(where: str) -> str:
    raise refused(where, "a picture", "an assistant says text", "Send text there.")


def _str(item: _Object, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        msg = f"{where}.{key}: expected a text"
        raise InvalidParamsError(msg, field=f"{where}.{key}", got=type(value).__name__, expected="a text")
    return value
