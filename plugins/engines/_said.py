"""Collects what an engine says, a token at a time or several, as entries in columns."""

from __future__ import annotations

from collections.abc import Sequence

from .. import EntryBatch
from ._stop_strings import StopStrings


class Said:
    """Entries of one plain text, as they are collected.

    Args:
        stop: where the text ends, for an engine that says the stop string too.
    """

    __slots__ = ("_ids", "_ids_of", "_incomplete", "_logprobs", "_texts", "_tokens", "stop", "tokens")

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = StopStrings(stop)
        #: tokens so far
        self.tokens = 0
        self._clear()

    def add(self, text: str, *, tokens: int = 1, ids: Sequence[int] = (), logprob: str = "") -> None:
        """Something was said: its text, how many tokens it stands for, their ids as far as they are known."""
        held = bool(self.stop.held)
        text = self.stop.feed(text)
        if not (text or tokens or ids):
            return
        self.tokens += tokens
        whole = not held and not self.stop.held and not self.stop.met and len(ids) == tokens
        self._row(text, tokens, ids, logprob, incomplete=bool(ids) and not whole)

    def close(self) -> None:
        """The text is over: what was held back is said."""
        rest = self.stop.rest()
        if rest:
            self._row(rest, 0, (), "", incomplete=False)

    def take(self) -> EntryBatch | None:
        """What was collected since the last time; ``None`` when there is nothing."""
        count = len(self._texts)
        if not count:
            return None
        even = self._ids_of == [1] * count or not self._ids
        batch = EntryBatch(
            dts_us=[0] * count,
            texts=self._texts,
            ids=self._ids,
            tokens=None if self._tokens == [1] * count else self._tokens,
            id_counts=None if even else self._ids_of,
            incomplete=self._incomplete if any(self._incomplete) else None,
            logprobs=self._logprobs if any(self._logprobs) else None,
        )
        self._clear()
        return batch

    def _row(self, text: str, tokens: int, ids: Sequence[int], logprob: str, *, incomplete: bool) -> None:
        self._texts.append(text)
        self._tokens.append(tokens)
        self._ids += ids
        self._ids_of.append(len(ids))
        self._incomplete.append(int(incomplete))
        self._logprobs.append(logprob)

    def _clear(self) -> None:
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._ids: list[int] = []
        self._ids_of: list[int] = []
        self._incomplete: list[int] = []
        self._logprobs: list[str] = []
