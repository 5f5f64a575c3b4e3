"""The model that ships, on real llama.cpp. The whole bar is `python -m llama_orch.haiku.measure`; this is its sample."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llama_orch.haiku import model_path, topics
from llama_orch.haiku.judge import judge
from llama_orch.haiku.measure import (
    BAR_PERCENT,
    OTHER_PROMPTS,
    OTHER_REQUESTS,
    PROMPT,
    UNKNOWN_TOPICS,
    Client,
    Tally,
    ask_bare,
    ask_topics,
    ask_verses,
    chat,
    real_llama,
)

pytestmark = pytest.mark.real_llama


@pytest.fixture(scope="module")
def llama() -> Iterator[Client]:
    with real_llama(model_path()) as client:
        yield client


def told(tally: Tally) -> str:
    return "\n\n".join(f"[{p}] {v.reason or a.finish_reason}\n{a.text}" for p, a, v in tally.failures[:5])


def test_its_topics_give_three_lines_of_five_seven_five_on_topic(llama: Client) -> None:
    tally = ask_topics(llama, "sample of the bar", PROMPT, topics(), range(1000, 1004))
    assert tally.passed_percent >= BAR_PERCENT, told(tally)
    assert len(tally.texts) > 0.9 * tally.total


@pytest.mark.parametrize("wording", OTHER_PROMPTS)
def test_other_wordings_do_as_well(llama: Client, wording: str) -> None:
    tally = ask_topics(llama, wording, wording, topics(), [7])
    assert tally.passed_percent >= 90, told(tally)


def test_a_bare_completion_is_a_haiku_too(llama: Client) -> None:
    tally = ask_bare(llama, topics(), [3])
    assert tally.passed_percent >= 90, told(tally)


def test_unknown_topics_and_other_requests_are_answered_in_verse(llama: Client) -> None:
    prompts = [*(PROMPT.format(topic=name) for name in UNKNOWN_TOPICS), *OTHER_REQUESTS]
    tally = ask_verses(llama, "verse", prompts, range(4))
    assert tally.passed_percent >= 90, told(tally)


def test_the_same_seed_gives_the_same_text_and_other_seeds_other_texts(llama: Client) -> None:
    asked = PROMPT.format(topic="rain")
    assert len({llama.ask(asked, seed=5).text for _ in range(3)}) == 1
    assert len({llama.ask(asked, seed=seed).text for seed in range(20)}) >= 15


def test_a_system_sentence_does_not_disturb_it(llama: Client) -> None:
    system = {"role": "system", "content": "You are a helpful assistant."}
    answers = [llama.ask(PROMPT.format(topic="snow"), seed=seed, before=[system]) for seed in range(10)]
    assert sum(judge(answer.text, "snow").passed for answer in answers) >= 8


def test_it_keeps_its_form_and_its_topic_through_a_chat_of_ten_turns(llama: Client) -> None:
    tally = Tally.joined([chat(llama, topics()[start : start + 10], seed=start) for start in (0, 20, 40)])
    assert tally.passed_percent >= 90, told(tally)
