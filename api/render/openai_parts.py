"""What OpenAI's chat and text completions have in common: usage, reasons, log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ...core.events.task import TaskEnded
from ...core.logprobs import TokenLogprob
from ...core.services.tasks import Usage

DONE: Final = b"data: [DONE]\n\n"
_REASONS: Final = frozenset({"stop", "length", "tool_calls", "cancelled"})
#: what stands for "impossible", which JSON has no number for
_NEVER: Final = -9999.0


def finish_reason(reason: str) -> str:
    """OpenAI's word for how a task ended; a cancelled one, for which it has none, says so."""
    return reason if reason in _REASONS else "stop"


def reason_of(event: TaskEnded, choice: int) -> str:
    """Why one answer of a task ended."""
    reasons = event.finish_reasons
    return finish_reason(reasons[choice] if choice < len(reasons) else event.finish_reason)


def usage_of(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int, reasoning_tokens: int = 0
) -> dict[str, Any]:
    """OpenAI's ``usage`` object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def usage_of_tasks(usages: Iterable[Usage]) -> dict[str, Any]:
    """The ``usage`` of tasks together."""
    all_of_them = list(usages)
    return usage_of(
        sum(usage.prompt_tokens for usage in all_of_them),
        sum(usage.completion_tokens for usage in all_of_them),
        sum(usage.cached_tokens for usage in all_of_them),
        sum(usage.reasoning_tokens for usage in all_of_them),
    )


def number_of(logprob: str) -> float:
    """A log-probability as JSON can hold it."""
    value = float(logprob)
    return value if math.isfinite(value) else _NEVER


def _bytes_of(token: TokenLogprob) -> list[int] | None:
    """Its bytes; ``None`` where nobody knows them."""
    if token.raw:
        return list(token.raw)
    return None if "\N{REPLACEMENT CHARACTER}" in token.token else list(token.token.encode())


def _one(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": number_of(token.logprob), "bytes": _bytes_of(token)}


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """A chat's ``logprobs`` object."""
    content = [{**_one(token), "top_logprobs": [_one(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The ``logprobs`` object of text completions.

    :param offset: characters of the text before the first token.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [number_of(token.logprob) for token in tokens],
        "top_logprobs": [{other.token: number_of(other.logprob) for other in token.top} for token in tokens],
        "text_offset": offsets,
    }
