"""Renders a chat with the engine's own template, here, as Hugging Face's tokenizers do.

Asking the engine for every chat would cost a round trip each; so the local rendering is compared once with the
engine's, and used only where both agree.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: chats that both sides render before the local rendering is trusted
PROBES: Final[tuple[tuple[dict[str, str], ...], ...]] = (
    ({"role": "user", "content": " Räin & <b>?\n "},),
    (
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ),
    (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": " two\n"},
        {"role": "user", "content": "three"},
    ),
)
_ROLES: Final = frozenset({"system", "user", "assistant"})


class TemplateError(ValueError):
    """The template cannot be compiled, or refuses the chat."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja2 text, as the engine reports it.
        bos_token: text of the token that begins a sequence.
        eos_token: text of the token that ends one.
        strip_bos: leave out the beginning token, since the engine adds it when it tokenizes.

    Raises:
        TemplateError: the source does not compile.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "", strip_bos: bool = False) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        self._bos = bos_token
        self._eos = eos_token
        self.strip_bos = strip_bos
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            msg = f"the chat template does not compile: {error}"
            raise TemplateError(msg) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for a chat, ready for the assistant's answer.

        Args:
            messages: as OpenAI writes them.
            tools: that the model is shown.
            variables: more of what the template may ask for.

        Raises:
            TemplateError: the template refuses these messages, or fails on them.
        """
        try:
            text = self._template.render(
                {
                    **(variables or {}),
                    "messages": [dict(m) for m in messages],
                    "tools": list(tools) or None,
                    "add_generation_prompt": True,
                    "bos_token": self._bos,
                    "eos_token": self._eos,
                }
            )
        except Exception as error:
            # A template is a program of the model's author; whatever it raises, it refused.
            msg = f"the chat template refused: {error}"
            raise TemplateError(msg) from error
        if self.strip_bos and self._bos and text.startswith(self._bos):
            return text[len(self._bos) :]
        return text


def plain(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a chat is of the kind that the probes stand for: text from system, user and assistant, who is to speak
    next. What an assistant has begun to say engines go on with, which no template tells."""
    return (not messages or messages[-1].get("role") != "assistant") and all(
        m.keys() == {"role", "content"} and m["role"] in _ROLES and isinstance(m["content"], str) for m in messages
    )


def agreeing(
    source: str, bos_token: str, eos_token: str, rendered: Sequence[tuple[Sequence[Mapping[str, Any]], str]]
) -> ChatTemplate | None:
    """The template, set up so that it renders each chat as the engine did; ``None`` when it cannot."""
    if not rendered:
        return None
    for strip in (False, True):
        try:
            template = ChatTemplate(source, bos_token=bos_token, eos_token=eos_token, strip_bos=strip)
            if all(template.render(messages) == text for messages, text in rendered):
                return template
        except TemplateError:
            continue
    return None


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return time.strftime(pattern)


def _to_json(value: Any, indent: int | None = None, *, ensure_ascii: bool = False) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)
