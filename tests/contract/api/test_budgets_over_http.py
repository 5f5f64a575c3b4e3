"""Budgets and sessions over a real connection: routes, headers of every API, streams, what keys may (BUD-1, BUD-2, SES-1)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from llama_orch.core.settings import PriceSettings, SessionSettings

from .live_server import LiveServer

Make = Callable[..., LiveServer]
HEADERS = ("x-budget-tokens-remaining", "x-budget-time-remaining-ms", "x-budget-cost-remaining")
#: a request of each API that makes a task
ASKED: dict[str, dict[str, Any]] = {
    "/v1/tasks": {"model_ref": "mock", "prompt": "hello"},
    "/v1/chat/completions": {"model": "mock", "messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"model": "mock", "prompt": "hello"},
    "/v1/responses": {"model": "mock", "input": "hello"},
    "/v1/messages": {"model": "mock", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]},
}


@pytest.fixture
def priced(make_server: Make) -> Any:
    """A server with prices."""
    server = make_server(
        prices={"mock": PriceSettings(input="1", output="2", second="0.001")},
        sessions=SessionSettings(max_ttl_ms=60_000, max_turn_limit=20),
    )
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def put(http: httpx.Client, subject: str = "key/local", **caps: Any) -> dict[str, Any]:
    answer = http.put(f"/v1/budgets/{subject}", json=caps)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def test_a_budget_is_set_shown_changed_and_removed(priced: httpx.Client) -> None:
    said = put(priced, window="month", timezone="Europe/Amsterdam", tokens=1_000, decode_ms=5_000, cost="2.50")
    assert said["caps"] == {"tokens": 1000, "decode_ms": 5000.0, "cost": "2.5"}
    assert said["remaining"] == said["caps"]
    assert said["window_start_ms"] < said["window_end_ms"]
    put(priced, tokens=7)
    assert [b["window"] for b in priced.get("/v1/budgets").json()["budgets"]] == ["none", "month"]
    assert priced.get("/v1/budgets?scope=session").json() == {"budgets": []}
    assert priced.delete("/v1/budgets/key/local?window=none").status_code == 204
    assert len(priced.get("/v1/budgets/key/local").json()["budgets"]) == 1
    assert priced.delete("/v1/budgets/key/local").status_code == 204
    assert priced.delete("/v1/budgets/key/local").status_code == 404
    assert priced.get("/v1/budgets/key/local").status_code == 404


@pytest.mark.parametrize(
    "path, body, status, field",
    [
        ("key/local", {"tokens": -1}, 400, "tokens"),
        ("key/local", {"cost": 1.5}, 400, "cost"),
        ("key/local", {"cost": "1e3"}, 400, "cost"),
        ("key/local", {"window": "week"}, 400, "window"),
        ("key/local", {"window": "day", "timezone": "Mars"}, 400, "timezone"),
        ("key/local", {"token": 1}, 400, "token"),
        ("keys/local", {}, 404, "scope"),
        ("key/key-000000000000", {}, 404, "subject"),
        (f"session/{uuid.UUID(int=1)}", {}, 404, "subject"),
    ],
)
def test_what_is_wrong_is_named(priced: httpx.Client, path: str, body: Any, status: int, field: str) -> None:
    answer = priced.put(f"/v1/budgets/{path}", json=body)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert priced.get("/v1/budgets").json() == {"budgets": []}


@pytest.mark.parametrize("path", ASKED)
def test_every_api_says_what_is_left_and_refuses_when_nothing_is(priced: httpx.Client, path: str) -> None:
    answer = priced.post(path, json=ASKED[path])
    assert answer.status_code in {200, 202}, answer.text
    assert not any(name in answer.headers for name in HEADERS)
    put(priced, tokens=100_000, decode_ms=600_000, cost="10")
    answer = priced.post(path, json=ASKED[path])
    assert answer.status_code in {200, 202}, answer.text
    tokens, time_ms, cost = (answer.headers[name] for name in HEADERS)
    assert 90_000 < int(tokens) < 100_000
    assert 500_000 < int(time_ms) <= 600_000
    assert 9 < float(cost) < 10
    put(priced, tokens=0)
    answer = priced.post(path, json=ASKED[path])
    assert answer.status_code == 402, answer.text
    assert "BUDGET_EXHAUSTED" in answer.text or answer.json()["error"]["type"]


def test_a_stream_ends_at_the_cap_with_its_code_and_all_that_was_paid(priced: httpx.Client) -> None:
    put(priced, tokens=60)
    answer = priced.post(
        "/v1/tasks", json={"model_ref": "mock", "prompt": "[[mock tokens=500]]", "max_tokens": 100_000}
    )
    task_id = answer.json()["task_id"]
    blocks = priced.get(f"/v1/tasks/{task_id}/stream").text.split("\n\n")
    said = [block for block in blocks if block.startswith("event: token")]
    last = json.loads(blocks[-2].split("data: ", 1)[1])
    assert blocks[-2].startswith("event: error")
    assert (last["code"], last["retriable"], last["tokens_out"]) == ("BUDGET_EXHAUSTED", False, len(said))
    usage = priced.get(f"/v1/tasks/{task_id}").json()["usage"]
    (budget,) = priced.get("/v1/budgets").json()["budgets"]
    assert budget["spent"]["tokens"] == usage["total_tokens"] == 60
    assert budget["reserved"] == {"tokens": 0, "decode_ms": 0.0, "cost": "0"}


def test_metrics_of_a_stream_say_what_is_left(priced: httpx.Client) -> None:
    put(priced, tokens=100_000, decode_ms=600_000, cost="10")
    session_id = priced.post("/v1/sessions", json={"budgets": [{"tokens": 5_000}]}).json()["session_id"]
    body = {"model_ref": "mock", "prompt": "[[mock tokens=3000 rate=50]]", "session_id": session_id}
    task_id = priced.post("/v1/tasks", json=body).json()["task_id"]
    with priced.stream("GET", f"/v1/tasks/{task_id}/stream?metrics=1") as answer:
        # On a busy machine some of them are left out: the next one that comes is read.
        lines = answer.iter_lines()
        next(line for line in lines if line == "event: metrics")
        told = json.loads(next(lines).removeprefix("data: "))
    assert 0 < told["tokens_budget_remaining"] < 5_000
    assert 0 < told["time_budget_remaining_ms"] <= 600_000
    assert 9 < float(told["cost_budget_remaining"]) <= 10
    assert priced.post(f"/v1/tasks/{task_id}/cancel").status_code == 204


def test_a_session_is_opened_shown_and_closed(priced: httpx.Client) -> None:
    answer = priced.post("/v1/sessions", json={"ttl_ms": 30_000, "turn_limit": 2, "budgets": [{"tokens": 5_000}]})
    assert answer.status_code == 201
    said = answer.json()
    assert answer.headers["location"] == f"/v1/sessions/{said['session_id']}"
    assert (said["ttl_ms"], said["turns_remaining"], said["tokens_budget_remaining"]) == (30_000, 2, 5_000)
    body = {"model_ref": "mock", "prompt": "hello", "session_id": said["session_id"]}
    task_id = priced.post("/v1/tasks", json=body).json()["task_id"]
    assert "event: end" in priced.get(f"/v1/tasks/{task_id}/stream").text
    shown = priced.get(answer.headers["location"]).json()
    assert (shown["turns"], shown["kv_warmth"], shown["active_tasks"]) == (1, True, 0)
    assert shown["kv_tokens"] == priced.get(f"/v1/tasks/{task_id}").json()["usage"]["total_tokens"]
    assert shown["tokens_budget_remaining"] == 5_000 - shown["kv_tokens"]
    for _ in range(2):
        assert priced.delete(answer.headers["location"]).status_code == 204
    assert priced.get(answer.headers["location"]).status_code == 404
    assert priced.get("/v1/sessions").json() == {"sessions": []}


@pytest.mark.parametrize(
    "body, field", [({"ttl_ms": 60_001}, "ttl_ms"), ({"turn_limit": 21}, "turn_limit"), ({"turns": 3}, "turns")]
)
def test_a_session_beyond_the_bounds_is_refused(priced: httpx.Client, body: Any, field: str) -> None:
    answer = priced.post("/v1/sessions", json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, field)


def test_a_key_sees_its_own_budget_and_sets_none(priced: httpx.Client) -> None:
    admin = priced.post("/v1/keys", json={"name": "root", "scopes": ["admin"]}).json()["secret"]
    root = {"Authorization": f"Bearer {admin}"}
    made = priced.post(
        "/v1/keys", json={"name": "agent", "scopes": ["inference"], "budgets": [{"tokens": 9_000}]}, headers=root
    ).json()
    agent, key_id = {"Authorization": f"Bearer {made['secret']}"}, made["key"]["key_id"]
    assert priced.put("/v1/budgets/key/somebody", json={"tokens": 1}, headers=root).status_code == 200
    (own,) = priced.get("/v1/budgets", headers=agent).json()["budgets"]
    assert (own["subject"], own["caps"]["tokens"]) == (key_id, 9_000)
    assert priced.get("/v1/budgets/key/somebody", headers=agent).status_code == 404
    assert priced.put(f"/v1/budgets/key/{key_id}", json={"tokens": 10**9}, headers=agent).status_code == 403
    assert priced.delete(f"/v1/budgets/key/{key_id}", headers=agent).status_code == 403
    answer = priced.post("/v1/tasks", json=ASKED["/v1/tasks"], headers=agent)
    assert int(answer.headers[HEADERS[0]]) < 9_000
    assert len(priced.get("/v1/budgets", headers=root).json()["budgets"]) == 2
