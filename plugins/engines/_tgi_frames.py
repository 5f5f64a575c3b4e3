"""What TGI says on `/generate_stream`, as start, entries, and end or failure; pure, so that it can be fuzzed.

A frame is a token, always; its text is empty while a character is incomplete. The text of special tokens (the end of
the sequence) is not said. The last frame has ``details``; without it the stream was cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from .. import AttemptEnd, AttemptFailure, AttemptStart, EntryBatch, TokenLogprob, pack_logprobs
from ._said import Said
from ._sse import SseError, SseSplitter

#: a count or an id; larger ones must not reach the journal
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
#: how TGI words that a prompt, or a prompt and what shall follow it, is too long
_CONTEXT: Final = re.compile(r"must have less than \d+ tokens|tokens \+ `max_new_tokens` must be")
_KINDS: Final = {
    "overloaded": ("refused", True),
    "healthcheck": ("refused", True),
    "generation": ("server-error", True),
    "incomplete_generation": ("server-error", True),
    "incomplete_generation_stream": ("server-error", True),
    "validation": ("invalid", False),
    "template_error": ("invalid", False),
    "tool_error": ("invalid", False),
}


class _Token(msgspec.Struct, gc=False):
    id: Count
    text: str
    logprob: float | None = None
    special: bool = False


class _Details(msgspec.Struct, gc=False):
    finish_reason: str
    input_length: Count = 0


class _Frame(msgspec.Struct, gc=False):
    """Any frame; an error has no token."""

    token: _Token | None = None
    top_tokens: list[_Token] | None = None
    details: _Details | None = None
    error: str | None = None
    error_type: str = ""


class _ErrorBody(msgspec.Struct, gc=False):
    error: str = ""
    error_type: str = ""


_decode_frame = msgspec.json.Decoder(_Frame).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode


class TokenStream:
    """One stream, from its first byte to its end.

    Args:
        stop: strings before which the text ends; TGI says them.
        logprobs: whether the probability of each token was asked for.
        top: so many of the likeliest tokens were asked for beside each.
    """

    def __init__(self, *, stop: Sequence[str] = (), logprobs: bool = False, top: int = 0) -> None:
        self._splitter = SseSplitter()
        self._said = Said(stop)
        self._logprobs = logprobs
        self._top = top
        self.start: AttemptStart | None = None
        self.end: AttemptEnd | None = None
        self.failure: AttemptFailure | None = None
        #: it ended at a stop string that the server was not told
        self.early = False

    def feed(self, data: bytes) -> EntryBatch | None:
        """Take the next bytes of the body; ``None`` when they completed no entry."""
        if self._over():
            return None
        try:
            for payload in self._splitter.feed(data):
                self._frame(payload)
                if self._over():
                    break
        except SseError as error:
            self._fail("garbage", str(error))
        return self._said.take()

    def finish(self) -> EntryBatch | None:
        """The body is over: without the last frame the stream was cut, however properly HTTP ended it."""
        if not self._over():
            self._fail("cut", "the stream ended without its last frame")
        return None

    def refusal(self, status: int, body: bytes) -> AttemptFailure:
        """What an answer means that is no stream."""
        return failure_of_body(status, body)

    # --- inside

    def _over(self) -> bool:
        return self.end is not None or self.failure is not None

    def _frame(self, payload: bytes) -> None:
        try:
            frame = _decode_frame(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._fail("garbage", f"a frame cannot be read: {error}")
            return
        if frame.error is not None:
            self.failure = failure_of(0, frame.error, frame.error_type)
            return
        token = frame.token
        if token is None:
            self._fail("garbage", f"a frame without a token: {payload[:200].decode('utf-8', 'replace')}")
            return
        if self.start is None:
            self.start = AttemptStart()
        logprob = self._packed(token, frame.top_tokens or []) if self._logprobs else ""
        self._said.add("" if token.special else token.text, ids=(token.id,), logprob=logprob)
        details = frame.details
        if details is not None:
            self._ended(details)
        elif self._said.stop.met:
            self.early = True
            self._end("stop", 0)

    def _ended(self, details: _Details) -> None:
        self._said.close()
        length = details.finish_reason == "length" and not self._said.stop.met
        self._end("length" if length else "stop", details.input_length)

    def _end(self, reason: Literal["stop", "length"], prompt_tokens: int) -> None:
        self.end = AttemptEnd(finish_reason=reason, prompt_tokens=prompt_tokens, tokens=self._said.tokens)

    def _fail(self, kind: str, message: str) -> None:
        self.failure = AttemptFailure(kind=kind, message=message)

    def _packed(self, token: _Token, others: list[_Token]) -> str:
        value = _decimal(token.logprob)
        if not value:
            return ""
        top = [
            TokenLogprob(other.text, _decimal(other.logprob), other.text.encode("utf-8", "replace"))
            for other in others[: self._top]
            if _decimal(other.logprob)
        ]
        return pack_logprobs([TokenLogprob(token.text, value, token.text.encode("utf-8", "replace"), top)])


def failure_of(status: int, message: str, error_type: str) -> AttemptFailure:
    """What an error of TGI means for the attempt, whether it came as a status or inside a stream (status 0)."""
    message = message or f"HTTP {status}"
    if _CONTEXT.search(message):
        return AttemptFailure(kind="context", message=message, retriable=False)
    if error_type in _KINDS:
        kind, retriable = _KINDS[error_type]
        return AttemptFailure(kind=kind, message=message, retriable=retriable)
    if status in {429, 503}:
        return AttemptFailure(kind="refused", message=message)
    if 400 <= status < 500 and status != 424:
        return AttemptFailure(kind="invalid", message=message, retriable=False)
    return AttemptFailure(kind="server-error", message=message)


def failure_of_body(status: int, body: bytes) -> AttemptFailure:
    """The same for the body of an answer that is no stream."""
    try:
        told = _decode_error(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        text = body[:200].decode("utf-8", "replace").strip()
        return failure_of(status, f"HTTP {status}{f': {text}' if text else ''}", "")
    return failure_of(status, told.error, told.error_type)


def _decimal(logprob: float | None) -> str:
    """As a decimal string; "" where it is not said or not finite. Rounding may leave it a little above nought."""
    if logprob is None or logprob - logprob != 0:
        return ""
    return repr(min(logprob, 0.0))
