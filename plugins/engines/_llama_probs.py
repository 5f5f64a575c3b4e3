"""How likely tokens were, as llama.cpp tells it, in the form that entries carry."""

from __future__ import annotations

import msgspec

from .. import TokenLogprob, pack_logprobs


class Probability(msgspec.Struct, gc=False):
    """One token, or one of those that could have been."""

    token: str = ""
    bytes: list[int] | None = None
    logprob: float | None = None
    top_logprobs: list[Probability] = []


def logprob_of(text: str, probabilities: list[Probability], top: int) -> str:
    """What an entry says of its last token; "" where llama.cpp says nothing finite. Of tokens whose text was held back
    it never tells.

    Args:
        text: the entry's text.
        probabilities: of the frame.
        top: how many of the likeliest were asked for.
    """
    if not probabilities:
        return ""
    last = probabilities[-1]
    value = _decimal(last.logprob)
    if not value:
        return ""
    raw = _raw(last)
    if top == 0 and raw == text.encode("utf-8", "replace"):
        return value
    others = [TokenLogprob(o.token, v, _raw(o)) for o in last.top_logprobs[:top] if (v := _decimal(o.logprob))]
    return pack_logprobs([TokenLogprob(last.token, value, raw, others)])


def _decimal(value: float | None) -> str:
    if value is None or value - value != 0:
        return ""
    return repr(min(value, 0.0))


def _raw(probability: Probability) -> bytes:
    try:
        return bytes(probability.bytes) if probability.bytes is not None else probability.token.encode()
    except ValueError:
        return probability.token.encode("utf-8", "replace")
