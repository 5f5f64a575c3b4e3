"""Says whether a text is a haiku on a topic, and if not, why.

The judge knows nothing of the model: it counts by the closed table of :mod:`.syllables` and looks for the topic's
keywords. A made-up word has no count, so that it fails a line rather than passing by luck.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from .grammar import BY_ALIAS, SHAPE, Topic
from .syllables import count, count_word, words_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge saw."""

    #: The lines of the text, without those that are blank.
    lines: tuple[str, ...]
    #: Syllables of each line; `None` where a word is not in the table.
    syllables: tuple[int | None, ...]
    #: Words without a syllable count, in order.
    unknown_words: tuple[str, ...]
    #: Whether a keyword of the topic is there; `None` when no topic was asked for.
    on_topic: bool | None

    @property
    def well_formed(self) -> bool:
        """Three lines of five, seven and five syllables."""
        return self.syllables == SHAPE

    @property
    def passed(self) -> bool:
        """Well formed, and on topic where one was asked for."""
        return self.well_formed and self.on_topic is not False

    @property
    def reason(self) -> str:
        """Why the text failed, or an empty string."""
        if len(self.lines) != len(SHAPE):
            return f"has {len(self.lines)} lines, not {len(SHAPE)}"
        if self.unknown_words:
            return f"has words that the syllable table does not hold: {', '.join(self.unknown_words)}"
        if not self.well_formed:
            return f"has {'-'.join(map(str, self.syllables))} syllables, not {'-'.join(map(str, SHAPE))}"
        return "" if self.passed else "does not name its topic"


def find_topic(name: str) -> Topic:
    """The topic that a prompt may call `name`, whatever its case.

    Raises:
        ValueError: the model was not taught that topic; the message names the nearest one.
    """
    wanted = name.strip().lower()
    if topic := BY_ALIAS.get(wanted):
        return topic
    near = get_close_matches(wanted, BY_ALIAS, n=1)
    hint = (
        f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted({t.name for t in BY_ALIAS.values()}))}"
    )
    message = f"topic: got {name!r}, which the haiku model was not taught; {hint}"
    raise ValueError(message)


def judge(text: str, topic: str | None = None) -> Verdict:
    """Judge `text`; with `topic` (a name or alias of one of the model's topics) also whether it is on it.

    Raises:
        ValueError: `topic` is none that the model was taught.
    """
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    return Verdict(
        lines=lines,
        syllables=tuple(map(count, lines)),
        unknown_words=tuple(word for word in words_of(text) if count_word(word) is None),
        on_topic=None if topic is None else find_topic(topic).is_named_in(text),
    )
