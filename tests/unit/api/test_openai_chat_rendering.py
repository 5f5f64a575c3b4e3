"""What chunks of a chat say is what the entries are, however they were cut (API-2, STR-6)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.api.render.openai_chat import ChatRenderer
from llama_orch.api.render.openai_parts import chat_logprobs, text_logprobs
from llama_orch.core.entries import batch_of
from llama_orch.core.errors import InternalError
from llama_orch.core.journal.live import Segment
from llama_orch.core.logprobs import TokenLogprob, pack_logprobs
from llama_orch.core.services.outcomes import call_id, choices_of
from llama_orch.core.services.streams import Ended, Heartbeat, Queued, Started
from llama_orch.core.types import Entry

from .test_rendering import STARTED, ended, events_of, plain_entries, texts

TASK = "7d3f2a10-0000-4000-8000-00000000beef"


def chat(**options: Any) -> ChatRenderer:
    wanted: dict[str, Any] = {"task_id": TASK, "model": 'm"odel', "created": 5, "include_usage": False} | options
    return ChatRenderer(correlation="x", failure=lambda event: InternalError(event.message), **wanted)


def streamed(renderer: ChatRenderer, parts: Sequence[Sequence[Entry]], **end: Any) -> list[dict[str, Any]]:
    """Chunks of a whole stream, each part a segment that comes for itself."""
    items: list[Any] = [Started(1, STARTED)]
    items += [Segment(1, 0, 1, batch_of(part), {}) for part in parts if part]
    items.append(Ended(1, 9, ended(**end)))
    data = [f["data"] for f in events_of(b"".join(renderer.render([item])[0] for item in items))]
    assert data.pop() == "[DONE]"
    return [json.loads(d) for d in data]


def joined(chunks: list[dict[str, Any]], n: int = 1) -> list[dict[str, Any]]:
    """What a client puts together for each choice."""
    found: list[dict[str, Any]] = [
        {"content": "", "reasoning": "", "calls": {}, "logprobs": [], "reason": None} for _ in range(n)
    ]
    for chunk in chunks:
        for choice in chunk["choices"]:
            one, delta = found[choice["index"]], choice["delta"]
            assert one["reason"] is None, "something after the end of a choice"
            one["reason"] = choice["finish_reason"]
            one["content"] += delta.get("content") or ""
            one["reasoning"] += delta.get("reasoning_content") or ""
            one["logprobs"] += (choice.get("logprobs") or {}).get("content") or []
            for call in delta.get("tool_calls", ()):
                told = one["calls"].setdefault(call["index"], {"arguments": ""})
                if "id" in call:
                    assert call["type"] == "function"
                    told |= {"id": call["id"], "name": call["function"]["name"]}
                told["arguments"] += call["function"]["arguments"]
    return found


@given(st.lists(plain_entries, min_size=1, max_size=4), st.booleans())
def test_chunks_join_to_the_text(parts: list[list[Entry]], include_usage: bool) -> None:
    chunks = streamed(chat(include_usage=include_usage), parts, finish_reason="length")
    said = "".join(e.text for part in parts for e in part)
    assert joined(chunks)[0]["content"] == said
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert {(c["id"], c["model"], c["created"], c["object"]) for c in chunks} == {
        (f"chatcmpl-{TASK}", 'm"odel', 5, "chat.completion.chunk")
    }
    assert [bool(c.get("usage")) for c in chunks] == [False] * (len(chunks) - 1) + [include_usage]
    assert all(("usage" in c) == include_usage for c in chunks)


@st.composite
def spoken(draw: st.DrawFn, n: int = 3) -> list[Entry]:
    """What several answers say at the same time: thoughts, then text or calls."""
    answers: list[list[Entry]] = []
    for choice in range(n):
        entries = [Entry(text=t, choice=choice, channel="reasoning") for t in draw(st.lists(texts, max_size=2))]
        for text in draw(st.lists(texts, max_size=3)):
            logprob = draw(st.sampled_from(["", "-0.25", pack_logprobs([TokenLogprob(text, "-1.5", text.encode())])]))
            entries.append(Entry(text=text, choice=choice, logprob=logprob))
        for call in range(draw(st.integers(0, 2))):
            entries.append(Entry(text=f"f{call}", tokens=0, choice=choice, channel=f"call:{call}"))
            pieces = draw(st.lists(texts, max_size=3))
            entries += [Entry(text=piece, choice=choice, channel=f"tool:{call}") for piece in pieces]
        answers.append(entries)
    said = []
    while any(answers):
        said.append(draw(st.sampled_from([a for a in answers if a])).pop(0))
    return said


@given(spoken(), st.data())
def test_every_cut_of_the_entries_gives_the_same_chunks(said: list[Entry], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=4)))
    parts = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    options: dict[str, Any] = {"n": 3, "logprobs": True, "include_usage": True}
    assert streamed(chat(**options), parts) == streamed(chat(**options), [said])


@given(spoken())
def test_a_stream_and_the_task_say_the_same(said: list[Entry]) -> None:
    chunks = streamed(chat(n=3, logprobs=True), [said], finish_reasons=["stop", "length", "tool_calls"])
    choices = choices_of(
        TASK,
        [batch_of(said)] if said else [],
        count=3,
        finish_reason="stop",
        finish_reasons=["stop", "length", "tool_calls"],
    )
    for told, choice in zip(joined(chunks, 3), choices, strict=True):
        assert told["content"] == choice.text
        assert told["reasoning"] == choice.reasoning
        assert [told["calls"][at] for at in sorted(told["calls"])] == [
            {"id": c.call_id, "name": c.name, "arguments": c.arguments} for c in choice.tool_calls
        ]
        assert told["logprobs"] == chat_logprobs(choice.logprobs)["content"]
        assert told["reason"] == choice.finish_reason


def test_a_call_is_told_with_its_id_and_its_name_before_its_arguments() -> None:
    said = [
        Entry(text="look_up", tokens=0, channel="call:0"),
        Entry(text='{"q":', channel="tool:0"),
        Entry(text="1}", channel="tool:0"),
    ]
    deltas = [c["choices"][0]["delta"] for c in streamed(chat(), [said], finish_reason="tool_calls")][1:-1]
    assert deltas == [
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": call_id(TASK, 0, 0),
                    "type": "function",
                    "function": {"name": "look_up", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"q":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]


def test_thoughts_are_counted_apart_in_the_usage() -> None:
    said = [Entry(text="hm", tokens=3, channel="reasoning"), Entry(text="yes")]
    usage = streamed(chat(include_usage=True), [said], tokens_out=4)[-1]["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 3}


def test_a_reader_who_gets_a_segment_ready_made_counts_its_thoughts_too() -> None:
    segment = Segment(1, 0, 1, batch_of([Entry(text="hm", channel="reasoning")]), {})
    items: list[Any] = [Started(1, STARTED), segment, Ended(1, 2, ended())]
    first, _ = chat(include_usage=True).render(items)
    assert segment.rendered
    again, _ = chat(include_usage=True).render(items)
    assert again == first
    assert b'"reasoning_tokens":1' in first


def test_a_segment_is_rendered_for_each_kind_of_reader_once() -> None:
    segment = Segment(1, 0, 1, batch_of([Entry(text="a", ids=(1,))]), {})
    for include_usage in (False, True, False):
        renderer = chat(include_usage=include_usage)
        renderer.render([Started(1, STARTED)])
        renderer.render([segment])
    assert len(segment.rendered) == 2


def test_log_probabilities_are_told_only_to_who_asked_for_them() -> None:
    said = [Entry(text="a", logprob="-0.5")]
    assert all("logprobs" not in c["choices"][0] for c in streamed(chat(), [said]))
    told = joined(streamed(chat(logprobs=True), [said]))[0]["logprobs"]
    assert told == [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]


def test_log_probabilities_of_text_that_is_held_back_are_told_at_once() -> None:
    half = pack_logprobs([TokenLogprob("\N{REPLACEMENT CHARACTER}", "-2.0", b"\xc3")])
    chunks = streamed(chat(logprobs=True), [[Entry(text="", logprob=half)]])
    assert joined(chunks)[0]["logprobs"][0]["bytes"] == [0xC3]


def test_what_is_impossible_has_a_number_that_json_can_hold() -> None:
    other = TokenLogprob("b", "-inf")
    told = chat_logprobs([TokenLogprob("\N{REPLACEMENT CHARACTER}", "-inf", b"", [other])])
    assert told["content"][0]["logprob"] == -9999.0
    assert told["content"][0]["bytes"] is None
    assert told["content"][0]["top_logprobs"][0]["logprob"] == -9999.0


def test_the_older_log_probabilities_tell_where_each_token_begins() -> None:
    tokens = [TokenLogprob("ab", "-1.0", b"ab", [TokenLogprob("ab", "-1.0"), TokenLogprob("x", "-2.0")])]
    assert text_logprobs([*tokens, TokenLogprob("c", "-0.5")], 7) == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-1.0, -0.5],
        "top_logprobs": [{"ab": -1.0, "x": -2.0}, {}],
        "text_offset": [7, 9],
    }


def test_an_answer_that_was_not_asked_for_is_left_out() -> None:
    chunks = streamed(chat(n=2), [[Entry(text="a", choice=1), Entry(text="b", choice=2)]])
    assert [one["content"] for one in joined(chunks, 2)] == ["", "a"]


@pytest.mark.parametrize("reason, told", [("stop", "stop"), ("cancelled", "cancelled"), ("error", "stop")])
def test_reasons_that_openai_has_no_word_for(reason: str, told: str) -> None:
    assert joined(streamed(chat(), [], finish_reason=reason))[0]["reason"] == told


def test_a_failed_chat_says_its_error_and_nothing_after_it() -> None:
    failed = ended(outcome="failed", finish_reason="error", code="WORKER_RESET", message="gone")
    raw, last = chat().render([Ended(1, 2, failed)])
    frames = events_of(raw)
    assert last
    assert len(frames) == 1
    assert json.loads(frames[0]["data"])["error"]["message"] == "gone"


def test_waiting_and_silence_are_comments() -> None:
    raw, last = chat().render([Queued(3, 1200), Heartbeat()])
    assert events_of(raw) == []
    assert not last
    assert b": queued position=3 predicted_start_ms=1200" in raw
