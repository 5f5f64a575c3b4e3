"""Streams of TGI and Triton: what they become, however they are cut up, and what becomes of broken ones."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.entries import pack, unpack
from llama_orch.core.logprobs import unpack_logprobs
from llama_orch.plugins.engines._said import Said
from llama_orch.plugins.engines._stop_strings import StopStrings
from llama_orch.plugins.engines._tgi_frames import TokenStream
from llama_orch.plugins.engines._tgi_frames import failure_of_body as tgi_failure
from llama_orch.plugins.engines._triton_frames import GenerateStream
from llama_orch.plugins.engines._triton_frames import failure_of_body as triton_failure


def said(batch):
    return [] if batch is None else list(batch.entries())


def read(stream, data, places=()) -> tuple[list[tuple[str, int, tuple[int, ...], str]], Any, Any]:
    """Everything that a stream becomes when it comes in these pieces."""
    cuts = [0, *sorted(places), len(data)]
    entries = [e for a, b in pairwise(cuts) for e in said(stream.feed(data[a:b]))]
    if stream.end is None and stream.failure is None:
        entries += said(stream.finish())
    return [(e.text, e.tokens, e.ids, e.logprob) for e in entries], stream.end, stream.failure


# --- TGI


def token(text, number=5, *, details=None, special=False, logprob=-0.5, **more):
    told = {"index": 1, "token": {"id": number, "text": text, "logprob": logprob, "special": special}, **more}
    told |= {"generated_text": None, "details": details}
    return b"data:" + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"


def details(reason="eos_token", tokens=1):
    return {"finish_reason": reason, "generated_tokens": tokens, "input_length": 7, "seed": 1}


TGI = (
    b": ping\n\n"
    + token(" Rä")
    + token("", 6)
    + token("🙂", 7)
    + token("</s>", 2, special=True, details=details(tokens=4))
)


@given(st.lists(st.integers(0, len(TGI)), max_size=12))
def test_a_stream_of_tgi_is_the_same_in_whatever_pieces(places):
    entries, end, failure = read(TokenStream(), TGI, places)
    assert failure is None
    assert entries == [(" Rä", 1, (5,), ""), ("", 1, (6,), ""), ("🙂", 1, (7,), ""), ("", 1, (2,), "")]
    assert (end.finish_reason, end.prompt_tokens, end.tokens) == ("stop", 7, 4)


def test_the_text_of_special_tokens_is_not_said_and_they_are_counted():
    entries, end, _ = read(TokenStream(), token("<|x|>", special=True) + token("a", details=details("length", 2)))
    assert [(text, count) for text, count, _, _ in entries] == [("", 1), ("a", 1)]
    assert (end.finish_reason, end.tokens) == ("length", 2)


def test_probabilities_come_with_their_alternatives():
    top = [{"id": 5, "text": "a", "logprob": -0.5}, {"id": 6, "text": "b", "logprob": -2.0}, {"id": 7, "text": "c"}]
    frame = token("a", logprob=1e-9, top_tokens=top, details=details())
    [(text, _, _, logprob)], _, _ = read(TokenStream(logprobs=True, top=2), frame)
    [found] = unpack_logprobs(text, logprob)
    assert found.logprob == "0.0", "rounding is no probability above one"
    assert [(other.token, other.logprob) for other in found.top] == [("a", "-0.5"), ("b", "-2.0")]


def test_a_stop_string_that_tgi_says_is_cut_off_and_ends_the_stream():
    frames = token("one t") + token("wo", 6) + token(" three", 7, details=details("stop_sequence", 3))
    entries, end, _ = read(TokenStream(stop=("two thr", "zzz")), frames)
    assert "".join(text for text, *_ in entries) == "one "
    assert (end.finish_reason, end.tokens) == ("stop", 3)


def test_a_stop_string_that_tgi_was_not_told_ends_the_stream_early():
    stream = TokenStream(stop=("b",))
    entries, end, _ = read(stream, token("a") + token("b") + token("c"))
    assert ("".join(text for text, *_ in entries), end.finish_reason, stream.early) == ("a", "stop", True)


def test_what_was_held_back_for_a_stop_string_is_said_at_the_end():
    entries, end, _ = read(TokenStream(stop=("never",)), token("a n", details=details("length")))
    assert entries == [("a ", 1, (5,), ""), ("n", 0, (), "")]
    assert end.tokens == 1


@pytest.mark.parametrize(
    "body, kind, retriable",
    [
        (b"", "cut", True),
        (token("a"), "cut", True),
        (b"data: {\n\n", "garbage", True),
        (b"data: []\n\n", "garbage", True),
        (b'data: {"index": 1}\n\n', "garbage", True),
        (token("a", 2**40), "garbage", True),
        (token("@").replace(b"@", b"\xff"), "garbage", True),
        (b'data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n', "refused", True),
        (b'data:{"error":"Request failed","error_type":"generation"}\n\n', "server-error", True),
        (b'data:{"error":"Incomplete","error_type":"incomplete_generation"}\n\n', "server-error", True),
        (b'data:{"error":"`top_p` must be","error_type":"validation"}\n\n', "invalid", False),
        (
            b'data:{"error":"`inputs` must have less than 9 tokens. Given: 10","error_type":"validation"}\n\n',
            "context",
            False,
        ),
        (
            b'data:{"error":"`inputs` tokens + `max_new_tokens` must be <= 9. Given","error_type":"validation"}\n\n',
            "context",
            False,
        ),
        (b'data:{"error":"something new"}\n\n', "server-error", True),
    ],
)
def test_a_broken_stream_of_tgi_is_a_failure_of_its_kind(body, kind, retriable):
    _, end, failure = read(TokenStream(), body)
    assert end is None
    assert (failure.kind, failure.retriable) == (kind, retriable)


@pytest.mark.parametrize(
    "status, body, kind",
    [
        (422, b'{"error":"Input validation error","error_type":"validation"}', "invalid"),
        (422, b"Failed to deserialize the JSON body", "invalid"),
        (424, b"", "server-error"),
        (429, b"{}", "refused"),
        (500, b'{"error":"Incomplete generation"}', "server-error"),
        (503, b"<html>", "refused"),
        (404, b"", "invalid"),
    ],
)
def test_a_status_of_tgi_means_what_its_kind_says(status, body, kind):
    assert tgi_failure(status, body).kind == kind


# --- Triton


def response(text, **more):
    told = {"model_name": "m", "model_version": "1", "text_output": text, **more}
    return b"data: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"


TRITON = response(" Rä") + response("") + response("🙂")


@given(st.lists(st.integers(0, len(TRITON)), max_size=12))
def test_a_stream_of_triton_is_the_same_in_whatever_pieces(places):
    entries, end, failure = read(GenerateStream(max_tokens=9), TRITON, places)
    assert failure is None
    assert [(text, count) for text, count, *_ in entries] == [(" Rä", 1), ("", 1), ("🙂", 1)]
    assert (end.finish_reason, end.tokens) == ("stop", 3)


def test_as_many_tokens_as_were_asked_for_are_an_end_by_length():
    assert read(GenerateStream(max_tokens=3), TRITON)[1].finish_reason == "length"


def test_a_model_that_tells_counts_and_reasons_is_believed():
    frames = response("a", num_output_tokens=2, num_input_tokens=11, finish_reason="None")
    frames += response("b", num_output_tokens=3, num_input_tokens=11, finish_reason="stop")
    entries, end, _ = read(GenerateStream(max_tokens=5), frames)
    assert [count for _, count, *_ in entries] == [2, 3]
    assert (end.finish_reason, end.tokens, end.prompt_tokens) == ("stop", 5, 11)


def test_an_answer_without_a_word_ends_all_the_same():
    stream = GenerateStream(max_tokens=3)
    entries, end, _ = read(stream, b"")
    assert (entries, end.finish_reason, end.tokens) == ([], "stop", 0)
    assert stream.start is not None


def test_a_stop_string_ends_a_stream_of_triton_early():
    stream = GenerateStream(max_tokens=9, stop=("x y",))
    entries, end, _ = read(stream, response("a x") + response(" y b") + response("c"))
    assert "".join(text for text, *_ in entries) == "a "
    assert (end.finish_reason, end.tokens, stream.early) == ("stop", 2, True)


@pytest.mark.parametrize(
    "body, kind, retriable",
    [
        (b"data: {", "cut", True),
        (b"data: {\n\n", "garbage", True),
        (b'data: {"other": 1}\n\n', "garbage", True),
        (b'data: {"text_output": ["a"]}\n\n', "garbage", True),
        (response("a", num_output_tokens=-1), "garbage", True),
        (response("a", num_output_tokens=True), "garbage", True),
        (response("@").replace(b"@", b"\xff"), "garbage", True),
        (response("a") + b'data: {"error":"out of memory"}\n\n', "server-error", True),
        (b'data: {"error":"Prompt length (9) exceeds maximum input length (8)"}\n\n', "context", False),
    ],
)
def test_a_broken_stream_of_triton_is_a_failure_of_its_kind(body, kind, retriable):
    _, end, failure = read(GenerateStream(max_tokens=3), body)
    assert end is None
    assert (failure.kind, failure.retriable) == (kind, retriable)


@pytest.mark.parametrize(
    "status, body, kind",
    [
        (400, b'data: {"error":"it failed"}\n\n', "server-error"),
        (400, b'{"error":"missing required input"}', "invalid"),
        (400, b'{"error":"Request for unknown model: \'m\' has no available versions"}', "refused"),
        (404, b'{"error":"Request for unknown model: \'m\' is not found"}', "invalid"),
        (501, b'{"error":"not supported"}', "invalid"),
        (503, b"", "refused"),
        (500, b"<html>", "server-error"),
    ],
)
def test_a_status_of_triton_means_what_its_kind_says(status, body, kind):
    assert triton_failure(status, body).kind == kind


# --- both


@given(
    st.lists(st.binary(max_size=40) | st.sampled_from([TGI, TRITON, b"data: ", b"\n\n", b'{"error":'])), st.booleans()
)
def test_whatever_comes_there_is_one_outcome_and_every_batch_is_well_formed(pieces, tgi):
    stream = TokenStream(stop=("a",)) if tgi else GenerateStream(max_tokens=5, stop=("a",))
    batches = [stream.feed(piece) for piece in pieces]
    over = (stream.end, stream.failure)
    if over == (None, None):
        batches.append(stream.finish())
    assert (stream.end is None) != (stream.failure is None)
    for batch in batches:
        assert batch is None or unpack(pack(batch)) == batch


@given(st.lists(st.text("abc", max_size=4), max_size=8), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_a_text_ends_before_its_first_stop_string_however_it_comes(pieces, words):
    stops = StopStrings(words)
    got = "".join(stops.feed(piece) for piece in pieces)
    whole = "".join(pieces)
    # The first to be complete ends the text, wherever another one that ends with it or later begins.
    ends = [(whole.find(word) + len(word), whole.find(word)) for word in words if word in whole]
    if not ends:
        assert (got + stops.rest(), stops.met) == (whole, False)
        return
    assert stops.met
    first_complete = min(end for end, _ in ends)
    assert whole.startswith(got)
    assert not any(word in got for word in words)
    assert len(got) < first_complete
    assert stops.rest() == ""


@given(
    st.lists(st.tuples(st.text("abc", max_size=3), st.integers(0, 2)), max_size=8), st.lists(st.text("abc", max_size=2))
)
def test_no_token_is_lost_while_text_is_held_back(pieces, words):
    collected = Said(words)
    entries = []
    for text, tokens in pieces:
        collected.add(text, tokens=tokens, ids=range(tokens))
        entries += said(collected.take())
        if collected.stop.met:
            break
    collected.close()
    entries += said(collected.take())
    assert sum(entry.tokens for entry in entries) == collected.tokens
    assert all(entry.text or entry.tokens for entry in entries)
