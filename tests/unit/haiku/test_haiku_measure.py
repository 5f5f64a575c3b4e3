from __future__ import annotations

from llama_orch.haiku.measure import Answer, Tally

GOOD = "the cold rain at dawn\nthe puddle gleams in the lane\nwe look up and laugh"
TOO_SHORT = "the rain at dawn\nthe puddle gleams in the lane\nwe look up and laugh"
OFF_TOPIC = "the cold moon at dawn\nthe puddle gleams in the lane\nwe look up and laugh"


def tally(*answers: tuple[str, str], topic: str | None = "rain") -> Tally:
    made = Tally("here")
    for text, finish_reason in answers:
        made.add("Write a haiku about rain", Answer(text, finish_reason, 20), topic)
    return made


def test_only_what_is_well_formed_and_on_topic_and_ended_passes() -> None:
    made = tally((GOOD, "stop"), (TOO_SHORT, "stop"), (OFF_TOPIC, "stop"), (GOOD, "length"))
    assert (made.total, made.three_lines, made.well_formed, made.on_topic, made.passed) == (4, 3, 2, 3, 1)
    assert made.passed_percent == 25.0
    assert [verdict.reason for _, _, verdict in made.failures] == [
        "has 4-7-5 syllables, not 5-7-5",
        "does not name its topic",
        "",
    ]
    assert made.failed_topics == {"rain": 3}


def test_without_a_topic_the_form_alone_decides() -> None:
    made = tally((OFF_TOPIC, "stop"), (TOO_SHORT, "stop"), topic=None)
    assert (made.on_topic, made.passed) == (None, 1)


def test_nothing_asked_is_nothing_passed() -> None:
    assert tally().passed_percent == 0.0


def test_a_row_tells_the_shares_and_leaves_out_the_topic_where_there_is_none() -> None:
    assert tally((GOOD, "stop"), (TOO_SHORT, "stop")).row() == (
        "| here | 2 | 100.0 % | 50.0 % | 100.0 % | 50.0 % | 100.0 % |"
    )
    assert tally((GOOD, "stop"), topic=None).row() == "| here | 1 | 100.0 % | 100.0 % |  | 100.0 % | 100.0 % |"


def test_joined_tallies_count_as_one() -> None:
    made = Tally.joined([tally((GOOD, "stop")), tally((GOOD, "stop"), (OFF_TOPIC, "stop"))])
    assert (made.total, made.on_topic, made.passed, len(made.failures), len(made.texts)) == (3, 2, 2, 1, 2)
