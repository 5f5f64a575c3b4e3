from __future__ import annotations

import pytest

from llama_orch.haiku.grammar import TOPICS, third_person
from llama_orch.haiku.syllables import SYLLABLES, count, count_word, words_of


@pytest.mark.parametrize(
    "word, syllables",
    [
        ("moon", 1),
        ("whole", 1),
        ("river", 2),
        ("rustles", 2),
        ("vanishes", 3),
        ("umbrella", 3),
        ("quiet", 2),
        ("passes", 2),
    ],
)
def test_counts_words_as_they_are_spoken(word: str, syllables: int) -> None:
    assert count_word(word) == syllables


def test_a_line_counts_as_the_sum_of_its_words_whatever_case_and_punctuation() -> None:
    assert count("I button my coat") == 5
    assert count("Quiet, AND enough!") == 5


@pytest.mark.parametrize("line", ["the rain is brillig", "", "1 2 3", "— —"])
def test_a_line_with_a_word_outside_the_table_or_without_words_has_no_count(line: str) -> None:
    assert count(line) is None


def test_the_table_lists_no_word_twice() -> None:
    from llama_orch.haiku import syllables

    listed = [word for words in syllables._TABLE.values() for word in words.split()]
    assert len(listed) == len(set(listed)) == len(SYLLABLES)


def test_every_word_of_every_topic_has_a_count() -> None:
    for topic in TOPICS:
        nouns = [noun.text for noun in (*topic.keywords, *topic.images)]
        verbs = [form for verb in topic.verbs for form in (verb, third_person(verb))]
        missing = [
            w for w in (*nouns, *verbs, *topic.adjectives, *words_of(" ".join(topic.places))) if w not in SYLLABLES
        ]
        assert not missing, topic.name
