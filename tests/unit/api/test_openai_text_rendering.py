"""What chunks of text completions say is what the entries are, for one prompt and for several (API-2)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llama_orch.api.render.openai_text import TextRenderer, text_completion
from llama_orch.core.entries import batch_of
from llama_orch.core.errors import InternalError
from llama_orch.core.journal.live import Segment
from llama_orch.core.logprobs import TokenLogprob, pack_logprobs
from llama_orch.core.services.outcomes import choices_of
from llama_orch.core.services.streams import Ended, Started
from llama_orch.core.services.tasks import TaskInfo, Usage
from llama_orch.core.types import Entry

from .test_rendering import STARTED, ended, events_of, plain_entries, texts

TASK = "7d3f2a10-0000-4000-8000-00000000beef"


def renderer(**options: Any) -> TextRenderer:
    wanted: dict[str, Any] = {"include_usage": False, "echoes": [""], "n": 1, "logprobs": False} | options
    return TextRenderer(
        task_id=TASK,
        model='m"odel',
        created=5,
        correlation="x",
        failure=lambda event: InternalError(event.message),
        **wanted,
    )


def items_of(parts: Sequence[Sequence[Entry]], **end: Any) -> list[Any]:
    """A whole stream, each part a segment."""
    segments = [Segment(1, 0, 1, batch_of(part), {}) for part in parts if part]
    return [Started(1, STARTED), *segments, Ended(1, 9, ended(**end))]


def chunks_of(raw: bytes) -> list[dict[str, Any]]:
    data = [f["data"] for f in events_of(raw)]
    assert data.pop() == "[DONE]"
    return [json.loads(d) for d in data]


def streamed(one: TextRenderer, parts: Sequence[Sequence[Entry]], **end: Any) -> list[dict[str, Any]]:
    return chunks_of(b"".join(one.render([item])[0] for item in items_of(parts, **end)))


def joined(chunks: list[dict[str, Any]], choices: int = 1) -> list[str]:
    said = [""] * choices
    for chunk in chunks:
        for choice in chunk["choices"]:
            said[choice["index"]] += choice["text"]
    return said


@given(st.lists(plain_entries, min_size=1, max_size=4), st.booleans())
def test_chunks_join_to_the_text(parts: list[list[Entry]], include_usage: bool) -> None:
    chunks = streamed(renderer(include_usage=include_usage), parts, finish_reason="length")
    assert joined(chunks) == ["".join(e.text for part in parts for e in part)]
    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert {(c["id"], c["model"], c["created"], c["object"]) for c in chunks} == {
        (f"cmpl-{TASK}", 'm"odel', 5, "text_completion")
    }
    assert [bool(c.get("usage")) for c in chunks] == [False] * (len(chunks) - 1) + [include_usage]


likely = st.builds(
    lambda text, choice: Entry(text=text, choice=choice, logprob=pack_logprobs([TokenLogprob(text, "-1.5")])),
    texts,
    st.integers(0, 1),
)


@given(st.lists(likely, min_size=1, max_size=9), st.data())
def test_every_cut_gives_the_same_chunks_and_what_the_task_says(said: list[Entry], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=4)))
    parts = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    options: dict[str, Any] = {"n": 2, "logprobs": True, "echoes": ["begin "]}
    chunks = streamed(renderer(**options), parts)
    assert chunks == streamed(renderer(**options), [said])
    choices = choices_of(TASK, [batch_of(said)], count=2, finish_reason="stop")
    info = TaskInfo(task_id=TASK, state="completed", model_ref="m", owner="local", priority="batch", choices=choices)
    whole = text_completion([info], model="m", created=5, echoes=["begin "], logprobs=True)
    for choice in whole["choices"]:
        pieces = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [v for piece in pieces if piece["logprobs"] for v in piece["logprobs"][name]] == values
    for choice in whole["choices"]:
        told = choice["logprobs"]
        for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
            assert choice["text"][offset : offset + len(token)] == token


def test_answers_of_the_second_prompt_follow_those_of_the_first() -> None:
    one = renderer(echoes=["A", "B"], n=2, include_usage=True)
    first = items_of([[Entry(text="a0"), Entry(text="a1", choice=1)]], tokens_out=2)
    second = items_of([[Entry(text="b0"), Entry(text="b1", choice=1)]], finish_reasons=["stop", "length"], tokens_out=3)
    parts = [(0, first[0]), (1, second[0]), (1, second[1]), (0, first[1]), (1, second[2])]
    raw, last = one.render_parts(parts)
    assert not last
    assert one.abandoned() == set()
    more, last = one.render_parts([(0, first[2])])
    assert last
    chunks = chunks_of(raw + more)
    assert joined(chunks, 4) == ["Aa0", "Aa1", "Bb0", "Bb1"]
    reasons = {c["choices"][0]["index"]: c["choices"][0]["finish_reason"] for c in chunks if c["choices"]}
    assert reasons == {0: "stop", 1: "stop", 2: "stop", 3: "length"}
    assert chunks[-1]["usage"]["prompt_tokens"] == 6
    assert chunks[-1]["usage"]["completion_tokens"] == 5


def test_a_segment_of_one_prompt_is_not_rendered_as_anothers() -> None:
    segment = Segment(1, 0, 1, batch_of([Entry(text="x", ids=(1,))]), {})
    one = renderer(echoes=["", ""])
    first, _ = one.render_parts([(0, segment)])
    second, _ = one.render_parts([(1, segment)])
    assert b'"index":0' in first
    assert b'"index":1' in second
    assert one.render_parts([(0, segment)])[0] == first


def test_one_failure_ends_the_stream_and_leaves_the_others() -> None:
    one = renderer(echoes=["", ""])
    failed = ended(outcome="failed", finish_reason="error", code="WORKER_RESET", message="gone")
    raw, last = one.render_parts([(1, Ended(1, 2, failed))])
    assert last
    assert json.loads(events_of(raw)[0]["data"])["error"]["message"] == "gone"
    assert one.abandoned() == {0}


def test_a_text_completion_of_several_prompts_adds_up_their_usage() -> None:
    infos = [
        TaskInfo(
            task_id=f"{n}",
            state="completed",
            model_ref="m",
            owner="local",
            priority="batch",
            text=text,
            finish_reason="stop",
            usage=Usage(3, 1, 2, 5),
        )
        for n, text in enumerate(["a", "b"])
    ]
    whole = text_completion(infos, model="m", created=5, echoes=["", ""], logprobs=False)
    assert [(c["index"], c["text"], c["logprobs"]) for c in whole["choices"]] == [(0, "a", None), (1, "b", None)]
    assert whole["id"] == "cmpl-0"
    assert whole["usage"]["total_tokens"] == 10
    assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
