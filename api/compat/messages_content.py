"""Anthropic's messages as chats: blocks of text, pictures, thoughts, tool calls and their results (API-2)."""

from __future__ import annotations

import json
from typing import Any, Final

from ...core.errors import InvalidParamsError
from ...core.types import ChatMessage
from .own_parameters import word
from .sampling_request import refused

#: keys of blocks that have an effect, by type
_KEYS: Final = {
    "text": frozenset({"type", "text"}),
    "image": frozenset({"type", "source"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "tool_use": frozenset({"type", "id", "name", "input"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error"}),
}
_TAKEN_BY: Final = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
_TEXT_ALONE: Final = "Send its text; what engines here read beside text is pictures, where they can."


class Content:
    """Turns blocks into messages, and remembers what of them had no effect."""

    def __init__(self) -> None:
        #: names of what had no effect, such as ``cache_control``
        self.ignored: list[str] = []

    def system(self, given: str | list[dict[str, Any]] | None) -> str:
        """The text of the system prompt. :raises InvalidParamsError: it is not text alone."""
        if given is None or isinstance(given, str):
            return given or ""
        return "\n".join(self._text(block, f"system.{at}", "system") for at, block in enumerate(given))

    def messages(self, given: list[dict[str, Any]]) -> list[ChatMessage]:
        """The messages of a chat. :raises InvalidParamsError: one is none, or holds what is not served, naming it."""
        out: list[ChatMessage] = []
        for at, message in enumerate(given):
            where = f"messages.{at}"
            role = word(message.get("role"))
            if role not in _TAKEN_BY:
                msg = f"{where}.role: got {role!r}, expected user or assistant"
                raise InvalidParamsError(msg, field=f"{where}.role", got=role, expected="user or assistant")
            self._note(message, frozenset({"role", "content"}), "messages")
            content = message.get("content")
            if isinstance(content, str):
                out.append(ChatMessage(role=role, content=content))  # type: ignore[arg-type]
            elif not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
                msg = f"{where}.content: expected text or a list of blocks"
                raise InvalidParamsError(msg, field=f"{where}.content", got=type(content).__name__, expected="text")
            elif role == "assistant":
                out.append(self._assistant(content, f"{where}.content"))
            elif role == "user":
                out += self._user(content, f"{where}.content")
            else:
                texts = [self._text(block, f"{where}.content.{n}", role) for n, block in enumerate(content)]
                out.append(ChatMessage(role="system", content="\n".join(texts)))
        return out

    def _user(self, blocks: list[dict[str, Any]], where: str) -> list[ChatMessage]:
        """Results of tools as messages of their own, before what the user says beside them."""
        out: list[ChatMessage] = []
        parts: list[dict[str, Any]] = []
        for at, block in enumerate(blocks):
            if self._kind(block, f"{where}.{at}", "user") == "tool_result":
                out.append(self._result(block, f"{where}.{at}"))
            else:
                parts.append(self._part(block, f"{where}.{at}"))
        if parts or not out:
            out.append(ChatMessage(role="user", content=_joined(parts)))
        return out

    def _result(self, block: dict[str, Any], where: str) -> ChatMessage:
        call_id = block.get("tool_use_id")
        if not isinstance(call_id, str) or not call_id:
            msg = f"{where}.tool_use_id is missing"
            raise InvalidParamsError(msg, field=f"{where}.tool_use_id", got=None, expected="the id of a tool_use block")
        content = block.get("content")
        said: str | list[dict[str, Any]]
        if content is None or isinstance(content, str):
            said = content or ""
        elif isinstance(content, list) and all(isinstance(part, dict) for part in content):
            parts = []
            for at, part in enumerate(content):
                if self._kind(part, f"{where}.content.{at}", "user") == "tool_result":
                    raise _unserved(f"{where}.content.{at}", "tool_result", "inside of a tool's result")
                parts.append(self._part(part, f"{where}.content.{at}"))
            said = _joined(parts)
        else:
            msg = f"{where}.content: expected text or a list of blocks"
            raise InvalidParamsError(msg, field=f"{where}.content", got=type(content).__name__, expected="text")
        if block.get("is_error"):  # chats have no other word for it
            if not isinstance(said, str):
                said = [{"type": "text", "text": "Error:"}, *said]
            elif not said.lower().startswith("error"):
                said = f"Error: {said}"
        return ChatMessage(role="tool", content=said, tool_call_id=call_id)

    def _assistant(self, blocks: list[dict[str, Any]], where: str) -> ChatMessage:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for at, block in enumerate(blocks):
            kind = self._kind(block, f"{where}.{at}", "assistant")
            if kind == "text":
                texts.append(_str(block, "text", f"{where}.{at}"))
            elif kind == "thinking":
                thoughts.append(_str(block, "thinking", f"{where}.{at}"))
            elif kind == "redacted_thinking":
                self.ignored.append("messages.redacted_thinking")
            else:
                given = block.get("input")
                if not isinstance(given, dict):
                    msg = f"{where}.{at}.input: expected an object"
                    raise InvalidParamsError(msg, field=f"{where}.{at}.input", got=type(given).__name__)
                function = {"name": _str(block, "name", f"{where}.{at}"), "arguments": _compact(given)}
                calls.append({"id": _str(block, "id", f"{where}.{at}"), "type": "function", "function": function})
        return ChatMessage(
            role="assistant",
            content="".join(texts) if texts or not calls else None,
            tool_calls=calls or None,
            reasoning_content="\n".join(thoughts) or None,
        )

    def _text(self, block: dict[str, Any], where: str, role: str) -> str:
        self._kind(block, where, role)
        return _str(block, "text", where)

    def _part(self, block: dict[str, Any], where: str) -> dict[str, Any]:
        if block.get("type") == "text":
            return {"type": "text", "text": _str(block, "text", where)}
        source = block.get("source")
        kind = word(source.get("type") if isinstance(source, dict) else None)
        url = None
        if isinstance(source, dict) and kind == "base64":
            url = (
                f"data:{_str(source, 'media_type', f'{where}.source')};base64,{_str(source, 'data', f'{where}.source')}"
            )
        elif isinstance(source, dict) and kind == "url":
            url = _str(source, "url", f"{where}.source")
        if url is None or not url.startswith("data:"):
            raise refused(
                f"{where}.source",
                kind,
                f"got a picture from {kind!r}, and engines fetch nothing",
                'Send its bytes: {"type": "base64", "media_type": "image/png", "data": "..."}.',
            )
        return {"type": "image_url", "image_url": {"url": url}}

    def _kind(self, block: dict[str, Any], where: str, role: str) -> str:
        """The type of a block. :raises InvalidParamsError: it is not served in a message of this role."""
        kind = word(block.get("type"))
        if kind not in _TAKEN_BY[role]:
            raise _unserved(where, kind, f"in what the {role} says")
        known = _KEYS.get(kind)
        if known is not None:
            self._note(block, known, "system" if where.startswith("system") else "messages")
        return kind

    def _note(self, block: dict[str, Any], known: frozenset[str], prefix: str) -> None:
        for key, value in block.items():
            if key not in known and value not in (None, "", [], {}):
                self.ignored.append("cache_control" if key == "cache_control" else f"{prefix}.{key}")


def with_system(system: str, messages: list[ChatMessage]) -> list[ChatMessage]:
    """A chat under a system prompt; system messages at its beginning become part of it, as templates take one alone."""
    texts = [system] if system else []
    at = 0
    while at < len(messages) and messages[at].role in ("system", "developer"):
        content = messages[at].content
        if not isinstance(content, str):
            break
        texts.append(content)
        at += 1
    if not texts:
        return messages
    return [ChatMessage(role="system", content="\n\n".join(texts)), *messages[at:]]


def _joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Text alone as one text, which every template takes; else the parts."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _str(block: dict[str, Any], key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        msg = f"{where}.{key}: expected a text"
        raise InvalidParamsError(msg, field=f"{where}.{key}", got=type(value).__name__, expected="a text")
    return value


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _unserved(where: str, kind: str, place: str) -> InvalidParamsError:
    return refused(f"{where}.type", kind, f"got a block of type {kind!r}, which is not served {place}", _TEXT_ALONE)
