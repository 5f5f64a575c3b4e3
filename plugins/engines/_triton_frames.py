"""What Triton answers while it streams, as entries, end or failure; pure, so that it can be fuzzed.

Triton's own frames tell neither why a text ended nor how many tokens it has. A response counts as one token unless the
model gives ``num_output_tokens``; a text that has as many tokens as were asked for ended for its ``length`` unless the
model gives ``finish_reason``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from .. import AttemptEnd, AttemptFailure, AttemptStart, EntryBatch
from ._said import Said
from ._sse import SseError, SseSplitter

#: more tokens in one response than any model says at once: the counter is broken
MAX_TOKENS_PER_RESPONSE: Final = 65_536
#: how models word that a prompt is too long
_CONTEXT: Final = re.compile(
    r"prompt length|input length|input sequence length|exceeds? (the )?max|max_seq_len|maximum (context|model|input) length"
    r"|longer than the maximum",
    re.IGNORECASE,
)
#: how Triton words that a model is not there at the moment
_ABSENT: Final = re.compile(r"not ready|no available versions|unavailable|is being (un)?loaded|server is stopping")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Answer:
    """The text of one request, whichever way its responses come.

    Args:
        max_tokens: as many were asked for.
        stop: strings before which the text ends; models say them.
    """

    def __init__(self, *, max_tokens: int, stop: Sequence[str] = ()) -> None:
        self._said = Said(stop)
        self._max_tokens = max_tokens
        self._reason = ""
        self._prompt_tokens = 0
        self.start: AttemptStart | None = None
        self.end: AttemptEnd | None = None
        self.failure: AttemptFailure | None = None
        #: it ended at a stop string, and the model may have more to say
        self.early = False

    def over(self) -> bool:
        """Whether it has ended or failed."""
        return self.end is not None or self.failure is not None

    def response(self, outputs: Mapping[str, Any]) -> None:
        """One response of the model: its outputs by name."""
        text = outputs.get("text_output")
        tokens = outputs.get("num_output_tokens", 1)
        if not isinstance(text, str):
            self.fail("garbage", f"a response without text_output: {str(outputs)[:200]}")
            return
        if type(tokens) is not int or not 0 <= tokens <= MAX_TOKENS_PER_RESPONSE:
            self.fail("garbage", f"num_output_tokens is {tokens!r}")
            return
        reason, prompt = outputs.get("finish_reason"), outputs.get("num_input_tokens")
        if type(prompt) is int and 0 <= prompt < 2**31:
            self._prompt_tokens = prompt
        if reason in ("stop", "length"):
            self._reason = str(reason)
        if self.start is None:
            self.start = AttemptStart(prompt_tokens=self._prompt_tokens)
        self._said.add(text, tokens=tokens)
        if self._said.stop.met:
            self._end("stop")
            self.early = True

    def complete(self) -> None:
        """The model has no more to say."""
        if self.over():
            return
        if self.start is None:
            self.start = AttemptStart()
        self._said.close()
        full = 0 < self._max_tokens <= self._said.tokens
        self._end(self._reason or ("length" if full else "stop"))

    def fail(self, kind: str, message: str, *, retriable: bool = True) -> None:
        """There will be no proper end."""
        if not self.over():
            self.failure = AttemptFailure(kind=kind, message=message, retriable=retriable)

    def take(self) -> EntryBatch | None:
        """Entries since the last time."""
        return self._said.take()

    def _end(self, reason: str) -> None:
        self.end = AttemptEnd(
            finish_reason="length" if reason == "length" else "stop",
            prompt_tokens=self._prompt_tokens,
            tokens=self._said.tokens,
        )


class GenerateStream(Answer):
    """The answer of `/generate_stream`, from its first byte to its end.

    It has no last frame: the text is over when HTTP says that the body is.
    """

    def __init__(self, *, max_tokens: int, stop: Sequence[str] = ()) -> None:
        super().__init__(max_tokens=max_tokens, stop=stop)
        self._splitter = SseSplitter()

    def feed(self, data: bytes) -> EntryBatch | None:
        """Take the next bytes of the body; ``None`` when they completed no entry."""
        if self.over():
            return None
        try:
            for payload in self._splitter.feed(data):
                self._frame(payload)
                if self.over():
                    break
        except SseError as error:
            self.fail("garbage", str(error))
        return self.take()

    def finish(self) -> EntryBatch | None:
        """The body is over, as it should be."""
        if self._splitter.pending:
            self.fail("cut", "the stream ended within a frame")
        self.complete()
        return self.take()

    def refusal(self, status: int, body: bytes) -> AttemptFailure:
        """What an answer means that is no stream; a model's error may come as one, of a single event."""
        return failure_of_body(status, body)

    def _frame(self, payload: bytes) -> None:
        try:
            outputs = _decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.fail("garbage", f"a frame cannot be read: {error}")
            return
        if "error" in outputs:
            failure = failure_of(0, str(outputs["error"]))
            self.fail(failure.kind, failure.message, retriable=failure.retriable)
        else:
            self.response(outputs)


def failure_of(status: int, message: str) -> AttemptFailure:
    """What an error of Triton means for an attempt.

    :param status: HTTP's; 0 for an error inside a stream, which may be a model's of any kind.
    """
    message = message or f"HTTP {status}"
    if _CONTEXT.search(message):
        return AttemptFailure(kind="context", message=message, retriable=False)
    if status in {429, 503} or _ABSENT.search(message):
        return AttemptFailure(kind="refused", message=message)
    if 400 <= status < 500 or status == 501:
        return AttemptFailure(kind="invalid", message=message, retriable=False)
    return AttemptFailure(kind="server-error", message=message)


def failure_of_body(status: int, body: bytes) -> AttemptFailure:
    """The same for the body of an answer with a bad status."""
    text = body.removeprefix(b"data: ").strip()
    if text != body.strip():
        status = 0  # the model's own error, as an event: its status says 400 whatever it was
    try:
        return failure_of(status, str(_decode(text).get("error", "")))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        plain = text[:200].decode("utf-8", "replace")
        return failure_of(status, f"HTTP {status}{f': {plain}' if plain else ''}")
