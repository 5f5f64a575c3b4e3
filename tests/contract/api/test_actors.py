"""Every route that changes something leaves an event with its actor (AUTH-2): all routes are walked, new ones too.

How a route is called so that it changes something stands in ``STEPS``. A route that is in no step fails the walk by its
name, as does one that leaves no event of its caller.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llama_orch.api.openapi import operations
from llama_orch.core.journal.history import facts_of
from llama_orch.core.services.caller import SCOPES
from llama_orch.core.services.keys import digest_of
from llama_orch.core.settings import PoolSettings

from .keyed_server import PROMPT, KeyedServer

CHAT: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
#: path parameters and body of a call that changes something
Step = Callable[[KeyedServer, str], tuple[dict[str, str], Any]]


def body(given: Any, **path: str) -> Step:
    return lambda _server, _key: (path, given)


def spare_key(server: KeyedServer, key: str) -> str:
    name = f"spare-{uuid.uuid4()}"
    server.key(name)
    return server.ids[name]


def silent_task(server: KeyedServer, key: str) -> str:
    return server.task(key, prompt="[[mock fault=silent:1]]")


def open_session(server: KeyedServer, key: str) -> str:
    session_id: str = server.ask(key, "POST", "/v1/sessions", json={}).json()["session_id"]
    return session_id


def budget(server: KeyedServer, key: str) -> dict[str, str]:
    path = {"scope": "key", "subject": spare_key(server, key)}
    server.ask(key, "PUT", f"/v1/budgets/key/{path['subject']}", json={"tokens": 5})
    return path


def stored_response(server: KeyedServer, key: str, **more: Any) -> str:
    made = server.ask(key, "POST", "/v1/responses", json={"model": "mock", "input": "x", "store": True} | more)
    response_id: str = made.json()["id"]
    return response_id


def drained(server: KeyedServer, key: str) -> dict[str, str]:
    server.ask(key, "POST", "/v1/pools/spare/drain", json={})
    return {"pool_id": "spare"}


STEPS: dict[str, Step] = {
    "POST /v1/tasks": body(PROMPT),
    "POST /v1/tasks/{task_id}/cancel": lambda s, k: ({"task_id": silent_task(s, k)}, None),
    "POST /v1/chat/completions": body(CHAT),
    "POST /v1/completions": body({"model": "mock", "prompt": "x", "max_tokens": 4}),
    "POST /v1/embeddings": body({"model": "mock", "input": "x"}),
    "POST /v1/messages": body(CHAT),
    "POST /v1/responses": body({"model": "mock", "input": "x"}),
    "DELETE /v1/responses/{response_id}": lambda s, k: ({"response_id": stored_response(s, k)}, None),
    "POST /v1/responses/{response_id}/cancel": lambda s, k: (
        {"response_id": stored_response(s, k, input="[[mock fault=silent:1]]", background=True)},
        None,
    ),
    "POST /v1/rerank": body({"model": "mock", "query": "x", "documents": ["a", "b"]}),
    "POST /v2/rerank": body({"model": "mock", "query": "x", "documents": ["a", "b"]}),
    "POST /rerank": body({"model": "mock", "query": "x", "documents": ["a", "b"]}),
    "POST /v1/sessions": body({}),
    "DELETE /v1/sessions/{session_id}": lambda s, k: ({"session_id": open_session(s, k)}, None),
    "POST /v1/keys": lambda _s, _k: ({}, {"name": f"made-{uuid.uuid4()}", "budgets": [{"tokens": 7}]}),
    "PATCH /v1/keys/{key_id}": lambda s, k: ({"key_id": spare_key(s, k)}, {"requests_per_minute": 9}),
    "DELETE /v1/keys/{key_id}": lambda s, k: ({"key_id": spare_key(s, k)}, None),
    "POST /v1/keys/{key_id}/rotate": lambda s, k: ({"key_id": spare_key(s, k)}, {}),
    "PUT /v1/budgets/{scope}/{subject}": lambda s, k: ({"scope": "key", "subject": spare_key(s, k)}, {"tokens": 5}),
    "DELETE /v1/budgets/{scope}/{subject}": lambda s, k: (budget(s, k), None),
    "POST /v1/pools/{pool_id}/drain": body({}, pool_id="spare"),
    "POST /v1/pools/{pool_id}/undrain": lambda s, k: (drained(s, k), None),
    "POST /v1/pools/{pool_id}/reload": body({"new_model_ref": "another"}, pool_id="reloaded"),
}
CHANGING = [f"{method.upper()} {kind.path}" for kind, method, op in operations() if op.changes]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    pools = [
        PoolSettings(id="m", engine="mock", model="mock", aliases=["mock-alias"]),
        PoolSettings(id="spare", engine="mock", model="spare"),
        PoolSettings(id="reloaded", engine="mock", model="old"),
    ]
    started = KeyedServer(tmp_path_factory.mktemp("actors"), pools=pools)
    yield started
    started.stop()


def test_every_changing_route_has_its_step_and_every_step_its_route() -> None:
    assert sorted(set(CHANGING) - set(STEPS)) == [], "routes of which nobody said how they change something"
    assert sorted(set(STEPS) - set(CHANGING)) == []


@pytest.mark.parametrize("route", CHANGING)
def test_it_leaves_an_event_with_its_actor(server: KeyedServer, route: str) -> None:
    if route not in STEPS:
        pytest.fail(f"{route}: say in STEPS how it is called so that it changes something")
    method, _, path = route.partition(" ")
    values, given = STEPS[route](server, server.admin)
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    correlation = f"walk-{uuid.uuid4()}"
    answer = server.ask(server.admin, method, path, json=given, headers={"X-Correlation-Id": correlation})
    # What the mock cannot do is refused, and the refusal is an event as well.
    assert answer.status_code < 500, answer.text
    found = server.live.call(lambda: records_of(server, correlation))
    identity = f"token:{digest_of(server.admin.encode())[:6]}"
    assert identity in {actor for _, actor in found}, f"{route} left {found}, none by {identity}: {answer.text}"


def records_of(server: KeyedServer, correlation: str) -> list[tuple[str, str]]:
    """Name and actor of the committed events of one request."""
    journal = server.live.services.journal
    frames = journal.store.frames(1, journal.committed_frame)
    return [(r.name, r.actor) for frame in frames for r in facts_of(frame) if r.correlation == correlation]


def test_what_changes_nothing_is_a_get_or_says_so() -> None:
    quiet = {f"{m.upper()} {k.path}" for k, m, op in operations() if not op.changes and m != "get"}
    assert quiet == {"POST /tokenize", "POST /detokenize", "POST /apply-template", "POST /v1/messages/count_tokens"}


def test_every_route_says_which_scope_it_needs() -> None:
    for kind, method, op in operations():
        assert op.scopes == ("public",) or (op.scopes and set(op.scopes) <= set(SCOPES)), f"{method} {kind.path}"
    assert [kind.path for kind, _, op in operations() if "public" in op.scopes] == ["/health", "/readyz"]
    free = {f"{m.upper()} {k.path}" for k, m, op in operations() if op.changes and op.scopes != ("admin",)}
    assert all("inference" in op.scopes for k, m, op in operations() if f"{m.upper()} {k.path}" in free)
    admins = {k.path.split("/")[2] for k, _, op in operations() if op.scopes == ("admin",)}
    assert admins == {"journal", "keys", "pools", "budgets"}
