"""Log-probabilities as entries carry them: one decimal where that is all, else packed with tokens and alternatives."""

from __future__ import annotations

import msgspec

from .errors import CorruptJournalError


class TokenLogprob(msgspec.Struct, frozen=True, gc=False, array_like=True, omit_defaults=True):
    """One token, or one that could have been, and how likely it was."""

    #: its bytes as text, with replacement characters where they are no whole UTF-8
    token: str
    #: natural logarithm, shortest-repr decimal
    logprob: str
    #: its bytes, where the engine tells them
    raw: bytes = b""
    #: the likeliest tokens at its place
    top: list[TokenLogprob] = []


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[TokenLogprob]).decode


def pack_logprobs(tokens: list[TokenLogprob]) -> str:
    """The text that stands in an entry for the log-probabilities of its tokens."""
    return _encode(tokens).decode() if tokens else ""


def unpack_logprobs(text: str, logprob: str) -> list[TokenLogprob]:
    """Log-probabilities of an entry's tokens.

    :param text: the entry's text, which is its one token's where no more is said.
    :param logprob: the entry's ``logprob``.
    :raises CorruptJournalError: it is none.
    """
    if not logprob:
        return []
    if not logprob.startswith("["):
        return [TokenLogprob(text, logprob, text.encode())]
    try:
        return _decode(logprob)
    except (msgspec.MsgspecError, ValueError) as error:
        msg = f"log-probabilities cannot be decoded: {error}"
        raise CorruptJournalError(msg) from error
