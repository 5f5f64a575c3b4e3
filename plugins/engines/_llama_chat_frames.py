"""What llama.cpp says on `/v1/chat/completions`, as start, entries on their channels, and end or failure; pure.

Deltas are not tokens: a mark that begins a call, or a partial character, is held back until what it means is known. What
counts is ``timings.predicted_n``, and at the end ``usage``. Ids of tokens, and ids that llama.cpp makes up for calls at
random, are not told on.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from .. import CALL, REASONING, TEXT, TOOL, AttemptEnd, AttemptFailure, AttemptStart, Entry, EntryBatch, batch_of
from ._llama_frames import MAX_TOKENS_PER_FRAME, Int32, Progress, Timings, WireError, failure_of, micros
from ._llama_probs import Probability, logprob_of
from ._sse import SseError, SseSplitter

_DONE: Final = b"[DONE]"
_REASONS: Final[dict[str, Literal["stop", "length", "tool_calls"]]] = {"length": "length", "tool_calls": "tool_calls"}


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, gc=False):
    index: Int32 = 0
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[Probability] | None = None


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    delta: _Delta = msgspec.field(default_factory=_Delta)
    logprobs: _Logprobs | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: Int32 = 0


class _Usage(msgspec.Struct, gc=False):
    completion_tokens: Int32 = 0
    prompt_tokens: Int32 = 0
    prompt_tokens_details: _Details | None = None


class _Native(msgspec.Struct, gc=False):
    stop_type: str = ""
    stopping_word: str = ""


class _Frame(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    timings: Timings | None = None
    prompt_progress: Progress | None = None
    usage: _Usage | None = None
    error: WireError | None = None
    native: _Native | None = msgspec.field(default=None, name="__verbose")


_decode = msgspec.json.Decoder(_Frame).decode


class ChatStream:
    """One stream, from its first byte to its end; used as :class:`~._llama_frames.CompletionStream` is.

    Args:
        logprobs: whether the probability of each token was asked for.
        top: and so many of the likeliest beside it.
    """

    __slots__ = (
        "_channel",
        "_finish",
        "_logprobs",
        "_named",
        "_prompt_tokens",
        "_splitter",
        "_stop_word",
        "_timings",
        "_top",
        "counted",
        "end",
        "failure",
        "start",
    )

    def __init__(self, *, logprobs: bool = False, top: int = 0) -> None:
        self._splitter = SseSplitter()
        self._logprobs = logprobs
        self._top = top
        self._channel = TEXT
        self._named: set[int] = set()
        self._finish = ""
        self._stop_word = ""
        self._timings = Timings()
        self._prompt_tokens = 0
        #: tokens by the engine's count so far
        self.counted = 0
        self.start: AttemptStart | None = None
        self.end: AttemptEnd | None = None
        self.failure: AttemptFailure | None = None

    def feed(self, data: bytes) -> EntryBatch | None:
        """Take the next bytes of the body; ``None`` when they completed no entry."""
        entries: list[Entry] = []
        try:
            for payload in () if self._over() else self._splitter.feed(data):
                if payload == _DONE:
                    self._done(None, entries)
                else:
                    self._frame(payload, entries)
                if self._over():
                    break
        except SseError as error:
            self.failure = AttemptFailure(kind="garbage", message=str(error))
        return batch_of(entries) if entries else None

    def finish(self) -> None:
        """The body is over: without its last frames the stream was cut, however properly HTTP ended it."""
        if not self._over():
            self.failure = AttemptFailure(kind="cut", message="the stream ended without its last frame")

    def _over(self) -> bool:
        return self.end is not None or self.failure is not None

    def _frame(self, payload: bytes, entries: list[Entry]) -> None:
        try:
            frame = _decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.failure = AttemptFailure(kind="garbage", message=f"a frame cannot be read: {error}")
            return
        if frame.error is not None:
            self.failure = failure_of(frame.error.code or 500, frame.error)
            return
        timings = frame.timings
        if self.start is None:
            self.start = self._started(frame)
        if timings is not None:
            self._timings = timings
        if frame.native is not None and frame.native.stop_type == "word":
            self._stop_word = frame.native.stopping_word
        for choice in frame.choices:
            said = self._said(choice.delta)
            if self.failure is not None:
                return
            if timings is not None and not self._count(timings.predicted_n, said):
                return
            if self._logprobs and said and choice.logprobs is not None:
                self._add_logprob(said, choice.logprobs.content or [])
            entries += said
            self._finish = choice.finish_reason or self._finish
        if frame.usage is not None and self._finish:
            self._done(frame.usage, entries)

    def _started(self, frame: _Frame) -> AttemptStart:
        progress, timings = frame.prompt_progress, frame.timings or Timings()
        if progress is not None:
            self._prompt_tokens = max(progress.total, 0)
            return AttemptStart(prompt_tokens=self._prompt_tokens, cached_tokens=max(progress.cache, 0))
        self._prompt_tokens = max(timings.prompt_n + timings.cache_n, 0)
        return AttemptStart(prompt_tokens=self._prompt_tokens, cached_tokens=max(timings.cache_n, 0))

    def _said(self, delta: _Delta) -> list[Entry]:
        said: list[Entry] = []
        if delta.reasoning_content:
            said.append(_entry(REASONING, delta.reasoning_content))
        if delta.content:
            said.append(_entry(TEXT, delta.content))
        for call in delta.tool_calls or ():
            function = call.function or _Function()
            if call.index not in self._named:
                if not function.name:
                    self.failure = AttemptFailure(kind="garbage", message="arguments came for a call without a name")
                    return []
                self._named.add(call.index)
                said.append(_entry(f"{CALL}{call.index}", function.name))
            said.append(_entry(f"{TOOL}{call.index}", function.arguments or ""))
        if said:
            self._channel = said[-1].channel
        return said

    def _count(self, total: int, said: list[Entry]) -> bool:
        """Give the tokens that were said since the last frame to the last piece of this one."""
        grown = total - self.counted
        if not 0 <= grown <= MAX_TOKENS_PER_FRAME:
            self.failure = AttemptFailure(
                kind="garbage", message=f"the count went from {self.counted} to {total} tokens"
            )
            return False
        if grown == 0:
            return True
        self.counted = total
        if not said:
            said.append(_entry(self._channel, ""))
        said[-1] = msgspec.structs.replace(said[-1], tokens=grown)
        return True

    def _add_logprob(self, said: list[Entry], probabilities: list[Probability]) -> None:
        last = said[-1]
        logprob = logprob_of(last.text, probabilities, self._top)
        said[-1] = msgspec.structs.replace(last, logprob=logprob)

    def _done(self, usage: _Usage | None, entries: list[Entry]) -> None:
        if not self._finish:
            self.failure = AttemptFailure(kind="cut", message="the stream ended without a reason to")
            return
        if usage is not None:
            rest: list[Entry] = []
            if not self._count(usage.completion_tokens, rest):
                return
            entries += rest
        timings = self._timings
        details = usage.prompt_tokens_details if usage is not None else None
        self.end = AttemptEnd(
            finish_reason=_REASONS.get(self._finish, "stop"),
            stop_sequence=self._stop_word,
            prompt_tokens=max(usage.prompt_tokens, 0) if usage is not None else self._prompt_tokens,
            cached_tokens=max(details.cached_tokens if details is not None else timings.cache_n, 0),
            prefill_us=micros(timings.prompt_ms),
            decode_us=micros(timings.predicted_ms),
            tokens=self.counted,
        )


def _entry(channel: str, text: str) -> Entry:
    return Entry(text=text, tokens=0, ids_complete=False, channel=channel)
