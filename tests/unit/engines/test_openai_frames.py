"""Streams of OpenAI's API: what they become, and what becomes of those that are not as they should be."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.logprobs import unpack_logprobs
from llama_orch.core.types import Entry
from llama_orch.plugins.engines._openai_frames import MAX_UNSAID_TOKENS, OpenAIStream

DONE = b"data: [DONE]\n\n"


def frame(*choices, **more):
    return b"data: " + json.dumps({"choices": list(choices), **more}, ensure_ascii=False).encode() + b"\n\n"


def text(said, *, index=0, finish=None, **more):
    return {"index": index, "text": said, "finish_reason": finish, **more}


def delta(*, index=0, finish=None, more=None, **fields):
    return {"index": index, "delta": fields, "finish_reason": finish, **(more or {})}


def call(index: int | None = 0, *, name=None, arguments=None, id_=None):
    function = {k: v for k, v in {"name": name, "arguments": arguments}.items() if v is not None}
    piece = {"index": index, "id": id_, "function": function}
    return {k: v for k, v in piece.items() if v is not None}


def read(*pieces, **options) -> tuple[Any, list[Entry]]:
    """The stream behind these pieces, and its entries."""
    stream, entries = OpenAIStream(**options), []
    for piece in pieces:
        entries += _entries(stream.feed(piece))
    return stream, entries


def _entries(batch):
    return [] if batch is None else list(batch.entries())


def said(entries):
    return [(e.choice, e.channel, e.text, e.tokens) for e in entries]


CHAT = (
    frame(delta(role="assistant", content="")),
    b": a comment\n\n",
    frame(delta(reasoning_content="hm ä")),
    frame(delta(reasoning="mm 🙂")),
    frame(delta(content="so 中")),
    frame(delta(tool_calls=[call(0, name="get", arguments="", id_="x")])),
    frame(delta(tool_calls=[call(0, arguments='{"a":')])),
    frame(delta(tool_calls=[call(0, arguments="1}")])),
    frame(delta(tool_calls=[call(1, name="put", arguments="{}", id_="y")])),
    frame(delta(finish="tool_calls")),
    frame(usage={"prompt_tokens": 7, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": 4}}),
    DONE,
)
CHAT_SAID = [
    (0, "reasoning", "hm ä", 1),
    (0, "reasoning", "mm 🙂", 1),
    (0, "", "so 中", 1),
    (0, "call:0", "get", 0),
    (0, "tool:0", '{"a":', 1),
    (0, "tool:0", "1}", 1),
    (0, "call:1", "put", 0),
    (0, "tool:1", "{}", 1),
    (0, "", "", 6),
]


# --- what streams become


def test_a_chat_becomes_thoughts_text_and_calls_on_their_channels_and_sums_up_to_the_servers_count():
    stream, entries = read(*CHAT)
    assert said(entries) == CHAT_SAID
    assert stream.failure is None
    end = stream.end
    assert (end.finish_reason, end.tokens, end.prompt_tokens, end.cached_tokens) == ("tool_calls", 12, 7, 4)
    assert all(not e.ids_complete for e in entries if e.tokens)


@given(cuts=st.lists(st.integers(0, sum(map(len, CHAT))), max_size=40))
def test_where_a_stream_is_cut_on_its_way_changes_nothing(cuts):
    whole, at, pieces = b"".join(CHAT), 0, []
    for cut in [*sorted(cuts), len(b"".join(CHAT))]:
        pieces.append(whole[at:cut])
        at = cut
    stream, entries = read(*pieces)
    assert said(entries) == CHAT_SAID
    assert stream.end == read(*CHAT)[0].end


@given(junk=st.binary(max_size=200), keep=st.integers(0, len(CHAT)))
def test_no_bytes_raise_and_none_are_an_end_without_done(junk, keep):
    stream, _ = read(*CHAT[:keep], junk)
    if keep < len(CHAT):
        assert stream.end is None or b"[DONE]" in junk
    stream.finish()
    assert (stream.end is None) != (stream.failure is None)
    assert stream.feed(CHAT[4]) is None


@given(at=st.integers(0, sum(map(len, CHAT[:-3])) - 1))
def test_a_stream_that_stops_before_its_finish_reason_was_cut(at):
    stream, _ = read(b"".join(CHAT)[:at])
    stream.finish()
    assert stream.end is None
    assert (stream.failure.kind, stream.failure.retriable) == ("cut", True)


def test_a_body_that_ends_properly_behind_every_finish_reason_is_an_end_without_done_too():
    stream, _ = read(frame(text("a")), frame(text("b", finish="length")))
    before = stream.end
    stream.finish()
    after = stream.end
    assert before is None
    assert (after.finish_reason, after.tokens) == ("length", 2)


def test_an_answer_that_is_no_stream_is_told_as_that():
    stream, _ = read(b'{"choices": [{"text": "all of it", "finish_reason": "stop"}]}')
    stream.finish()
    assert (stream.failure.kind, "single event" in stream.failure.message) == ("cut", True)


def test_done_without_a_finish_reason_is_no_end():
    stream, _ = read(frame(text("a")), DONE)
    assert stream.end is None
    assert stream.failure.kind == "cut"


@pytest.mark.parametrize(
    "told, meant",
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("repetition", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("function_call", "tool_calls"),
    ],
)
def test_finish_reasons_in_the_words_of_several_servers(told, meant):
    stream, _ = read(frame(text("a", finish=told)), DONE)
    assert stream.end.finish_reason == meant


@pytest.mark.parametrize(
    "told, kind, retriable",
    [("abort", "server-error", True), ("content_filter", "invalid", False), ("because", "garbage", True)],
)
def test_finish_reasons_that_are_no_end(told, kind, retriable):
    stream, _ = read(frame(text("a", finish=told)), DONE)
    assert stream.end is None
    assert (stream.failure.kind, stream.failure.retriable) == (kind, retriable)


def test_answers_are_told_apart_and_their_indices_go_on_behind_those_of_earlier_requests():
    stream, entries = read(
        frame(text("a", index=1), text("b", index=0)),
        frame(text("c", index=0, finish="stop")),
        frame(text("d", index=1, finish="length")),
        DONE,
        n=2,
        offset=3,
    )
    assert said(entries) == [(4, "", "a", 1), (3, "", "b", 1), (3, "", "c", 1), (4, "", "d", 1)]
    assert stream.end.finish_reasons == ("stop", "length")


def test_an_answer_that_nobody_asked_for_is_garbage():
    for index in (1, -1):
        stream, _ = read(frame(text("a", index=index)))
        assert stream.failure.kind == "garbage"


def test_the_stop_string_is_told_where_the_server_tells_it():
    stream, _ = read(frame(text("a", finish="stop", stop_reason="\n\n")), DONE)
    assert stream.end.stop_sequence == "\n\n"
    stream, _ = read(frame(text("a", finish="stop", stop_reason=151645)), DONE)
    assert stream.end.stop_sequence == ""


# --- calls


def test_a_name_that_is_repeated_with_every_piece_is_said_once():
    _, entries = read(
        frame(delta(tool_calls=[call(name="get", arguments="{", id_="x")])),
        frame(delta(tool_calls=[call(name="get", arguments="}", id_="x")])),
    )
    assert said(entries) == [(0, "call:0", "get", 0), (0, "tool:0", "{", 1), (0, "tool:0", "}", 1)]


def test_calls_without_an_index_are_told_apart_by_their_ids():
    pieces = [call(None, name="get", arguments="{", id_="x"), call(None, arguments="}")]
    pieces += [call(None, name="put", arguments="[", id_="y"), call(None, arguments="]", id_="y")]
    _, entries = read(*(frame(delta(tool_calls=[piece])) for piece in pieces))
    assert [(e.channel, e.text) for e in entries] == [
        ("call:0", "get"),
        ("tool:0", "{"),
        ("tool:0", "}"),
        ("call:1", "put"),
        ("tool:1", "["),
        ("tool:1", "]"),
    ]


def test_a_call_that_was_forced_ends_as_a_call():
    stream, _ = read(frame(delta(tool_calls=[call(name="get", arguments="{}")])), frame(delta(finish="stop")), DONE)
    assert stream.end.finish_reason == "tool_calls"


def test_the_tokens_of_a_name_are_counted_with_its_arguments():
    choice = delta(tool_calls=[call(name="get")], more={"token_ids": [4, 5]})
    _, entries = read(frame(choice))
    assert said(entries) == [(0, "call:0", "get", 0), (0, "tool:0", "", 2)]
    assert entries[1].ids == (4, 5)


def test_a_call_beyond_all_measure_is_garbage():
    stream, _ = read(frame(delta(tool_calls=[call(100_000, name="get")])))
    assert stream.failure.kind == "garbage"


# --- tokens


def test_ids_count_and_frames_without_text_keep_theirs():
    first = text("", token_ids=[135], prompt_token_ids=[1, 2, 3])
    stream, entries = read(
        frame(first), frame(text("ß", token_ids=[387, 2], finish="stop")), frame(usage={"completion_tokens": 3}), DONE
    )
    assert [(e.text, e.tokens, e.ids, e.ids_complete) for e in entries] == [
        ("", 1, (135,), True),
        ("ß", 2, (387, 2), True),
    ]
    assert stream.start.prompt_tokens == 3
    assert stream.end.tokens == 3


def test_a_running_count_tells_what_a_chunk_stands_for():
    def counted(n, said):
        return frame(delta(content=said), timings={"predicted_n": n, "cache_n": 5, "prompt_ms": 1.5})

    stream, entries = read(
        counted(1, "a"),
        counted(4, "🙂"),
        frame(delta(finish="length"), timings={"predicted_n": 5, "prompt_ms": 1.5, "predicted_ms": 2.25, "cache_n": 5}),
        DONE,
    )
    assert [(e.text, e.tokens) for e in entries] == [("a", 1), ("🙂", 3), ("", 1)]
    end = stream.end
    assert (end.tokens, end.prefill_us, end.decode_us, end.cached_tokens) == (5, 1500, 2250, 5)


def test_what_the_account_counts_less_than_was_journaled_is_told_and_takes_nothing_back():
    stream, entries = read(
        frame(text("a")), frame(text("b", finish="stop")), frame(usage={"completion_tokens": 1}), DONE
    )
    assert sum(e.tokens for e in entries) == 2
    assert stream.end.tokens == 1


def test_an_account_beyond_all_measure_is_garbage():
    usage = {"completion_tokens": MAX_UNSAID_TOKENS + 2}
    stream, entries = read(frame(text("a", finish="stop")), frame(usage=usage), DONE)
    assert stream.end is None
    assert stream.failure.kind == "garbage"
    assert len(entries) == 1


@pytest.mark.parametrize(
    "broken",
    [
        b"data: {\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"choices":[{"index":0,"text":"\xff\xc3"}]}\n\n',
        frame(text("a", token_ids=[2**40])),
        frame(text("a"), usage={"prompt_tokens": 2**70}),
        b"data: " + b"[" * 200_000 + b"\n\n",
    ],
)
def test_frames_that_cannot_be_read_are_garbage(broken):
    stream, _ = read(frame(text("a")), broken)
    assert (stream.end, stream.failure.kind, stream.failure.retriable) == (None, "garbage", True)


# --- probabilities


def probabilities(entries):
    return [token for entry in entries for token in unpack_logprobs(entry.text, entry.logprob)]


def test_probabilities_of_chats_have_bytes_ids_and_the_likeliest():
    tops = [{"token": word, "logprob": -n - 0.5, "bytes": list(word.encode())} for n, word in enumerate("abc")]
    info = {"token": "ä", "logprob": -0.25, "bytes": [195, 164], "id": 9, "top_logprobs": tops[::-1]}
    _, entries = read(frame(delta(content="ä", more={"logprobs": {"content": [info]}})), top=2)
    assert (entries[0].ids, entries[0].ids_complete, entries[0].tokens) == ((9,), True, 1)
    (token,) = probabilities(entries)
    assert (token.token, token.logprob, token.raw) == ("ä", "-0.25", b"\xc3\xa4")
    assert [(other.token, other.logprob) for other in token.top] == [("a", "-0.5"), ("b", "-1.5")]


def test_probabilities_of_completions_count_tokens_and_write_bytes_as_they_do():
    told = {
        "tokens": ["bytes:\\xc3", "bytes:\\xa4"],
        "token_logprobs": [-0.5, None],
        "top_logprobs": [{"y": -2.0, "bytes:\\xc3": -0.5, "z": -3.0}, None],
    }
    _, entries = read(frame(text("ä", logprobs=told)), top=2)
    assert [(e.text, e.tokens) for e in entries] == [("ä", 2)]
    (token,) = probabilities(entries)
    assert (token.token, token.raw) == ("\ufffd", b"\xc3")
    assert [(other.token, other.logprob) for other in token.top] == [("\ufffd", "-0.5"), ("y", "-2.0")]


def test_a_probability_alone_is_a_decimal():
    told = {"tokens": [" a"], "token_logprobs": [-0.5], "top_logprobs": None}
    _, entries = read(frame(text(" a", logprobs=told)), top=0)
    assert entries[0].logprob == "-0.5"


def test_probabilities_that_nobody_asked_for_are_not_kept():
    told = {"tokens": [" a"], "token_logprobs": [-0.5], "top_logprobs": None}
    _, entries = read(frame(text(" a", logprobs=told)))
    assert entries[0].logprob == ""


# --- errors inside a stream


@pytest.mark.parametrize(
    "told, kind",
    [
        ({"message": "engine died", "type": "InternalServerError", "code": 500}, "server-error"),
        ({"message": "slow down", "code": 429}, "refused"),
        ({"message": "Requested tokens exceed the maximum context length", "code": 400}, "context"),
        ({"message": "so long", "code": "context_length_exceeded", "type": "invalid_request_error"}, "context"),
        ({"message": "Invalid grammar specification", "code": 400}, "invalid"),
        ("it broke", "server-error"),
        ({}, "server-error"),
    ],
)
def test_an_error_in_a_stream_is_a_failure_whatever_comes_behind_it(told, kind):
    stream, entries = read(
        frame(text("a", finish="stop")), b"data: " + json.dumps({"error": told}).encode() + b"\n\n" + DONE
    )
    assert stream.end is None
    assert stream.failure.kind == kind
    assert stream.failure.message
    assert [e.text for e in entries] == ["a"]


def test_an_error_may_be_the_frame_itself():
    told = {"object": "error", "message": "no such model", "code": 404}
    stream, _ = read(b"data: " + json.dumps(told).encode() + b"\n\n")
    assert (stream.failure.kind, stream.failure.message) == ("invalid", "no such model")
