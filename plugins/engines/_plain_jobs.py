"""What engines that turn a text into a text can do of a job, and what they refuse by its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from .. import ChatJob, GenerateJob
from ._stream_attempt import RefusedError

_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})


def require_able(job: GenerateJob, able: Collection[str], engine: str) -> None:
    """See that a job asks for nothing that the engine cannot do.

    :param able: workloads and features that it has.
    :raises RefusedError: it asks for something else, which the message names.
    """
    chat = job.chat or ChatJob(messages=())
    asked = {
        job.workload: True,
        "continue": bool(job.prefix),
        "grammar": bool(job.grammar),
        "json_schema": job.json_schema is not None,
        "logprobs": bool(job.logprobs or job.top_logprobs),
        "prompt_ids": bool(job.prompt_ids),
        "logit_bias": bool(job.logit_bias),
        "tools": bool(chat.tools) or any(m.get("tool_calls") or m.get("role") == "tool" for m in chat.messages),
        "images": any(_has_other_parts(m) for m in chat.messages),
        "reasoning": chat.reasoning_effort not in ("", "none"),
        "chat_template_kwargs": bool(chat.template_kwargs),
        "parse_special": not job.parse_special,
    }
    for name, wanted in asked.items():
        if wanted and name not in able:
            raise RefusedError("invalid", f"{name}: this {engine} does not do that")


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with their text in one piece, as templates of models want it."""
    return [
        {**m, "content": "".join(part.get("text", "") for part in m["content"])}
        if isinstance(m.get("content"), list)
        else m
        for m in messages
    ]


def _has_other_parts(message: Mapping[str, Any]) -> bool:
    parts = message.get("content")
    return isinstance(parts, list) and any(part.get("type") not in _TEXT_PARTS for part in parts)
