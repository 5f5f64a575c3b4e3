"""Ends a text before a stop string, for engines that say the stop string too, or that know none."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Text in, text out up to the first stop string; what may be the beginning of one is held back.

    Args:
        words: the stop strings; empty ones are none.
    """

    __slots__ = ("_longest", "_words", "held", "met")

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(word for word in words if word)
        self._longest = max(map(len, self._words), default=0)
        #: text that may turn out to be the beginning of a stop string
        self.held = ""
        #: a stop string was met; nothing is said any more
        self.met = False

    def feed(self, text: str) -> str:
        """What of the text so far may be said."""
        if self.met:
            return ""
        if not self._words:
            return text
        text = self.held + text
        hits = [at for word in self._words if (at := text.find(word)) >= 0]
        if hits:
            self.met, self.held = True, ""
            return text[: min(hits)]
        cut = len(text) - self._begun(text)
        self.held = text[cut:]
        return text[:cut]

    def rest(self) -> str:
        """What was held back, and is no stop string after all, since the text is over."""
        held, self.held = self.held, ""
        return held

    def _begun(self, text: str) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(word.startswith(end) for word in self._words):
                return length
        return 0
