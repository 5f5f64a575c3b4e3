"""What llama.cpp says on `/completion`, as start, entries, and end or failure; pure, so that it can be fuzzed.

Frames are not tokens: a partial UTF-8 character or a half-matched stop string is held back, and the next frame
brings the text of several tokens but only the last one's id. What counts is ``tokens_predicted``.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Final

import msgspec

from .. import AttemptEnd, AttemptFailure, AttemptStart, EntryBatch
from ._llama_probs import Probability, logprob_of
from ._sse import SseError, SseSplitter

#: what the last frame shall hold; without it llama.cpp repeats the prompt and all settings
RESPONSE_FIELDS: Final = (
    "content",
    "tokens",
    "stop",
    "id_slot",
    "tokens_predicted",
    "tokens_evaluated",
    "truncated",
    "stop_type",
    "stopping_word",
    "timings",
    "completion_probabilities",
)
#: more tokens in one frame than any engine holds back: the counter is broken
MAX_TOKENS_PER_FRAME: Final = 65_536
#: of an input that has to be read at once; llama.cpp calls it its own mistake
_TOO_LONG: Final = ("is too large to process",)
_CANNOT: Final = ("input is not supported",)
#: a count or an id; llama.cpp keeps them in 32 bits, and larger ones must not reach the journal
Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class _Plain(msgspec.Struct, gc=False):
    """A frame in the middle of a stream, and nothing else of it than is needed."""

    content: str
    tokens: list[Int32]
    tokens_predicted: Int32
    stop: bool


class Timings(msgspec.Struct, gc=False):
    """How long it took, and how many tokens by llama.cpp's count."""

    cache_n: Int32 = 0
    prompt_n: Int32 = 0
    predicted_n: Int32 = 0
    prompt_ms: float | None = 0.0
    predicted_ms: float | None = 0.0


class Progress(msgspec.Struct, gc=False):
    """How far the prompt is."""

    total: Int32 = 0
    cache: Int32 = 0


class WireError(msgspec.Struct, gc=False):
    """llama.cpp's error object."""

    message: str = ""
    type: str = ""
    code: int = 0


class _Frame(msgspec.Struct, gc=False):
    """Any frame."""

    content: str = ""
    tokens: list[Int32] = []
    stop: bool = False
    tokens_predicted: Int32 = 0
    tokens_evaluated: Int32 = 0
    truncated: bool = False
    stop_type: str = ""
    stopping_word: str = ""
    timings: Timings | None = None
    prompt_progress: Progress | None = None
    completion_probabilities: list[Probability] = []
    error: WireError | None = None


class _ErrorBody(msgspec.Struct, gc=False):
    error: WireError | str


_decode_many = msgspec.json.Decoder(list[_Plain]).decode
_decode_plain = msgspec.json.Decoder(_Plain).decode
_decode_frame = msgspec.json.Decoder(_Frame | None).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_texts = attrgetter("content")
_counts = attrgetter("tokens_predicted")
_ids = attrgetter("tokens")


class CompletionStream:
    """One stream, from its first byte to its end.

    :meth:`feed` answers the entries that the bytes completed; then ``start``, ``end`` and ``failure`` say what else
    is known by now. After ``end`` or ``failure`` bytes are ignored.

    Args:
        logprobs: whether the probability of each token was asked for.
        top: and so many of the likeliest beside it.
    """

    __slots__ = ("_carry", "_logprobs", "_plain", "_splitter", "_top", "counted", "end", "failure", "start")

    def __init__(self, *, logprobs: bool = False, top: int = 0) -> None:
        self._splitter = SseSplitter()
        self._carry = b""
        self._logprobs = logprobs
        self._top = top
        #: between two whole frames of a stream that has begun and not ended
        self._plain = False
        #: tokens by the engine's count so far
        self.counted = 0
        self.start: AttemptStart | None = None
        self.end: AttemptEnd | None = None
        self.failure: AttemptFailure | None = None

    def feed(self, data: bytes) -> EntryBatch | None:
        """Take the next bytes of the body; ``None`` when they completed no entry."""
        if not self._plain:
            return self._feed_slowly(data)
        if self._carry:
            data = self._carry + data
            self._carry = b""
        if data.find(b"\n\n") == len(data) - 2:
            return self._feed_one(data)
        # The plain case, nearly all there is: whole frames, each one token with one id. All of them are decoded by
        # one call, as a JSON array. A separator that stood inside a frame would make the array too short.
        cut = data.rfind(b"\n\n") + 2
        whole = data if cut == len(data) else data[:cut]
        if whole[:7] != b"data: {":
            return self._feed_slowly(data)
        separators = whole.count(b"}\n\ndata: {")
        try:
            frames = _decode_many(b"[%b]" % whole[6:-2].replace(b"}\n\ndata: {", b"},{"))
            ids = [token for (token,) in map(_ids, frames)]
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._feed_slowly(data)
        first, count = self.counted + 1, len(frames)
        if (
            frames[-1].stop
            or separators + 1 != count
            or list(map(_counts, frames)) != list(range(first, first + count))
        ):
            return self._feed_slowly(data)
        self.counted += count
        if cut != len(data):
            self._carry = data[cut:]
        return EntryBatch([0] * count, list(map(_texts, frames)), ids)

    def _feed_one(self, data: bytes) -> EntryBatch | None:
        """One frame, as they come when the engine is slower than this."""
        if data[:7] != b"data: {":
            return self._feed_slowly(data)
        try:
            frame = _decode_plain(data[6:-2])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._feed_slowly(data)
        if frame.stop or len(frame.tokens) != 1 or frame.tokens_predicted != self.counted + 1:
            return self._feed_slowly(data)
        self.counted += 1
        return EntryBatch([0], [frame.content], frame.tokens)

    def finish(self) -> None:
        """The body is over: without the last frame the stream was cut, however properly HTTP ended it."""
        if self.end is None and self.failure is None:
            self.failure = AttemptFailure(kind="cut", message="the stream ended without its last frame")

    # --- any frame

    def _feed_slowly(self, data: bytes) -> EntryBatch | None:
        if self._over():
            return None
        columns = _Columns()
        try:
            for payload in self._splitter.feed(data):
                self._frame(payload, columns)
                if self._over():
                    break
        except SseError as error:
            self.failure = AttemptFailure(kind="garbage", message=str(error))
        self._plain = not (self._over() or self._logprobs or self.start is None or self._splitter.pending)
        return columns.batch()

    def _over(self) -> bool:
        """Whether the stream has ended or failed."""
        return self.end is not None or self.failure is not None

    def _frame(self, payload: bytes, columns: _Columns) -> None:
        try:
            frame = _decode_frame(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.failure = AttemptFailure(kind="garbage", message=f"a frame cannot be read: {error}")
            return
        if frame is None:
            return  # `data: null` opens some streams
        if frame.error is not None:
            self.failure = failure_of(frame.error.code or 500, frame.error)
            return
        if self.start is None:
            progress = frame.prompt_progress
            if progress is not None:
                self.start = AttemptStart(prompt_tokens=max(progress.total, 0), cached_tokens=max(progress.cache, 0))
            else:
                self.start = AttemptStart(prompt_tokens=max(frame.tokens_evaluated, 0))
        if frame.prompt_progress is not None and not frame.stop:
            return
        grown = frame.tokens_predicted - self.counted
        if not 0 <= grown <= MAX_TOKENS_PER_FRAME:
            self.failure = AttemptFailure(
                kind="garbage",
                message=f"tokens_predicted went from {self.counted} to {frame.tokens_predicted}",
            )
            return
        self.counted = frame.tokens_predicted
        logprob = logprob_of(frame.content, frame.completion_probabilities, self._top) if self._logprobs else ""
        columns.add(frame.content, frame.tokens, grown, logprob)
        if frame.stop:
            self._ended(frame)

    def _ended(self, frame: _Frame) -> None:
        timings = frame.timings or Timings()
        self.end = AttemptEnd(
            finish_reason="length" if frame.stop_type == "limit" or frame.truncated else "stop",
            stop_sequence=frame.stopping_word if frame.stop_type == "word" else "",
            prompt_tokens=max(frame.tokens_evaluated, 0),
            cached_tokens=max(timings.cache_n, 0),
            prefill_us=micros(timings.prompt_ms),
            decode_us=micros(timings.predicted_ms),
            tokens=self.counted,
        )


class _Columns:
    """Entries as they are collected, in the columns of a batch."""

    __slots__ = ("id_counts", "ids", "incomplete", "logprobs", "texts", "tokens")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.ids: list[int] = []
        self.tokens: list[int] = []
        self.id_counts: list[int] = []
        self.incomplete: list[int] = []
        self.logprobs: list[str] = []

    def add(self, text: str, ids: list[int], grown: int, logprob: str) -> None:
        """One frame: ``grown`` tokens, of which the last carries the text and what ids there are."""
        if grown == 0 and not text:
            return
        for _ in range(grown - 1):
            self._row("", [], 1, incomplete=True, logprob="")
        complete = grown == 1 and len(ids) == 1
        self._row(text, ids, min(grown, 1), incomplete=not complete, logprob=logprob)

    def _row(self, text: str, ids: list[int], tokens: int, *, incomplete: bool, logprob: str) -> None:
        self.texts.append(text)
        self.ids += ids
        self.id_counts.append(len(ids))
        self.tokens.append(tokens)
        self.incomplete.append(int(incomplete))
        self.logprobs.append(logprob)

    def batch(self) -> EntryBatch | None:
        """The batch, with columns that hold only defaults left out; ``None`` when there is no entry."""
        count = len(self.texts)
        if count == 0:
            return None
        even = self.id_counts == [1] * count or not self.ids
        return EntryBatch(
            dts_us=[0] * count,
            texts=self.texts,
            ids=self.ids,
            tokens=None if self.tokens == [1] * count else self.tokens,
            id_counts=None if even else self.id_counts,
            incomplete=self.incomplete if any(self.incomplete) else None,
            logprobs=self.logprobs if any(self.logprobs) else None,
        )


def failure_of(status: int, error: WireError) -> AttemptFailure:
    """What an error of llama.cpp means for the attempt, whether it came as a status or inside a stream."""
    message = error.message or f"HTTP {status}"
    if error.type == "exceed_context_size_error":
        return AttemptFailure(kind="context", message=message, retriable=False)
    if any(sign in message for sign in _TOO_LONG):
        return AttemptFailure(kind="context", message=message, retriable=False)
    if any(sign in message for sign in _CANNOT):
        return AttemptFailure(kind="invalid", message=message, retriable=False)
    if status in {429, 503}:
        return AttemptFailure(kind="refused", message=message)
    if 400 <= status < 500 or status == 501:
        return AttemptFailure(kind="invalid", message=message, retriable=False)
    return AttemptFailure(kind="server-error", message=message)


def failure_of_body(status: int, body: bytes) -> AttemptFailure:
    """The same for the body of an answer that is no stream."""
    try:
        error = _decode_error(body).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        text = body[:200].decode("utf-8", "replace").strip()
        error = WireError(message=f"HTTP {status}{f': {text}' if text else ''}")
    return failure_of(status, WireError(message=error) if isinstance(error, str) else error)


def micros(milliseconds: float | None) -> int:
    """Microseconds of what llama.cpp tells in milliseconds."""
    if milliseconds is None or milliseconds - milliseconds != 0:
        return 0
    return max(0, min(round(milliseconds * 1000), 2**53))
