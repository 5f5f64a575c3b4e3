"""What Responses and Messages show of a task is a function of its entries: any cut of them gives the same events, any resume
the rest of them, and the official clients put them together to what is answered in one piece."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import anthropic
import httpx2
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from llama_orch.api.compat.failures import failure_of_event
from llama_orch.api.render.anthropic import MessageRenderer, message, signature
from llama_orch.api.render.blocks import Blocks, Kind
from llama_orch.api.render.responses import ResponseRenderer, Shown, blocks_of, ended_response
from llama_orch.core.entries import EntryBatch, batch_of
from llama_orch.core.errors import JournalUnavailableError
from llama_orch.core.events.task import TaskEnded, TaskStarted
from llama_orch.core.journal.live import Segment
from llama_orch.core.logprobs import TokenLogprob, pack_logprobs
from llama_orch.core.services.streams import Ended, Heartbeat, Queued, Started
from llama_orch.core.types import Entry

openais = TypeAdapter(ResponseStreamEvent).validate_python

TASK = "11111111-2222-4333-8444-555555555555"
ECHO = {
    "background": True,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
}
SHOWN = Shown(TASK, 1_700_000_000, "m", ECHO)
STARTED = TaskStarted(
    task_id=TASK, attempt=1, pool_id="p", replica_id="r0", engine="e", engine_version="1", seed=1, prompt_tokens=5
)

#: thoughts, text, and two calls, as engines say them
SAID = [
    Entry(text="let me", channel="reasoning"),
    Entry(text=" see", channel="reasoning"),
    Entry(text="I look", logprob=pack_logprobs([TokenLogprob("I look", "-0.5", b"I look", [TokenLogprob("A", "-1")])])),
    Entry(text=""),
    Entry(text=" it up"),
    Entry(text="weather", channel="call:0", tokens=0),
    Entry(text='{"city":', channel="tool:0"),
    Entry(text='"Oslo"}', channel="tool:0"),
    Entry(text="time", channel="call:1", tokens=0),
]

channels = st.sampled_from(["", "reasoning", "call:0", "tool:0", "call:1", "tool:1"])
entries = st.lists(
    st.builds(Entry, text=st.sampled_from(["", "a", "{", "ü\n"]), channel=channels, tokens=st.integers(0, 2)),
    max_size=25,
)
outcomes = st.sampled_from(
    [
        ("completed", "stop"),
        ("completed", "length"),
        ("completed", "tool_calls"),
        ("cancelled", "cancelled"),
        ("failed", "error"),
    ]
)


def ended(said: Sequence[Entry], outcome: str = "completed", reason: str = "stop", **more: Any) -> TaskEnded:
    return TaskEnded(
        task_id=TASK,
        outcome=outcome,
        finish_reason=reason,
        entries=len(said),
        tokens_out=sum(entry.tokens for entry in said),
        prompt_tokens=7,
        cached_tokens=2,
        code="WORKER_RESET" if outcome == "failed" else "",
        message="it died" if outcome == "failed" else "",
        **more,
    )


def cut(said: Sequence[Entry], cuts: Sequence[int]) -> list[Segment]:
    bounds = sorted({0, len(said), *(min(at, len(said)) for at in cuts)})
    return [Segment(first + 1, 0, 1, batch_of(said[first:last]), {}) for first, last in itertools.pairwise(bounds)]


def read(renderer: Any, items: Sequence[Any], together: bool = False) -> bytes:
    out = [renderer.opening()] if isinstance(renderer, ResponseRenderer) else []
    for some in [items] if together else [[item] for item in items]:
        data, last = renderer.render(some)
        out.append(data)
        if last:
            break
    return b"".join(out)


def events(raw: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in raw.decode().split("\n") if line.startswith("data: ")]


def response_bytes(said: Sequence[Entry], end: TaskEnded, cuts: Sequence[int] = (), after: int = -1) -> bytes:
    items = [Started(1, STARTED), *cut(said, cuts), Ended(1, len(said) + 1, end)]
    return read(ResponseRenderer(SHOWN, correlation="c", after=after), items)


def messages_renderer(*, thinking: bool = True, omitted: bool = False) -> MessageRenderer:
    return MessageRenderer(
        task_id=TASK, model="m", thinking=thinking, omitted=omitted, correlation="c", failure=failure_of_event
    )


def message_bytes(said: Sequence[Entry], end: TaskEnded, cuts: Sequence[int] = (), **options: bool) -> bytes:
    return read(messages_renderer(**options), [Started(1, STARTED), *cut(said, cuts), Ended(1, len(said) + 1, end)])


@given(entries, st.lists(st.integers(0, 25)), outcomes, st.booleans())
def test_any_cut_of_the_entries_gives_the_same_events(
    said: list[Entry], cuts: list[int], how: tuple[str, str], together: bool
) -> None:
    end = ended(said, *how)
    assert response_bytes(said, end, cuts) == response_bytes(said, end)
    assert message_bytes(said, end, cuts) == message_bytes(said, end)
    items = [Started(1, STARTED), *cut(said, cuts), Ended(1, len(said) + 1, end)]
    assert read(ResponseRenderer(SHOWN, correlation="c"), items, together) == response_bytes(said, end)


@given(entries, st.lists(st.integers(0, 25)), outcomes, st.integers(0, 120))
def test_the_numbers_are_dense_and_what_follows_one_is_the_rest(
    said: list[Entry], cuts: list[int], how: tuple[str, str], after: int
) -> None:
    end = ended(said, *how)
    whole = events(response_bytes(said, end))
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    rest = events(response_bytes(said, end, cuts, after))
    if after < len(whole):
        assert rest == whole[after + 1 :]
    else:
        (lost,) = rest
        assert lost["error"]["code"] == "RESUME_LOST"
        assert lost["sequence_number"] == len(whole) - 1


@given(entries, outcomes)
def test_the_last_event_shows_what_is_answered_in_one_piece(said: list[Entry], how: tuple[str, str]) -> None:
    end = ended(said, *how)
    last = events(response_bytes(said, end))[-1]
    assert last["response"] == ended_response(SHOWN, blocks_of([batch_of(said)] if said else []), end)


@given(entries, outcomes)
def test_items_are_closed_one_after_another_and_hold_what_their_deltas_said(
    said: list[Entry], how: tuple[str, str]
) -> None:
    said_by: dict[int, str] = {}
    done: dict[int, Any] = {}
    for event in events(response_bytes(said, ended(said, *how))):
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(said_by)
            said_by[event["output_index"]] = ""
        elif kind.endswith(".delta"):
            said_by[event["output_index"]] += event["delta"]
        elif kind == "response.output_item.done":
            done[event["output_index"]] = event["item"]
        elif "output" in event.get("response", {}) and done:
            for index, item in enumerate(event["response"]["output"]):
                text = item["arguments"] if "arguments" in item else "".join(p["text"] for p in item["content"])
                assert text == said_by[index]
    assert sorted(done) == sorted(said_by)


@given(entries, outcomes)
def test_every_event_is_one_of_openais(said: list[Entry], how: tuple[str, str]) -> None:
    for data in events(response_bytes(said, ended(said, *how))):
        assert openais(data).type == data["type"]


def streamed_by_openai(raw: bytes) -> Any:
    """What OpenAI's own client makes of the events."""
    answer = httpx2.MockTransport(
        lambda request: httpx2.Response(200, content=raw, headers={"content-type": "text/event-stream"})
    )
    with openai.OpenAI(
        base_url="http://127.0.0.1:1", api_key="x", max_retries=0, http_client=httpx2.Client(transport=answer)
    ) as client:
        with client.responses.stream(model="m", input="x") as stream:
            return stream.get_final_response()


def test_openais_client_puts_thoughts_text_and_calls_together() -> None:
    final = streamed_by_openai(response_bytes(SAID, ended(SAID, reason="tool_calls")))
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert final.output[0].content[0].text == "let me see"
    assert final.output_text == "I look it up"
    assert final.output[1].content[0].logprobs[0].top_logprobs[0].token == "A"
    assert final.output[2].name == "weather"
    assert json.loads(final.output[2].arguments) == {"city": "Oslo"}
    assert final.output[3].arguments == ""
    assert final.output[2].call_id != final.output[3].call_id
    assert final.usage.output_tokens_details.reasoning_tokens == 2
    assert final.usage.input_tokens_details.cached_tokens == 2


def streamed_by_anthropic(raw: bytes) -> Any:
    """What Anthropic's own client makes of the events."""
    answer = httpx2.MockTransport(
        lambda request: httpx2.Response(200, content=raw, headers={"content-type": "text/event-stream"})
    )
    with anthropic.Anthropic(
        base_url="http://127.0.0.1:1", api_key="x", max_retries=0, http_client=httpx2.Client(transport=answer)
    ) as client:
        with client.messages.stream(model="m", max_tokens=5, messages=[{"role": "user", "content": "x"}]) as stream:
            return stream.get_final_message()


def test_anthropics_client_puts_thoughts_text_and_calls_together() -> None:
    end = ended(SAID, reason="tool_calls")
    final = streamed_by_anthropic(message_bytes(SAID, end))
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    thought, text, weather, time = final.content
    assert (thought.thinking, thought.signature) == ("let me see", signature("let me see"))
    assert text.text == "I look it up"
    assert (weather.name, weather.input) == ("weather", {"city": "Oslo"})
    assert (time.name, time.input) == ("time", {})
    assert weather.id != time.id
    assert final.stop_reason == "tool_use"
    assert final.usage.input_tokens == 5
    assert final.usage.cache_read_input_tokens == 2
    assert final.usage.output_tokens == 7
    whole = message([batch_of(SAID)], end, model="m", thinking=True, omitted=False)
    told = final.to_dict()
    assert told["content"] == whole["content"]
    assert told["usage"]["output_tokens_details"] == whole["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


def test_thoughts_that_nobody_asked_for_are_counted_and_not_shown() -> None:
    end = ended(SAID)
    final = streamed_by_anthropic(message_bytes(SAID, end, thinking=False))
    assert [block.type for block in final.content] == ["text", "tool_use", "tool_use"]
    whole = message([batch_of(SAID)], end, model="m", thinking=False, omitted=False)
    assert final.to_dict()["content"] == whole["content"]
    assert whole["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


def test_thoughts_that_shall_be_omitted_keep_their_place() -> None:
    end = ended(SAID)
    final = streamed_by_anthropic(message_bytes(SAID, end, omitted=True))
    assert final.content[0].thinking == ""
    whole = message([batch_of(SAID)], end, model="m", thinking=True, omitted=True)
    assert final.to_dict()["content"] == whole["content"]


def test_arguments_that_the_model_left_unfinished_are_shown_as_they_are() -> None:
    said = [Entry(text="f", channel="call:0", tokens=0), Entry(text='{"a": [1', channel="tool:0")]
    whole = message([batch_of(said)], ended(said, reason="length"), model="m", thinking=False, omitted=False)
    assert whole["content"][0]["input"] == {"_invalid_json": '{"a": [1'}
    assert whole["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    "arguments",
    ['{"a": "\\ud83d"}', '{"\\udc00": 1}', '{"a": NaN}', '{"a":' + "[" * 5000 + "]" * 5000 + "}", "9" * 5000, "[1]"],
    ids=["half a character", "in a name", "no number", "nested too deeply", "a long number", "no object"],
)
def test_arguments_that_no_answer_can_hold_are_shown_as_they_are(arguments: str) -> None:
    said = [Entry(text="f", channel="call:0", tokens=0), Entry(text=arguments, channel="tool:0")]
    whole = message([batch_of(said)], ended(said, reason="tool_calls"), model="m", thinking=False, omitted=False)
    assert msgspec.json.decode(msgspec.json.encode(whole))["content"][0]["input"] == {"_invalid_json": arguments}


def test_a_stop_sequence_is_the_reason_and_is_told() -> None:
    end = ended([], stop_sequence="###")
    assert message([], end, model="m", thinking=False, omitted=False)["stop_reason"] == "stop_sequence"
    delta = events(message_bytes([], end))[-2]
    assert delta["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "###"}


def test_while_a_message_waits_it_is_pinged_and_told_its_place() -> None:
    data, over = messages_renderer().render([Queued(3, 1500), Heartbeat()])
    assert data == (
        b': queued position=3 predicted_start_ms=1500\n\nevent: ping\ndata: {"type":"ping"}\n\n'
        b': hb\n\nevent: ping\ndata: {"type":"ping"}\n\n'
    )
    assert not over


def test_while_a_response_waits_comments_tell_its_place() -> None:
    renderer = ResponseRenderer(SHOWN, correlation="c")
    renderer.opening()
    data, over = renderer.render([Queued(3, 1500), Heartbeat()])
    assert data == b": queued position=3 predicted_start_ms=1500\n\n: hb\n\n"
    assert not over


def test_a_transport_that_breaks_off_names_the_last_number_so_that_nothing_is_missed_after_it() -> None:
    renderer = ResponseRenderer(SHOWN, correlation="c")
    renderer.render([Started(1, STARTED)])
    (told,) = events(renderer.broken(JournalUnavailableError("the server stops", retry_after_ms=1000)))
    assert told["type"] == "error"
    assert told["sequence_number"] == 2
    assert told["error"]["code"] == told["code"] == "JOURNAL_UNAVAILABLE"


def test_a_failed_message_is_an_error_event_with_its_code_and_remedy() -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        streamed_by_anthropic(message_bytes(SAID, ended(SAID, "failed", "error")))
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["code"] == "WORKER_RESET"
    assert caught.value.body["error"]["remedy"]


def test_pieces_of_a_call_that_another_one_interrupted_are_still_its_own() -> None:
    blocks = Blocks()
    blocks.add_all(
        [
            batch_of(
                [
                    Entry(text="f", channel="call:0", tokens=0),
                    Entry(text="g", channel="call:1", tokens=0),
                    Entry(text="{}", channel="tool:0"),
                    Entry(text="[]", channel="tool:1"),
                ]
            )
        ]
    )
    assert [(block.name, block.text) for block in blocks.all] == [("f", "{}"), ("g", "[]")]


def test_other_choices_are_not_looked_at() -> None:
    blocks = Blocks()
    blocks.add_all([EntryBatch(dts_us=[0, 0], texts=["a", "b"], choices=[0, 1])])
    assert [(block.kind, block.text) for block in blocks.all] == [(Kind.TEXT, "a")]
