"""Calls as values: errors by code, and when the same call may be sent again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.client import (
    ApiError,
    BackpressureError,
    LlamaOrchError,
    RateLimitedError,
    ServerDefectError,
    SilentError,
    TaskRequest,
    UnavailableError,
    UnreachableError,
    calls,
)
from llama_orch.client.calls import Backoff, Call, may_repeat
from llama_orch.client.errors import BY_CODE, api_error

BUSY = b'{"code": "ADMISSION_REJECT", "message": "full", "retriable": true, "remedy": "Wait.", "retry_after_ms": 2500}'


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_a_code_is_an_exception_of_its_own_in_every_envelope(code):
    body = f'{{"code": "{code}", "message": "no", "remedy": "do", "field": "f", "got": 1, "correlation_id": "c"}}'
    for raw in (body, f'{{"error": {body}}}', f'{{"type": "error", "error": {body}}}'):
        error = api_error(400, raw.encode())
        assert type(error) is BY_CODE[code]
        assert (error.code, error.message, error.remedy, error.field, error.got) == (code, "no", "do", "f", 1)
        assert error.correlation_id == "c"


def test_what_a_server_says_of_retries_is_kept():
    error = api_error(429, BUSY)
    assert isinstance(error, BackpressureError)
    assert (error.retriable, error.retry_after_ms) == (True, 2500)
    assert api_error(503, b"", {"retry-after": "7"}).retry_after_ms == 7000
    assert api_error(503, b"", {"retry-after": "soon"}).retry_after_ms is None
    assert api_error(429, BUSY, {"retry-after": "7"}).retry_after_ms == 2500


@pytest.mark.parametrize(
    "status, kind", [(429, BackpressureError), (503, UnavailableError), (502, UnavailableError), (418, ApiError)]
)
def test_an_answer_without_a_known_code_is_told_by_its_status(status, kind):
    for raw in (b"", b"<html>", b'{"code": "NEWER", "message": "m"}', b'"text"', b"[1]", b"\xff"):
        assert type(api_error(status, raw)) is kind


@given(st.integers(400, 599), st.binary(max_size=200))
def test_any_error_answer_is_an_exception(status, raw):
    assert api_error(status, raw).status == status


def test_query_values_are_quoted_and_none_left_out():
    call = calls.tasks(state=None, model_ref="a b&c", session_id=None, before=None, limit=3)
    assert call.target == "/v1/tasks?model_ref=a+b%26c&limit=3"
    assert calls.task("../x?y").target == "/v1/tasks/..%2Fx%3Fy"


def test_a_request_says_only_what_was_set():
    call = calls.submit(TaskRequest(model_ref="m", prompt="ä", seed=0, stop=["x"]), "k")
    assert call.body == '{"model_ref":"m","seed":0,"prompt":"ä","stop":["x"]}'.encode()
    assert call.headers["Idempotency-Key"] == "k"


def test_an_answer_that_is_none_of_ours_is_told():
    with pytest.raises(LlamaOrchError, match="GET /v1/pools"):
        calls.pools().result(200, b"<html>", {})
    with pytest.raises(LlamaOrchError, match="pools"):
        calls.pools().result(200, b"{}", {})
    with pytest.raises(RateLimitedError):
        calls.pools().result(429, b'{"code": "RATE_LIMITED"}', {})


def test_only_what_is_safe_is_repeated_and_only_where_it_may_help():
    safe: Call[None] = Call("GET", "/x", repeatable=True)
    unsafe: Call[None] = Call("POST", "/x")
    hopeful = [UnreachableError("x"), SilentError("x"), *(api_error(status, b"") for status in (429, 502, 503, 504))]
    hopeless = [api_error(status, b"") for status in (400, 401, 404, 409, 500)]
    assert all(may_repeat(safe, error) for error in hopeful)
    assert not any(may_repeat(safe, error) for error in hopeless)
    assert not any(may_repeat(unsafe, error) for error in [*hopeful, *hopeless])
    assert isinstance(hopeless[-1], ApiError)


@given(st.integers(1, 40), st.floats(0, 1))
def test_pauses_grow_and_stay_between_half_and_all_of_their_bound(failures, luck):
    backoff = Backoff(None, rand=lambda: luck, failures=failures - 1)
    pause_s = backoff.again(UnreachableError("x"))
    bound = min(5.0, 0.1 * 2 ** (failures - 1))
    assert pause_s is not None
    assert bound / 2 <= pause_s <= bound


def test_a_server_that_asks_for_too_long_is_not_waited_for():
    assert Backoff(3, rand=lambda: 0.0).again(api_error(429, BUSY)) == 2.5
    assert Backoff(3).again(api_error(429, b'{"retry_after_ms": 3600000}')) is None


def test_a_defect_of_the_server_is_no_reason_to_come_again():
    error = api_error(500, b'{"code": "INTERNAL", "message": "x", "retriable": false, "correlation_id": "abc"}')
    assert isinstance(error, ServerDefectError)
    assert not error.retriable
