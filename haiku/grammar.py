"""A grammar that writes haiku: every text it makes is 5-7-5 and names its topic in the first line.

All lines that a template can yield are enumerated and those of the right length kept, so that nothing is rejected at
random and the whole language can be listed, counted and tested. The model is trained on this and on nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random
from types import MappingProxyType
from typing import Final

from . import words
from .syllables import count, words_of

#: Syllables of the three lines.
SHAPE: Final = (5, 7, 5)

_VOWELS: Final = "aeiou"


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun and how it takes an article."""

    text: str
    #: Takes no "a": *rain*.
    mass: bool = False
    #: Its verb stands in the plural: *waves break*.
    plural: bool = False

    @classmethod
    def parse(cls, written: str) -> Noun:
        """Read a noun as the word lists mark it: `~mass`, `+plural`, bare for one thing."""
        return cls(written.lstrip("~+"), mass=written.startswith("~"), plural=written.startswith("+"))

    def phrases(self, adjective: str | None) -> Iterator[str]:
        """The noun with each article it can take, and with `adjective` before it."""
        body = f"{adjective} {self.text}" if adjective else self.text
        yield f"the {body}"
        if self.mass or self.plural:
            yield body
        elif body[0] not in _VOWELS:
            yield f"a {body}"

    def verb(self, stem: str) -> str:
        """`stem` as said of this noun."""
        return stem if self.plural else third_person(stem)


@dataclass(frozen=True, slots=True)
class Topic:
    """What a haiku can be about."""

    name: str
    #: What a prompt may call it, `name` first.
    aliases: tuple[str, ...]
    #: The nouns that are the topic.
    keywords: tuple[Noun, ...]
    #: Nouns that go with it.
    images: tuple[Noun, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]
    places: tuple[str, ...]

    @classmethod
    def parse(cls, line: str) -> Topic:
        """Read one line of :data:`.words.TOPICS`."""
        aliases, keywords, images, verbs, adjectives, places = (part.strip() for part in line.split("|"))
        names = tuple(aliases.split("/"))
        return cls(
            name=names[0],
            aliases=names,
            keywords=tuple(map(Noun.parse, keywords.split())),
            images=tuple(map(Noun.parse, images.split())),
            verbs=tuple(verbs.split()),
            adjectives=tuple(adjectives.split()),
            places=tuple(place.strip() for place in places.split(",")),
        )

    def is_named_in(self, text: str) -> bool:
        """Whether `text` holds one of the topic's keywords, as one of a kind or as many."""
        said = {singular(word) for word in words_of(text)}
        return any(singular(noun.text) in said for noun in self.keywords)


TOPICS: Final = tuple(map(Topic.parse, words.TOPICS.splitlines()))
#: Every alias -> its topic.
BY_ALIAS: Final[Mapping[str, Topic]] = MappingProxyType({alias: t for t in TOPICS for alias in t.aliases})


def third_person(verb: str) -> str:
    """The verb as said of one thing: *fall* -> *falls*, *reach* -> *reaches*, *hurry* -> *hurries*."""
    if re.search(r"(s|sh|ch|x|z|o)$", verb):
        return f"{verb}es"
    if re.search(r"[^aeiou]y$", verb):
        return f"{verb[:-1]}ies"
    return f"{verb}s"


def singular(word: str) -> str:
    """A form that one and many of the same noun share, *wave* for *waves*; irregular plurals are listed as keywords."""
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def phrases(written: str) -> tuple[str, ...]:
    """The entries of a word list that is parted by `|` and line ends."""
    return tuple(part for part in re.split(r"[|\n]", written.strip()) if part)


def content(text: str) -> set[str]:
    """The words of `text` that carry meaning, by :func:`singular`: no two lines of a haiku share one."""
    return {singular(word) for word in words_of(text) if len(word) > 3}


def _repeats(line: str) -> bool:
    return sum(len(word) > 3 for word in words_of(line)) > len(content(line))


def _verbal(nouns: tuple[Noun, ...], adjectives: tuple[str | None, ...], verbs: tuple[str, ...]) -> Iterator[str]:
    for noun, adjective, verb in product(nouns, adjectives, verbs):
        for phrase in noun.phrases(adjective):
            yield f"{phrase} {noun.verb(verb)}"


def _nominal(nouns: tuple[Noun, ...], adjectives: tuple[str | None, ...]) -> Iterator[str]:
    for noun, adjective in product(nouns, adjectives):
        yield from noun.phrases(adjective)


def _first_lines(topic: Topic) -> Iterator[tuple[int, Iterator[str]]]:
    """Templates of the first line, each with its weight: all of them hold a keyword."""
    keywords, adjectives, times = topic.keywords, topic.adjectives, tuple(words.TIMES)
    yield 3, _verbal(keywords, adjectives, topic.verbs)
    yield 3, (" ".join(parts) for parts in product(_nominal(keywords, (None, *adjectives)), topic.places))
    yield 2, (" ".join(parts) for parts in product(_verbal(keywords, (None,), topic.verbs), times))
    yield 2, (" ".join(parts) for parts in product(_nominal(keywords, adjectives), times))


def _second_lines(topic: Topic) -> Iterator[tuple[int, Iterator[str]]]:
    adjectives = (None, *words.IMAGE_ADJECTIVES)
    yield (
        3,
        (
            " ".join(parts)
            for parts in product(_verbal(topic.images, adjectives, tuple(words.IMAGE_VERBS)), topic.places)
        ),
    )
    yield (
        2,
        (
            " ".join(parts)
            for parts in product(topic.places, _verbal(topic.images, adjectives, tuple(words.IMAGE_VERBS)))
        ),
    )


def _third_lines(topic: Topic) -> Iterator[tuple[int, Iterator[str]]]:
    adjectives = (None, *words.IMAGE_ADJECTIVES)
    yield 4, iter(phrases(words.CLOSERS))
    yield (
        4,
        (" ".join(parts) for parts in product(words.LEADS, _verbal(topic.images, (None,), tuple(words.IMAGE_VERBS)))),
    )
    yield 2, (" ".join(parts) for parts in product(_nominal(topic.images, adjectives), words.TIMES))


_LINES: Final = (_first_lines, _second_lines, _third_lines)


@cache
def lines(topic: Topic, position: int) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Every line that may stand at `position` (0, 1 or 2), by template: (weight, lines), all of the right length."""
    found = []
    for weight, candidates in _LINES[position](topic):
        fitting = tuple(sorted({line for line in candidates if count(line) == SHAPE[position] and not _repeats(line)}))
        if fitting:
            found.append((weight, fitting))
    return tuple(found)


def write_line(rng: Random, topic: Topic, position: int) -> str:
    """One line for `position`: a template by weight (less where it has few lines), then any of its lines."""
    options = lines(topic, position)
    (chosen,) = rng.choices(
        [found for _, found in options], weights=[min(weight, len(found) / 6) for weight, found in options]
    )
    return rng.choice(chosen)


def write_haiku(rng: Random, topic: Topic, *, second: Topic | None = None) -> str:
    """A haiku on `topic` as three lines; with `second`, its second line is about that one too."""
    while True:
        written = [write_line(rng, topic, 0), write_line(rng, second or topic, 1), write_line(rng, topic, 2)]
        meant = [content(line) for line in written]
        if sum(map(len, meant)) == len(set().union(*meant)):
            return "\n".join(written)
