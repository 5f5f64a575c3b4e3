"""Rates of keys on the wire: status, headers, and what capabilities say of them (ADM-7, attack 48)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import openai
import pytest

from .keyed_server import PROMPT, KeyedServer, code_of

CHAT = {"model": "mock", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    started = KeyedServer(tmp_path_factory.mktemp("limits"))
    yield started
    started.stop()


def test_more_requests_than_allowed_are_429_with_when_to_come_back(server: KeyedServer) -> None:
    key = server.key("two", requests_per_minute=2)
    for left in (1, 0):
        answer = server.ask(key, "POST", "/v1/tasks", json=PROMPT)
        assert answer.status_code == 202
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert re.fullmatch(r"(\d+m)?\d+(\.\d+)?s|\d+ms", answer.headers["x-ratelimit-reset-requests"])
        assert "x-ratelimit-limit-tokens" not in answer.headers
    refused = server.ask(key, "POST", "/v1/tasks", json=PROMPT)
    assert (refused.status_code, code_of(refused.content)) == (429, "RATE_LIMITED")
    told = refused.json()
    assert told["retriable"]
    assert told["policy_label"] == "rate-limit"
    assert 0 < told["retry_after_ms"] <= 30_000
    assert refused.headers["x-backoff-ms"] == str(told["retry_after_ms"])
    assert int(refused.headers["retry-after"]) in {29, 30}
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert server.ask(key, "GET", "/v1/tasks").status_code == 200, "looking is free"


def test_openais_client_meets_its_own_rate_limit_error(server: KeyedServer) -> None:
    key = server.key("one", requests_per_minute=1)
    client = openai.OpenAI(base_url=f"{server.live.url}/v1", api_key=key, max_retries=0)
    raw = client.chat.completions.with_raw_response.create(**CHAT)  # type: ignore[call-overload]
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
    assert caught.value.code == "RATE_LIMITED"
    assert caught.value.response.headers["retry-after"]


def test_tokens_are_counted_when_the_answer_is_complete(server: KeyedServer) -> None:
    key = server.key("tokens", tokens_per_minute=5_000)
    answer = server.ask(key, "POST", "/v1/chat/completions", json=CHAT)
    usage = answer.json()["usage"]["total_tokens"]
    later = server.ask(key, "GET", "/v1/models")
    assert later.headers["x-ratelimit-limit-tokens"] == "5000"
    remaining = int(later.headers["x-ratelimit-remaining-tokens"])
    # The bucket fills by 83 a second, so this holds however slow the machine is.
    assert 5_000 - usage <= remaining <= 5_000


def test_an_answer_in_debt_holds_the_next_request_up(server: KeyedServer) -> None:
    key = server.key("debt", tokens_per_minute=60)
    body = {"model_ref": "mock", "prompt": "[[mock tokens=600]]"}
    task_id = server.ask(key, "POST", "/v1/tasks", json=body).json()["task_id"]
    assert server.ask(key, "GET", f"/v1/tasks/{task_id}?wait=20000").json()["state"] == "completed"
    refused = server.ask(key, "POST", "/v1/tasks", json=body)
    assert (refused.status_code, code_of(refused.content)) == (429, "RATE_LIMITED")
    assert refused.json()["field"] == "tokens_per_minute"
    assert refused.json()["retry_after_ms"] > 400_000


def test_capabilities_say_the_callers_rates(server: KeyedServer) -> None:
    key = server.key("curious", requests_per_minute=7, tokens_per_minute=70_000)
    (engine,) = server.ask(key, "GET", "/v1/capabilities").json()["engines"]
    assert engine["rate_limits"] == {"requests_per_minute": 7, "tokens_per_minute": 70_000}
    (free,) = server.ask(server.mine, "GET", "/v1/capabilities").json()["engines"]
    assert free["rate_limits"] == {}


def test_a_key_without_limits_hears_nothing_of_them(server: KeyedServer) -> None:
    answer = server.ask(server.mine, "POST", "/v1/tasks", json=PROMPT)
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
