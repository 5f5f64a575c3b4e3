from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.haiku import words
from llama_orch.haiku.grammar import (
    BY_ALIAS,
    SHAPE,
    TOPICS,
    Noun,
    Topic,
    content,
    lines,
    phrases,
    singular,
    third_person,
    write_haiku,
)
from llama_orch.haiku.judge import judge
from llama_orch.haiku.syllables import count, words_of

topics = st.sampled_from(TOPICS)
seeds = st.integers(0, 2**32)


@given(topics, seeds)
def test_every_haiku_is_five_seven_five_and_names_its_topic_in_the_first_line(topic: Topic, seed: int) -> None:
    written = write_haiku(Random(seed), topic)
    assert [count(line) for line in written.split("\n")] == list(SHAPE)
    assert topic.is_named_in(written.split("\n")[0])
    assert judge(written, topic.name).passed


@given(topics, topics, seeds)
def test_a_haiku_on_two_topics_keeps_its_form_and_names_the_first(first: Topic, second: Topic, seed: int) -> None:
    assert judge(write_haiku(Random(seed), first, second=second), first.name).passed


@given(topics, seeds)
def test_no_two_lines_share_a_word_that_carries_meaning(topic: Topic, seed: int) -> None:
    meant = [content(line) for line in write_haiku(Random(seed), topic).split("\n")]
    assert not (meant[0] & meant[1] or meant[0] & meant[2] or meant[1] & meant[2])


@given(topics, seeds)
def test_no_line_says_a_word_that_carries_meaning_twice(topic: Topic, seed: int) -> None:
    for line in write_haiku(Random(seed), topic).split("\n"):
        assert len([word for word in words_of(line) if len(word) > 3]) == len(content(line))


@given(topics, seeds)
def test_the_same_seed_writes_the_same_haiku(topic: Topic, seed: int) -> None:
    assert write_haiku(Random(seed), topic) == write_haiku(Random(seed), topic)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_line_that_the_grammar_can_write_fits_its_place(topic: Topic) -> None:
    for position, syllables in enumerate(SHAPE):
        options = [line for _, found in lines(topic, position) for line in found]
        assert len(options) >= 40
        assert {count(line) for line in options} == {syllables}
        if position == 0:
            assert all(topic.is_named_in(line) for line in options)


@pytest.mark.parametrize(
    "names, syllables",
    [
        ("CLOSERS STRANGE_FIRST STRANGE_THIRD OTHER_FIRST OTHER_THIRD HELLO_FIRST", 5),
        ("STRANGE_SECOND OTHER_SECOND", 7),
    ],
)
def test_the_fixed_lines_have_the_syllables_of_their_place(names: str, syllables: int) -> None:
    for name in names.split():
        assert {count(line) for line in phrases(getattr(words, name))} == {syllables}, name


def test_there_are_sixty_topics_or_more_and_no_alias_means_two_of_them() -> None:
    assert len(TOPICS) >= 60
    assert len(BY_ALIAS) == sum(len(topic.aliases) for topic in TOPICS)


def test_a_text_on_another_topic_is_not_on_topic() -> None:
    assert not BY_ALIAS["rain"].is_named_in("the cold moon at dawn")
    assert not BY_ALIAS["cat"].is_named_in("a catalogue")


def test_one_and_many_of_a_keyword_both_count() -> None:
    assert BY_ALIAS["sea"].is_named_in("a wave")
    assert BY_ALIAS["river"].is_named_in("three Rivers")


def test_nouns_take_the_articles_and_verbs_of_their_kind() -> None:
    assert list(Noun.parse("~rain").phrases("cold")) == ["the cold rain", "cold rain"]
    assert list(Noun.parse("+waves").phrases(None)) == ["the waves", "waves"]
    assert list(Noun.parse("moon").phrases(None)) == ["the moon", "a moon"]
    assert list(Noun.parse("owl").phrases(None)) == ["the owl"]
    assert (Noun.parse("+waves").verb("break"), Noun.parse("sea").verb("break")) == ("break", "breaks")


@pytest.mark.parametrize(
    "verb, said", [("fall", "falls"), ("reach", "reaches"), ("hurry", "hurries"), ("play", "plays")]
)
def test_third_person(verb: str, said: str) -> None:
    assert third_person(verb) == said


@pytest.mark.parametrize("many, one", [("waves", "wave"), ("lilies", "lily"), ("glass", "glass"), ("moon", "moon")])
def test_singular(many: str, one: str) -> None:
    assert singular(many) == one
