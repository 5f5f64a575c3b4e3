from __future__ import annotations

import pytest

from llama_orch.haiku.judge import find_topic, judge


def haiku(
    first: str = "the cold rain at dawn",
    second: str = "the puddle gleams in the lane",
    third: str = "we look up and laugh",
) -> str:
    return f"{first}\n{second}\n{third}"


def test_a_haiku_on_its_topic_passes() -> None:
    verdict = judge(haiku(), "rain")
    assert verdict.passed
    assert verdict.syllables == (5, 7, 5)
    assert verdict.reason == ""


def test_blank_lines_and_spaces_around_do_not_matter() -> None:
    assert judge("\n " + haiku().replace("\n", " \n\n") + "\n", "rain").passed


@pytest.mark.parametrize(
    "text, reason",
    [
        ("the cold rain at dawn\nthe puddle gleams in the lane", "has 2 lines, not 3"),
        ("", "has 0 lines, not 3"),
        (haiku() + "\nwe look up and laugh", "has 4 lines, not 3"),
        (haiku(first="the cold rain today at dawn"), "has words that the syllable table does not hold: today"),
        (haiku(first="the rain at dawn"), "has 4-7-5 syllables, not 5-7-5"),
        (haiku(second="the puddle gleams in the long lane"), "has 5-8-5 syllables, not 5-7-5"),
        (haiku(first="the cold moon at dawn"), "does not name its topic"),
        (haiku(third="we look at zorblax"), "has words that the syllable table does not hold: zorblax"),
    ],
)
def test_what_is_wrong_is_told(text: str, reason: str) -> None:
    verdict = judge(text, "rain")
    assert not verdict.passed
    assert verdict.reason == reason


def test_without_a_topic_only_the_form_is_judged() -> None:
    assert judge(haiku(first="the cold moon at dawn")).passed
    assert judge(haiku()).on_topic is None
    assert not judge(haiku(first="the moon at dawn")).passed


def test_a_topic_is_found_by_any_of_its_names_in_any_case() -> None:
    assert find_topic(" The Ocean ").name == "sea"


def test_an_unknown_topic_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"topic: got 'rian'.*did you mean 'rain'"):
        judge(haiku(), "rian")
    with pytest.raises(ValueError, match=r"known are .*autumn"):
        find_topic("zzzzqqq")
