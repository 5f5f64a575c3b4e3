"""Streams of chat.completion.chunk and text_completion objects, as start, entries, and end or failure; pure.

Chunks are not tokens. What a chunk stands for is taken from its token ids where the server gives them, else from its
log-probabilities, else from the server's running count, else it is one. What the account at the end counts beyond that
(tokens that were held back, or thoughts that are not shown) comes as a last entry without text, so that the entries of a
stream sum up to what the server counted.
"""

from __future__ import annotations

import math
import re
from typing import Final, Literal, cast

import msgspec

from .. import (
    CALL,
    REASONING,
    TEXT,
    TOOL,
    AttemptEnd,
    AttemptFailure,
    AttemptStart,
    Entry,
    EntryBatch,
    TokenLogprob,
    batch_of,
    pack_logprobs,
)
from ._openai_wire import ChoiceDelta, Chunk, Logprobs, Timings, Usage, decode_chunk, failure_of, wire_error
from ._sse import SseError, SseSplitter

FinishReason = Literal["stop", "length", "tool_calls"]
#: more tokens than any server counts beyond what it said: the account is broken
MAX_UNSAID_TOKENS: Final = 1_000_000
#: finish reasons, in the words of several servers
_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "repetition": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
}
_ESCAPED: Final = re.compile(r"\\x([0-9a-fA-F]{2})")


class _Call:
    """One tool call, as far as it was told."""

    __slots__ = ("id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""


class _Answer:
    """One of the choices."""

    __slots__ = ("calls", "finish", "stopped_by")

    def __init__(self) -> None:
        #: the stop string that ended it
        self.stopped_by = ""
        self.calls: dict[int, _Call] = {}
        #: "" while it goes on
        self.finish = ""


class OpenAIStream:
    """One stream, from its first byte to its end.

    :meth:`feed` answers the entries that the bytes completed; then ``start``, ``end`` and ``failure`` say what else is
    known by now. After ``end`` or ``failure`` bytes are ignored.

    Args:
        n: answers that were asked for in this stream.
        offset: index of its first answer among those of the task.
        top: beside each token so many of the likeliest are kept; -1 = log-probabilities were not asked for.
    """

    __slots__ = (
        "_answers",
        "_done",
        "_offset",
        "_splitter",
        "_timings",
        "_top",
        "_usage",
        "counted",
        "end",
        "failure",
        "start",
    )

    def __init__(self, *, n: int = 1, offset: int = 0, top: int = -1) -> None:
        self._splitter = SseSplitter()
        self._answers = [_Answer() for _ in range(n)]
        self._offset = offset
        self._top = top
        self._usage = Usage()
        self._timings = Timings()
        self._done = False
        #: tokens that its entries stand for
        self.counted = 0
        self.start: AttemptStart | None = None
        self.end: AttemptEnd | None = None
        self.failure: AttemptFailure | None = None

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Of each answer that has ended, "" for the others."""
        return tuple(answer.finish for answer in self._answers)

    def feed(self, data: bytes) -> EntryBatch | None:
        """Take the next bytes of the body; ``None`` when they completed no entry."""
        if self._over():
            return None
        entries: list[Entry] = []
        try:
            for payload in self._splitter.feed(data):
                self._payload(payload, entries)
                if self._over():
                    break
        except SseError as error:
            self._fail("garbage", str(error))
        return batch_of(entries) if entries else None

    def finish(self) -> EntryBatch | None:
        """The body is over, as HTTP has it. Without ``[DONE]`` that is an end only if every answer had its reason."""
        entries: list[Entry] = []
        if not self._over():
            if all(answer.finish for answer in self._answers):
                self._ended(entries)
            else:
                never = "the answer ended without a single event of a stream"
                later = "the stream ended without a finish_reason and without [DONE]"
                self._fail("cut", never if self.start is None else later)
        return batch_of(entries) if entries else None

    def _over(self) -> bool:
        """Whether the stream has ended or failed."""
        return self.end is not None or self.failure is not None

    # --- frames

    def _payload(self, payload: bytes, entries: list[Entry]) -> None:
        if payload.strip() == b"[DONE]":
            if all(answer.finish for answer in self._answers):
                self._ended(entries)
            else:
                self._fail("cut", "the server said [DONE] before every answer had its finish_reason")
            return
        try:
            chunk = decode_chunk(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._fail("garbage", f"a frame cannot be read: {error}")
            return
        if chunk.error is not None or chunk.object == "error":
            told = chunk.error if chunk.error is not None else msgspec.structs.asdict(chunk)
            reported = wire_error(told, otherwise="the server reported an error inside the stream")
            self.failure = failure_of(reported.status or 500, reported)
            return
        self._chunk(chunk, entries)

    def _chunk(self, chunk: Chunk, entries: list[Entry]) -> None:
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.timings is not None:
            self._timings = chunk.timings
        choices = chunk.choices or ()
        if self.start is None and (choices or chunk.usage is not None):
            ids = chunk.prompt_token_ids or (choices[0].prompt_token_ids if choices else None)
            told = self._usage.prompt_tokens or 0
            self.start = AttemptStart(prompt_tokens=max(told, 0) or len(ids or ()), cached_tokens=self._cached())
        for choice in choices:
            if not 0 <= choice.index < len(self._answers):
                self._fail(
                    "garbage", f"an answer of index {choice.index} came, and {len(self._answers)} were asked for"
                )
                return
            self._choice(choice, chunk, entries)
            if self.failure is not None:
                return

    def _choice(self, choice: ChoiceDelta, chunk: Chunk, entries: list[Entry]) -> None:
        answer = self._answers[choice.index]
        rows = _rows(choice, answer)
        infos = _infos(choice.logprobs, self._top) if self._top >= 0 or choice.logprobs is not None else []
        tokens, ids, complete = self._tokens(choice, chunk, rows, infos)
        logprob = _pack(infos, rows) if self._top >= 0 else ""
        index = self._offset + choice.index
        self.counted += tokens
        # The tokens belong to the last piece that was said; a function's name stands for none.
        bearer = max((n for n, (channel, _) in enumerate(rows) if not channel.startswith(CALL)), default=-1)
        if bearer < 0 and tokens:
            channel = TOOL + rows[-1][0].removeprefix(CALL) if rows else TEXT
            rows.append((channel, ""))
            bearer = len(rows) - 1
        for n, (channel, text) in enumerate(rows):
            if n == bearer:
                entry = Entry(
                    text=text,
                    tokens=tokens,
                    ids=ids,
                    ids_complete=complete,
                    choice=index,
                    channel=channel,
                    logprob=logprob,
                )
            else:
                entry = Entry(text=text, tokens=0, choice=index, channel=channel)
            if text or entry.tokens:
                entries.append(entry)
        reason = choice.finish_reason
        if reason and not answer.finish:
            if isinstance(choice.stop_reason, str):
                answer.stopped_by = choice.stop_reason
            self._reason(answer, reason)

    def _tokens(
        self, choice: ChoiceDelta, chunk: Chunk, rows: list[tuple[str, str]], infos: list[tuple[TokenLogprob, int]]
    ) -> tuple[int, tuple[int, ...], bool]:
        """How many tokens a frame stands for, their ids, and whether these are all of them."""
        if choice.token_ids is not None:
            return len(choice.token_ids), tuple(choice.token_ids), True
        said = "".join(text for channel, text in rows if not channel.startswith(CALL))
        grown = -1
        if chunk.timings is not None and chunk.timings.predicted_n is not None and len(self._answers) == 1:
            grown = chunk.timings.predicted_n - self.counted
        if infos:
            whole = b"".join(info.raw or info.token.encode() for info, _ in infos) == said.encode()
            ids = tuple(number for _, number in infos if number >= 0)
            tokens = max(len(infos), grown if said else 0)
            return tokens, ids, whole and len(ids) == tokens
        if grown >= 0 and not choice.finish_reason:
            return min(grown, MAX_UNSAID_TOKENS), (), grown == 0
        return (1, (), False) if said else (0, (), True)

    # --- how it ends

    def _reason(self, answer: _Answer, reason: str) -> None:
        known = _REASONS.get(reason)
        if known is not None:
            # A call that was forced ends as "stop" with some.
            answer.finish = "tool_calls" if known == "stop" and answer.calls else known
        elif reason == "content_filter":
            message = "the server's content filter stopped the answer"
            self.failure = AttemptFailure(kind="invalid", message=message, retriable=False)
        elif reason in ("abort", "error", "cancelled"):
            self._fail("server-error", f"the server gave the answer up (finish_reason {reason})")
        else:
            self._fail("garbage", f"finish_reason {reason[:80]!r} is not known")

    def _ended(self, entries: list[Entry]) -> None:
        usage, timings = self._usage, self._timings
        total = usage.completion_tokens if usage.completion_tokens is not None else timings.predicted_n
        unsaid = (total or 0) - self.counted
        if unsaid > MAX_UNSAID_TOKENS:
            self._fail("garbage", f"the server counts {total} tokens and said {self.counted}")
            return
        if self.start is None:
            self.start = AttemptStart()
        if unsaid > 0:
            self.counted += unsaid
            entries.append(Entry(text="", tokens=unsaid, ids_complete=False, choice=self._offset))
        reasons = self.finish_reasons
        self.end = AttemptEnd(
            finish_reason=cast(FinishReason, reasons[0]),
            finish_reasons=reasons if len(reasons) > 1 else (),
            stop_sequence=self._answers[0].stopped_by,
            prompt_tokens=max(usage.prompt_tokens or 0, 0) or self.start.prompt_tokens,
            cached_tokens=self._cached(),
            prefill_us=_micros(timings.prompt_ms),
            decode_us=_micros(timings.predicted_ms),
            tokens=max(total if total is not None else self.counted, 0),
        )

    def _cached(self) -> int:
        details = self._usage.prompt_tokens_details
        told = details.cached_tokens if details is not None else None
        return max(told if told is not None else self._timings.cache_n, 0)

    def _fail(self, kind: str, message: str) -> None:
        self.failure = AttemptFailure(kind=kind, message=message)


def _rows(choice: ChoiceDelta, answer: _Answer) -> list[tuple[str, str]]:
    """What a frame says, as channel and text, in the order in which it is to be read."""
    rows: list[tuple[str, str]] = []
    delta = choice.delta
    if delta is not None:
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            rows.append((REASONING, thought))
        for said in (delta.content, delta.refusal):
            if said:
                rows.append((TEXT, said))
        for place, piece in enumerate(delta.tool_calls or ()):
            at = _place(answer, piece.index, piece.id, place)
            call = answer.calls.setdefault(at, _Call())
            call.id = call.id or piece.id or ""
            function = piece.function
            if function is None:
                continue
            if function.name and not call.name:  # some servers repeat it with every piece
                call.name = function.name
                rows.append((f"{CALL}{at}", function.name))
            if function.arguments:
                rows.append((f"{TOOL}{at}", function.arguments))
    elif choice.text:
        rows.append((TEXT, choice.text))
    return rows


def _place(answer: _Answer, index: int | None, call_id: str | None, place: int) -> int:
    """Which call a piece belongs to; some servers tell no index, but a new id for each call."""
    if index is not None:
        return index
    if call_id:
        return next((at for at, call in answer.calls.items() if call.id == call_id), len(answer.calls))
    return max(answer.calls, default=place)


def _infos(told: Logprobs | None, top: int) -> list[tuple[TokenLogprob, int]]:
    """The tokens of a frame, each with its id (-1 where that is not told)."""
    if told is None:
        return []
    keep = max(top, 0)
    if told.content is not None:
        found = []
        for info in told.content:
            others = [(other.token, other.logprob, bytes(other.bytes or b"")) for other in info.top_logprobs]
            found.append(
                (
                    TokenLogprob(
                        info.token, _decimal(info.logprob), bytes(info.bytes or b""), _likeliest(others, keep)
                    ),
                    -1 if info.id is None else info.id,
                )
            )
        return found
    found = []
    tops = told.top_logprobs or []
    for n, (token, logprob) in enumerate(zip(told.tokens or (), told.token_logprobs or (), strict=False)):
        text, raw = _bytes(token)
        likeliest = tops[n] if n < len(tops) else None
        others = []
        for other, value in (likeliest or {}).items():
            word, data = _bytes(other)
            others.append((word, value, data))
        found.append((TokenLogprob(text, _decimal(logprob), raw, _likeliest(others, keep)), -1))
    return found


def _bytes(token: str) -> tuple[str, bytes]:
    """A token's text and bytes. Completions write bytes that are no character in hexadecimal behind ``bytes:``."""
    if token.startswith("bytes:"):
        raw = bytes(int(digits, 16) for digits in _ESCAPED.findall(token))
        return raw.decode(errors="replace"), raw
    return token, b"" if "\ufffd" in token else token.encode(errors="replace")


def _likeliest(others: list[tuple[str, float | None, bytes]], keep: int) -> list[TokenLogprob]:
    finite = [other for other in others if other[1] is not None and math.isfinite(other[1])]
    finite.sort(key=lambda other: -(other[1] or 0.0))
    return [TokenLogprob(token, _decimal(logprob), raw) for token, logprob, raw in finite[:keep]]


def _pack(infos: list[tuple[TokenLogprob, int]], rows: list[tuple[str, str]]) -> str:
    """What stands in an entry: a decimal where one token is the text and nothing else is told of it."""
    tokens = [info for info, _ in infos if info.logprob]
    if not tokens:
        return ""
    only = tokens[0]
    if len(tokens) == 1 and not only.top and [only.token] == [text for _, text in rows]:
        if only.raw in (b"", only.token.encode(errors="replace")):
            return only.logprob
    return pack_logprobs(tokens)


def _decimal(logprob: float | None) -> str:
    """A decimal; "" where it is not told or not finite. Rounding may lift a certainty above nought."""
    return "" if logprob is None or not math.isfinite(logprob) else repr(min(logprob, 0.0))


def _micros(milliseconds: float | None) -> int:
    if milliseconds is None or not math.isfinite(milliseconds):
        return 0
    return max(0, min(round(milliseconds * 1000), 2**53))
