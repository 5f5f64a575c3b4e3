"""Errors, vectors and ranks of servers that speak OpenAI's API, in the shapes in which they come."""

import array
import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.plugins.engines._openai_results import WholeAnswer
from llama_orch.plugins.engines._openai_wire import failure_of_body

ROUTE = "/v1/completions"


def failure(status, body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return failure_of_body(status, raw, route=ROUTE)


@pytest.mark.parametrize(
    "status, body, kind, words",
    [
        (400, {"error": {"message": "This model's maximum context length is 9 tokens.", "code": 400}}, "context", "9"),
        (400, {"error": {"message": "x", "code": "context_length_exceeded"}}, "context", "x"),
        (400, {"error": {"message": "x", "type": "exceed_context_size_error"}}, "context", "x"),
        (400, {"error": {"message": "temperature must be", "code": 400}}, "invalid", "temperature"),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "too much"}]}, "invalid", "too much"),
        (401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}, "invalid", "refused the key"),
        (403, b"<html>no</html>", "invalid", "refused the key"),
        (404, {"detail": "Not Found"}, "invalid", "has no /v1/completions"),
        (404, {"error": "model 'x' not found"}, "invalid", "model 'x' not found"),
        (405, b"", "invalid", "has no /v1/completions"),
        (501, {"error": {"message": "no embeddings", "code": 501}}, "invalid", "no embeddings"),
        (302, b"", "invalid", "correct the pool's url"),
        (408, b"", "refused", "HTTP 408"),
        (429, {"error": {"message": "Rate limit reached", "type": "tokens"}}, "refused", "Rate limit"),
        (503, {"error": {"message": "Loading model", "code": 503}}, "refused", "Loading"),
        (500, {"object": "error", "message": "boom", "type": "x", "code": 500}, "server-error", "boom"),
        (500, {"error": {"message": "input (9 tokens) is too large to process.", "code": 500}}, "context", "9"),
        (500, b"\xff\xfe", "server-error", "HTTP 500"),
        (502, b"<html>bad gateway</html>", "server-error", "bad gateway"),
        (500, {"error": None}, "server-error", "HTTP 500"),
        (500, [], "server-error", "HTTP 500"),
    ],
)
def test_what_an_error_means(status, body, kind, words):
    found = failure(status, body)
    assert (found.kind, found.retriable) == (kind, kind not in ("context", "invalid"))
    assert words in found.message


@given(status=st.integers(300, 599), body=st.binary(max_size=100))
def test_every_error_has_a_message_of_bounded_length(status, body):
    found = failure(status, body)
    assert 0 < len(found.message) < 5000


def test_a_long_error_is_cut():
    assert len(failure(400, {"error": {"message": "x" * 10**6}}).message) <= 2000


# --- vectors


def whole(body, *, workload="embedding", count=2, pieces=1) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = WholeAnswer(workload, count)
    size = len(raw) // pieces + 1
    for at in range(0, len(raw), size):
        assert answer.feed(raw[at : at + size]) is None
    answer.finish()
    return answer


def test_vectors_stand_in_the_order_of_the_texts_as_little_endian_float32():
    data = [{"index": 1, "embedding": [3, 4.5]}, {"index": 0, "embedding": [1, -2]}]
    answer = whole({"data": data, "usage": {"prompt_tokens": 5}}, pieces=7)
    assert answer.end.result.vectors == [struct.pack("<2f", 1, -2), struct.pack("<2f", 3, 4.5)]
    assert (answer.start.prompt_tokens, answer.end.prompt_tokens, answer.end.tokens) == (5, 5, 0)


def test_vectors_may_come_as_base64():
    raw = [array.array("f", [1.0, n]).tobytes() for n in range(2)]
    answer = whole({"data": [{"embedding": base64.b64encode(one).decode()} for one in raw]})
    assert answer.end.result.vectors == raw


@pytest.mark.parametrize(
    "data",
    [
        [{"index": 0, "embedding": [1]}],
        [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}],
        [{"index": 0, "embedding": [1]}, {"index": 2, "embedding": [1]}],
        [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}],
        [{"embedding": []}, {"embedding": []}],
        [{"embedding": "AAA="}, {"embedding": "AAA="}],
        [{"embedding": "…"}, {"embedding": "…"}],
        [{"embedding": [1e300]}, {"embedding": [1]}],
        [{"embedding": "AADAfw=="}, {"embedding": "AACAPw=="}],  # not a number, and 1
        [{"embedding": [None]}, {"embedding": [1]}],
        [{"embedding": 5}],
        None,
    ],
)
def test_vectors_that_are_not_what_was_asked_for_are_garbage(data):
    answer = whole({"data": data})
    assert (answer.end, answer.failure.kind) == (None, "garbage")


# --- ranks


def test_ranks_stand_in_the_order_of_the_texts():
    results = [{"index": 1, "relevance_score": 0.75}, {"index": 0, "score": -1}]
    answer = whole({"results": results, "usage": {"total_tokens": 9}}, workload="rerank")
    assert answer.end.result.scores == ["-1.0", "0.75"]
    assert answer.end.prompt_tokens == 9


@pytest.mark.parametrize(
    "results",
    [
        [{"index": 0, "score": 1}],
        [{"index": 0, "score": 1}, {"index": 2, "score": 1}],
        [{"index": -1, "score": 1}, {"index": 0, "score": 1}],
        [{"index": 0}, {"index": 1}],
        {},
    ],
)
def test_ranks_that_are_not_what_was_asked_for_are_garbage(results):
    answer = whole({"results": results}, workload="rerank")
    assert (answer.end, answer.failure.kind) == (None, "garbage")


def test_an_error_with_status_200_is_a_failure():
    answer = whole({"error": {"message": "maximum context length", "code": 400}})
    assert (answer.end, answer.failure.kind) == (None, "context")


@given(body=st.binary(max_size=200), workload=st.sampled_from(["embedding", "rerank"]))
def test_no_bytes_raise(body, workload):
    answer = whole(body, workload=workload)
    assert answer.end is None
    assert answer.failure.retriable
