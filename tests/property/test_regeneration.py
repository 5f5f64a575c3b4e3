"""A task with several answers and channels that is regenerated after a crash: nothing doubled, nothing lost (RCV-1).

The engine may cut its text differently the second time, and mix answers and channels in another order.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.engine_ports import FEATURES
from llama_orch.core.entries import batch_of
from llama_orch.core.types import Entry

from ..support.stage import Stage, on_stage

Key = tuple[int, str]
KEYS: list[Key] = [(0, ""), (0, "reasoning"), (0, "call:0"), (0, "tool:0"), (1, "")]

#: what an engine says by answer and channel, and in which pieces and order it comes
words = st.dictionaries(st.sampled_from(KEYS), st.text("abc é", min_size=1, max_size=8), min_size=1)


def pieces(draw: st.DrawFn, said: dict[Key, str]) -> list[Entry]:
    """One way to say it: characters cut into pieces, keys mixed."""
    left = dict(said)
    out = []
    while left:
        choice, channel = key = draw(st.sampled_from(sorted(left)))
        size = draw(st.integers(1, len(left[key])))
        out.append(Entry(text=left[key][:size], tokens=size, choice=choice, channel=channel, ids_complete=False))
        left[key] = left[key][size:]
        if not left[key]:
            del left[key]
    return out


@st.composite
def runs(draw: st.DrawFn) -> tuple[dict[Key, str], list[Entry], list[Entry], int]:
    said = draw(words)
    first, second = pieces(draw, said), pieces(draw, said)
    return said, first, second, draw(st.integers(0, len(first)))


def spoken(stage: Stage, task_id: str) -> dict[Key, str]:
    info = stage.info(task_id)
    out: dict[Key, str] = {}
    for choice in info.choices:
        found = {"": choice.text, "reasoning": choice.reasoning}
        for n, call in enumerate(choice.tool_calls):
            found |= {f"call:{n}": call.name, f"tool:{n}": call.arguments}
        out |= {(choice.index, channel): text for channel, text in found.items() if text}
    return out


@given(runs())
def test_what_was_said_before_the_crash_is_repeated_and_the_rest_follows_once(
    run: tuple[dict[Key, str], list[Entry], list[Entry], int],
) -> None:
    said, first, second, crash_after = run
    if (0, "tool:0") in said and (0, "call:0") not in said:
        said = {**said}  # arguments without a name are not shown as a call
        said.pop((0, "tool:0"))
    with on_stage() as stage:
        stage.engines["p"].features = FEATURES
        stage.pool_ready("p")
        stage.settle()
        task_id = stage.submit(n=2).task_id
        attempt = stage.attempt(task_id)
        attempt.start()
        for entry in first[:crash_after]:
            attempt.say_batch(batch_of([entry]))
        stage.settle()
        stage.restart()
        again = stage.attempt(task_id)
        again.start()
        for entry in second:
            again.say_batch(batch_of([entry]))
        assert not again.cancelled, "the same words were taken for others"
        again.end(finish_reasons=("stop", "stop"))
        stage.settle()
        end = stage.ended(task_id)
        assert end.outcome == "completed"
        assert end.tokens_out == sum(entry.tokens for entry in second)
        assert spoken(stage, task_id) == said


@given(runs(), st.data())
def test_other_words_than_before_are_noticed(
    run: tuple[dict[Key, str], list[Entry], list[Entry], int], data: st.DataObject
) -> None:
    _, first, second, _ = run
    with on_stage() as stage:
        stage.engines["p"].features = FEATURES
        stage.pool_ready("p")
        stage.settle()
        task_id = stage.submit(n=2, recovery="strict").task_id
        attempt = stage.attempt(task_id)
        attempt.start()
        for entry in first:
            attempt.say_batch(batch_of([entry]))
        stage.settle()
        stage.restart()
        changed = data.draw(st.integers(0, len(second) - 1))
        again = stage.attempt(task_id)
        again.start()
        for n, entry in enumerate(second):
            text = "x" * len(entry.text) if n == changed else entry.text
            again.say_batch(batch_of([Entry(text=text, choice=entry.choice, channel=entry.channel)]))
        again.end(finish_reasons=("stop", "stop"))
        again.free()
        stage.settle()
        assert stage.ended(task_id).code == "INTERRUPTED"
