"""`budgets` and `sessions`: what they ask the server, and what they print."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_orch.cli import exits

from .conftest import Answer

SESSION = "0b8a6b1e-2f6e-4a43-9d3f-7d3f3c1f6a10"
BUDGET: dict[str, Any] = {
    "scope": "key",
    "subject": "local",
    "window": "day",
    "timezone": "Europe/Amsterdam",
    "by_default": False,
    "caps": {"tokens": 1000, "decode_ms": None, "cost": "2.5"},
    "spent": {"tokens": 400, "decode_ms": 12.345, "cost": "0.000001"},
    "reserved": {"tokens": 10, "decode_ms": 0.0, "cost": "0"},
    "remaining": {"tokens": 590, "decode_ms": None, "cost": "2.499999"},
    "window_start_ms": 0,
    "window_end_ms": 1,
}
ONE: dict[str, Any] = {
    "session_id": SESSION,
    "owner": "local",
    "ttl_ms": 600_000,
    "ttl_ms_remaining": 590_400,
    "turns": 2,
    "turn_limit": 8,
    "turns_remaining": 6,
    "active_tasks": 1,
    "created_ms": 1,
    "pool_id": "cpu",
    "kv_warmth": True,
    "kv_tokens": 120,
    "kv_bytes": 3 * 1_048_576,
    "tokens_budget_remaining": 7,
    "time_budget_remaining_ms": 0,
    "cost_budget_remaining": "0.5",
}


@pytest.fixture
def run(call: Any, server: Any) -> Any:
    """The command line, pointed at the fake server."""

    def run(*arguments: str, **named: Any) -> Any:
        return call(*arguments, "--url", server.url, **named)

    return run


def test_a_budget_is_listed_with_a_line_for_each_cap(run: Any, server: Any) -> None:
    server.on("GET", "/v1/budgets", Answer(body={"budgets": [BUDGET]}))
    done = run("budgets", "list")
    assert done.status == exits.OK
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[1][:9] == ["key", "local", "day", "(Europe/Amsterdam)", "tokens", "1000", "400", "10", "590"]
    assert lines[2][4:9] == ["cost", "2.5", "0.000001", "0", "2.499999"]
    assert len(lines) == 3


def test_a_budget_without_caps_shows_what_is_counted(run: Any, server: Any) -> None:
    free = BUDGET | {"caps": dict.fromkeys(BUDGET["caps"]), "remaining": dict.fromkeys(BUDGET["caps"])}
    server.on("GET", "/v1/budgets/key/local", Answer(body={"budgets": [free | {"window_end_ms": 0}]}))
    done = run("budgets", "show", "local")
    assert "12.345 ms" in done.out
    assert done.out.count("never") == 3


def test_a_budget_is_set_with_the_caps_that_are_named(run: Any, server: Any) -> None:
    server.on("PUT", "/v1/budgets/key/key-1", Answer(body=BUDGET))
    done = run("budgets", "set", "key-1", "--window", "day", "--tokens", "1000", "--cost", "2.50", "--json")
    assert json.loads(done.out) == BUDGET
    (asked,) = server.said
    assert asked.body == {"window": "day", "timezone": "UTC", "tokens": 1000, "cost": "2.50"}


def test_a_session_is_known_by_its_uuid(run: Any, server: Any) -> None:
    server.on("DELETE", f"/v1/budgets/session/{SESSION}", Answer(204))
    assert run("budgets", "remove", SESSION, "--window", "none").status == exits.OK
    assert server.said[0].path.endswith("?window=none")


def test_a_negative_cap_is_refused_here(run: Any, server: Any) -> None:
    done = run("budgets", "set", "local", "--tokens", "-1")
    assert done.status == exits.USAGE
    assert "negative" in done.err
    assert not server.said


def test_sessions_are_listed_with_turns_and_kv(run: Any, server: Any) -> None:
    cold = ONE | {"kv_warmth": False, "pool_id": ""}
    server.on("GET", "/v1/sessions", Answer(body={"sessions": [ONE, cold]}))
    lines = run("sessions", "list").out.splitlines()
    assert "2/8" in lines[1]
    assert "120 tokens, 3 MiB" in lines[1]
    assert "cold" in lines[2]


def test_a_session_is_shown_with_what_is_left(run: Any, server: Any) -> None:
    server.on("GET", f"/v1/sessions/{SESSION}", Answer(body=ONE))
    said = run("sessions", "show", SESSION).out
    for words in ("2 of 8", "590 s", "tokens left:  7", "time left:    0 ms", "money left:   0.5"):
        assert words in said


def test_a_session_is_created_with_a_budget_and_its_id_printed(run: Any, server: Any) -> None:
    server.on("POST", "/v1/sessions", Answer(201, ONE))
    done = run("sessions", "create", "--turns", "20", "--tokens", "50000", "--cost", "1")
    assert done.out == SESSION + "\n"
    assert server.said[0].body == {"turn_limit": 20, "budgets": [{"tokens": 50_000, "cost": "1"}]}


def test_a_session_is_closed(run: Any, server: Any) -> None:
    server.on("DELETE", f"/v1/sessions/{SESSION}", Answer(204))
    done = run("sessions", "rm", SESSION, "--json")
    assert json.loads(done.out)["closed"] is True
