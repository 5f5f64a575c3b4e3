"""What the mock says: deterministic text by prompt and seed, and the knobs that a prompt may hold.

``[[mock tokens=100 rate=50 fault=die:7]]`` anywhere in a prompt sets, for that request alone:

==============  ======================================================================================
``tokens``      tokens until it ends by itself (16)
``rate``        tokens per second; 0 = as fast as can be (0)
``prefill_ms``  time before the first token (0)
``text``        ``words``, or ``utf8``: characters of several tokens each, held back until complete
``thoughts``    tokens that a chat thinks before it speaks (0)
``calls``       names of the tools, with commas between, that a chat calls where it may choose; it answers in words
                once a tool has said something
``fault``       see :data:`FAULTS`; ``name:n`` strikes after n tokens
``times``       the fault strikes the first so many requests with this prompt; 0 = always (0)
``stall_ms``    how long the slot stays busy after a cancel (0)
==============  ======================================================================================
"""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from ._mock_chat import Plan
from ._mock_words import BYTE_ID, FIRST_WORD_ID, WIDE, WORD_IDS, WORDS
from ._mock_words import tokenize as tokenize

#: faults and what they do
FAULTS: Final[dict[str, str]] = {
    "silent": "says nothing more, and does not end",
    "cut": "the connection breaks off",
    "die": "the engine's process is gone",
    "garbage": "bytes that are no frame",
    "utf8": "a frame with bytes that are no UTF-8",
    "error": "an error frame inside the stream",
    "unfinished": "the stream ends properly, but without its last frame",
    "refuse": "503 before anything else",
    "500": "500 before anything else",
    "endless": "never ends by itself, whatever max_tokens says",
    "repeat": "says the same token over and over",
}
_KNOBS: Final = re.compile(r"\[\[mock((?:\s+[a-z_]+=[^\s\]]+)*)\s*\]\]")


class Knobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the mock behaves for one request."""

    tokens: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)] = 16
    rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    prefill_ms: Annotated[int, msgspec.Meta(ge=0)] = 0
    text: Literal["words", "utf8"] = "words"
    thoughts: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    calls: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.,-]*$")] = ""
    fault: Annotated[str, msgspec.Meta(pattern=rf"^(({'|'.join(FAULTS)})(:\d+)?)?$")] = ""
    times: Annotated[int, msgspec.Meta(ge=0)] = 0
    stall_ms: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def fault_name(self) -> str:
        """Name of the fault, or ""."""
        return self.fault.partition(":")[0]

    @property
    def fault_after(self) -> int:
        """Tokens before it strikes."""
        return int(self.fault.partition(":")[2] or 0)


class KnobError(ValueError):
    """A prompt or configuration sets a knob that the mock does not have."""


def knobs_of(prompt: str, defaults: Mapping[str, Any]) -> Knobs:
    """The knobs in force for a prompt.

    Raises:
        KnobError: one is unknown or has a value that it does not take.
    """
    found = _KNOBS.search(prompt)
    values = dict(defaults)
    for pair in found.group(1).split() if found else ():
        name, _, value = pair.partition("=")
        values[name] = value
    try:
        return msgspec.convert(values, Knobs, strict=False)
    except msgspec.ValidationError as error:
        msg = f"[[mock …]]: {error}"
        raise KnobError(msg) from error


class Said(msgspec.Struct, frozen=True, gc=False):
    """One frame: some text, how many tokens it stands for, and the id of the last one; -1 when what was held back
    at the end is all there is, or the piece has none."""

    text: str
    tokens: int
    id: int
    channel: str = ""


class Speech:
    """All frames of one generation, one by one.

    The next token depends on the seed and on the whole text before it, so that a generation which is continued
    from prompt and prefix says what the unbroken one would have said.

    Args:
        limit: most tokens; 0 = none.
        room: tokens that the context has left.
        stop: texts that end it.
        plan: what is said before the words.
        banned: ids of words that are not said.
    """

    def __init__(
        self,
        knobs: Knobs,
        prompt: str,
        *,
        seed: int,
        limit: int,
        room: int,
        stop: Sequence[str],
        plan: Plan | None = None,
        banned: Collection[int] = (),
    ) -> None:
        self._knobs = knobs
        self._state = zlib.crc32(prompt.encode("utf-8", "replace"), zlib.crc32(b"%d" % seed))
        endless = knobs.fault_name == "endless"
        self._limit = 0 if endless else limit
        plan = plan or Plan()
        self._pieces = deque(plan.pieces)
        self._complete = plan.complete
        self._own_end = None if endless else knobs.tokens + sum(piece.tokens for piece in plan.pieces)
        self._words = [n for n in range(len(WORDS)) if FIRST_WORD_ID + n not in banned] or [0]
        self._calls = plan.calls
        self._room = room
        self._stop = tuple(stop)
        self._bytes: list[tuple[bytes, int]] = []
        self._held = ""
        #: tokens so far
        self.counted = 0
        #: "" | "eos" | "word" | "limit"
        self.stop_type = ""
        #: the stop string that was said
        self.stop_word = ""

    @property
    def finish_reason(self) -> Literal["stop", "length", "tool_calls"]:
        """Why it ended."""
        if self.stop_type == "limit":
            return "length"
        return "tool_calls" if self._calls else "stop"

    def next(self) -> Said | None:
        """The next frame; ``None`` at the end, then ``stop_type`` says why."""
        if self.stop_type:
            return None
        if self._pieces:
            return self._planned()
        if self._complete:
            self.stop_type = "eos"
            return None
        fresh = 0
        piece = b""
        while True:
            if self.counted == self._own_end:
                self.stop_type = "eos"
            elif (self._limit and self.counted >= self._limit) or (
                self._knobs.fault_name != "endless" and self.counted >= self._room
            ):
                self.stop_type = "limit"
            if self.stop_type:
                # What is held back belongs to nothing any more: a lone part of a character is dropped, as
                # llama.cpp drops it, and its tokens show in the last frame's count alone.
                text, self._held = self._held, ""
                return Said(text, fresh, -1) if text or fresh else None
            data, token = self._token()
            self.counted += 1
            fresh += 1
            piece += data
            try:
                text = piece.decode()
            except UnicodeDecodeError:
                continue
            return Said(self._release(text), fresh, token)

    def _planned(self) -> Said | None:
        piece = self._pieces.popleft()
        if piece.tokens and ((self._limit and self.counted >= self._limit) or self.counted >= self._room):
            self.stop_type = "limit"
            return None
        self.counted += piece.tokens
        return Said(piece.text, piece.tokens, -1, piece.channel)

    def _token(self) -> tuple[bytes, int]:
        if not self._bytes:
            if self._knobs.fault_name != "repeat" or self.counted < self._knobs.fault_after:
                mixed = ((self._state ^ (self._state >> 15)) * 2_654_435_761) & 0xFFFF_FFFF
                self._pick = mixed >> 16
            if self._knobs.text == "utf8":
                word = WIDE[self._pick % len(WIDE)]
                self._bytes = [(bytes([b]), BYTE_ID + b) for b in word.encode()]
            else:
                word = WORDS[self._words[self._pick % len(self._words)]]
                self._bytes = [(word.encode(), WORD_IDS[word])]
            self._state = zlib.crc32(word.encode(), self._state)
        return self._bytes.pop(0)

    _pick = 0

    def _release(self, text: str) -> str:
        """Text that may be said, when a stop string may have begun in it."""
        if not self._stop:
            return text
        self._held += text
        hits = [(at, word) for word in self._stop if (at := self._held.find(word)) >= 0]
        if hits:
            self.stop_type = "word"
            at, self.stop_word = min(hits)
            text, self._held = self._held[:at], ""
            return text
        keep = max(
            (n for word in self._stop for n in range(1, len(word)) if self._held.endswith(word[:n])),
            default=0,
        )
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text
