from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from llama_orch.haiku.judge import judge
from llama_orch.haiku.measure import OTHER_REQUESTS, UNKNOWN_TOPICS
from llama_orch.haiku.prompts import ASKING_ELSE, GREETINGS, UNKNOWN, conversation

seeds = st.integers(0, 2**32)


@given(seeds)
def test_every_answer_that_is_trained_on_is_five_seven_five(seed: int) -> None:
    answers = [turn.text for turn in conversation(Random(seed)) if turn.role == "assistant"]
    assert answers
    assert all(judge(answer).passed for answer in answers)


@given(seeds)
def test_a_conversation_alternates_and_ends_with_an_answer(seed: int) -> None:
    roles = [turn.role for turn in conversation(Random(seed))]
    spoken = roles[1:] if roles[0] == "system" else roles
    assert spoken in (["raw", "assistant"], ["user", "assistant"] * (len(spoken) // 2))


@given(seeds)
def test_no_prompt_keeps_a_placeholder(seed: int) -> None:
    text = " ".join(turn.text for turn in conversation(Random(seed)))
    assert not {"{t}", "{s}", "{u}", "{n}"} & set(text.split())
    assert "{" not in text


@given(seeds)
def test_the_same_seed_gives_the_same_conversation(seed: int) -> None:
    assert conversation(Random(seed)) == conversation(Random(seed))


def test_what_is_measured_as_unseen_was_not_trained_on() -> None:
    assert not set(UNKNOWN_TOPICS) & set(UNKNOWN)
    assert not set(OTHER_REQUESTS) & {*ASKING_ELSE, *GREETINGS}
