"""The attacks of docs/reference/attacks.md, by their numbers: each has its expected answer, and nothing else comes of it."""

from __future__ import annotations

import json
import re
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from llama_orch.api.auth import Authentication, Secrets
from llama_orch.api.openapi import operations
from llama_orch.core.errors import ForbiddenError
from llama_orch.core.services.keys import digest_of
from llama_orch.core.settings import LimitSettings, PoolSettings, Settings

from .keyed_server import BOOTSTRAP, PROMPT, KeyedServer, answers_in, code_of

LIMITS = LimitSettings(body_bytes=4096, header_bytes=32_768)
HASTY = LimitSettings(header_timeout_ms=300, body_timeout_ms=300)
DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "attacks.md"
PROTECTED = ["/v1/tasks", "/v1/keys", "/metrics", "/readyz", "/openapi.json", "/v1/journal/export", "/nowhere"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    pools = [PoolSettings(id="m", engine="mock", model="mock", aliases=["mock-alias"])]
    started = KeyedServer(tmp_path_factory.mktemp("attacked"), limits=LIMITS, pools=pools)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    started = KeyedServer(tmp_path_factory.mktemp("hasty"), limits=HASTY)
    yield started
    started.stop()


def head_of(key: str | None, *lines: str, host: str = "127.0.0.1") -> bytes:
    """Headers of a request after its first line."""
    own = [f"Host: {host}", "Connection: close", *([f"Authorization: Bearer {key}"] if key else []), *lines]
    return "".join(f"{line}\r\n" for line in own).encode("latin-1") + b"\r\n"


def get(path: str, key: str | None, *lines: str, host: str = "127.0.0.1") -> bytes:
    return f"GET {path} HTTP/1.1\r\n".encode("latin-1") + head_of(key, *lines, host=host)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_01_no_key(server: KeyedServer) -> None:
    for path in PROTECTED:
        answer = server.ask(None, "GET", path)
        assert (answer.status_code, code_of(answer.content)) == (401, "MISSING_TOKEN"), path
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for kind, method, op in operations():
        if op.scopes != ("public",):
            answer = server.ask(None, method, kind.path.replace("{", "").replace("}", ""))
            assert answer.status_code == 401, f"{method} {kind.path}"
    assert server.ask(None, "GET", "/health").status_code == 200


@pytest.mark.parametrize(
    "header",
    ["Bearer wrong", "Bearer ", "Bearer", "", "Basic d3Jvbmc6d3Jvbmc=", "Digest x", "Bearer null", "lo_x", "Bearer: x"],
)
def test_02_a_wrong_key(server: KeyedServer, header: str) -> None:
    for path in PROTECTED:
        ((status, body),) = server.raw(get(path, None, f"Authorization: {header}"))
        assert (status, code_of(body)) == (401, "BAD_TOKEN")
    ((status, body),) = server.raw(get("/v1/tasks", None, "x-api-key: wrong"))
    assert (status, code_of(body)) == (401, "BAD_TOKEN")


def test_03_an_expired_key(server: KeyedServer) -> None:
    key = server.key("short-lived", ttl_ms=1)
    journal = server.live.services.journal
    expires = journal.head.keys.by_id[server.ids["short-lived"]].expires_ns
    while server.live.call(journal.now_ns) < expires:
        pass
    answer = server.ask(key, "GET", "/v1/tasks")
    assert (answer.status_code, code_of(answer.content)) == (401, "BAD_TOKEN")


def test_04_a_revoked_key(server: KeyedServer) -> None:
    key = server.key("revoked")
    with httpx.Client(base_url=server.live.url, headers={"x-api-key": key}, trust_env=False) as client:
        assert client.get("/v1/tasks").status_code == 200
        server.revoke("revoked")
        assert client.get("/v1/tasks").status_code == 401, "on the same connection, too"


def test_05_the_secret_before_a_rotation(server: KeyedServer) -> None:
    old = server.key("rotated")
    rotated = server.ask(server.admin, "POST", f"/v1/keys/{server.ids['rotated']}/rotate", json={})
    new = rotated.json()["secret"]
    assert server.ask(old, "GET", "/v1/tasks").status_code == 401
    assert server.ask(new, "GET", "/v1/tasks").status_code == 200


def test_06_a_key_of_another_server(server: KeyedServer, tmp_path: Path) -> None:
    other = KeyedServer(tmp_path, secrets=None)
    try:
        assert server.ask(other.admin, "GET", "/v1/tasks").status_code == 401
        assert other.ask(server.admin, "GET", "/v1/tasks").status_code == 401
    finally:
        other.stop()


def test_07_the_last_keys_end_does_not_open_the_server(tmp_path: Path) -> None:
    closing = KeyedServer(tmp_path, secrets=None)
    try:
        for name in list(closing.ids):
            closing.revoke(name)
        assert closing.ask(closing.admin, "GET", "/v1/tasks").status_code == 401
        assert closing.ask(None, "GET", "/v1/tasks").status_code == 401
        assert closing.ask("any", "POST", "/v1/tasks", json=PROMPT).status_code == 401
    finally:
        closing.stop()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/tasks?api_key={key}",
        "/v1/tasks?api-key={key}",
        "/v1/tasks?limit=1&key={key}",
        "/v1/tasks?token={key}",
        "/v1/tasks?ACCESS_TOKEN={key}",
        "/v1/tasks?%61pi_key={key}",
        "/v1/tasks?x={key}",
        "/v1/tasks/{key}",
        "/v1/tasks/%6co_{rest}",
        "/health?token={key}",
    ],
)
def test_08_a_key_in_the_url(server: KeyedServer, path: str) -> None:
    asked = path.replace("{key}", server.mine).replace("{rest}", server.mine[3:])
    for header in (None, server.mine):
        ((status, body),) = server.raw(get(asked, header))
        assert (status, code_of(body)) == (400, "INVALID_PARAMS")
        assert b"do not belong in URLs" in body
        assert server.mine.encode() not in body
        assert server.mine[3:].encode() not in body


def test_09_a_name_and_a_key_before_the_host(server: KeyedServer) -> None:
    for target in (f"http://user:{server.mine}@127.0.0.1/v1/tasks", f"http://{server.mine}@127.0.0.1/v1/tasks"):
        ((status, body),) = server.raw(get(target, None))
        assert (status, code_of(body)) == (400, "INVALID_PARAMS")
        assert server.mine.encode() not in body


def test_10_two_different_keys(server: KeyedServer) -> None:
    for lines in (
        [f"x-api-key: {server.theirs}"],
        [f"Authorization: Bearer {server.theirs}"],
        ["x-api-key: wrong"],
    ):
        ((status, body),) = server.raw(get("/v1/tasks", server.mine, *lines))
        assert (status, code_of(body)) == (400, "INVALID_PARAMS")
    ((status, _),) = server.raw(get("/v1/tasks", server.mine, f"x-api-key: {server.mine}"))
    assert status == 200, "the same key twice is one key"


def test_11_a_very_long_key(server: KeyedServer) -> None:
    for length in (1_000, 16_385, 30_000):
        answer = server.ask("k" * length, "GET", "/v1/tasks")
        assert (answer.status_code, code_of(answer.content)) == (401, "BAD_TOKEN")
    ((status, _),) = server.raw(get("/v1/tasks", "k" * 40_000))
    assert status == 431


@pytest.mark.parametrize("key", ["schlüssel", "\xff\xfe\xfd", "ключ".encode().decode("latin-1"), "lo_\x80" * 9, "a\tb"])
def test_12_a_key_that_is_not_ascii(server: KeyedServer, key: str) -> None:
    ((status, body),) = server.raw(get("/v1/tasks", key))
    assert (status, code_of(body)) == (401, "BAD_TOKEN")


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key.swapcase(),
        lambda key: "sk-" + key,
        lambda key: key[3:],
        lambda key: key + "=",
        lambda key: f'"{key}"',
        lambda key: f"{key} {key}",
        lambda key: f"{key},{key}",
        lambda key: digest_of(key.encode()),
        lambda key: f"token:{digest_of(key.encode())[:6]}",
    ],
)
def test_13_a_key_that_is_nearly_one(server: KeyedServer, change: Callable[[str], str]) -> None:
    ((status, body),) = server.raw(get("/v1/tasks", change(server.mine)))
    assert (status, code_of(body)) == (401, "BAD_TOKEN")


# --- 14: tests/unit/core/test_key_timing.py --------------------------------------------------------------------------


def test_15_a_scope_that_the_key_has_not(server: KeyedServer) -> None:
    reader = server.key("reader", scopes=["read"])
    for key, method, path in (
        (server.mine, "GET", "/v1/keys"),
        (server.mine, "POST", "/v1/keys"),
        (server.mine, "GET", "/v1/journal/export"),
        (server.mine, "POST", "/v1/pools/m/drain"),
        (reader, "POST", "/v1/tasks"),
        (reader, "POST", "/v1/chat/completions"),
    ):
        answer = server.ask(key, method, path)
        assert (answer.status_code, code_of(answer.content)) == (403, "FORBIDDEN"), path


def test_16_a_model_path_or_priority_that_the_key_is_not_for(server: KeyedServer) -> None:
    narrow = server.key("narrow", models=["mock-a*"], routes=["/v1/tasks*"], batch_only=True)
    batch = {"priority": "batch"}
    assert server.ask(narrow, "POST", "/v1/tasks", json=PROMPT | batch | {"model_ref": "mock-alias"}).status_code == 202
    for path, body in (
        ("/v1/tasks", PROMPT | batch),
        ("/v1/tasks", PROMPT | {"model_ref": "mock-alias"}),
        ("/v1/tasks", PROMPT | {"model_ref": "mock-alias", "priority": "interactive"}),
        ("/v1/chat/completions", {"model": "mock-alias", "messages": [{"role": "user", "content": "x"}]}),
    ):
        answer = server.ask(narrow, "POST", path, json=body)
        assert (answer.status_code, code_of(answer.content)) == (403, "FORBIDDEN"), body
    assert server.ask(narrow, "GET", "/v1/queue").status_code == 403


def test_17_a_restricted_key_that_would_make_a_free_one(server: KeyedServer) -> None:
    limited = server.key("limited-admin", scopes=["admin"], models=["mock"])
    own = f"/v1/keys/{server.ids['limited-admin']}"
    for method, path, body in (
        ("POST", "/v1/keys", {"name": "free", "scopes": ["admin"]}),
        ("PATCH", own, {"models": []}),
        ("POST", f"/v1/keys/{server.ids['admin']}/rotate", {}),
    ):
        answer = server.ask(limited, method, path, json=body)
        assert (answer.status_code, code_of(answer.content)) == (403, "FORBIDDEN")


def test_18_the_machines_own_key_from_another_machine() -> None:
    class NoKeys:
        any = True

    local = "lo_of-this-machine"
    keys: object = NoKeys()
    auth = Authentication(
        keys,  # type: ignore[arg-type]
        Settings(),
        secrets=Secrets(local=digest_of(local.encode())),
        provider=None,
        public=frozenset(),
    )
    scope = {
        "path": "/v1/tasks",
        "raw_path": b"/v1/tasks",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer " + local.encode())],
        "client": ("127.0.0.1", 1),
    }
    caller = auth.caller_of(scope)
    assert caller is not None
    assert caller.owner == "local"
    for address in ("192.168.1.9", "10.0.0.1", "2001:db8::1"):
        with pytest.raises(ForbiddenError):
            auth.caller_of(scope | {"client": (address, 1)})


# --- what belongs to others ------------------------------------------------------------------------------------------


def test_19_anothers_task(server: KeyedServer) -> None:
    task_id = server.task(server.mine)
    stranger = str(uuid.uuid4())
    for method, path in (
        ("GET", "/v1/tasks/{}"),
        ("GET", "/v1/tasks/{}?wait=1"),
        ("GET", "/v1/tasks/{}/stream"),
        ("GET", "/v1/tasks/{}/decision"),
        ("POST", "/v1/tasks/{}/cancel"),
    ):
        answer = server.ask(server.theirs, method, path.format(task_id))
        absent = server.ask(server.theirs, method, path.format(stranger))
        assert (answer.status_code, code_of(answer.content)) == (404, "NOT_FOUND"), path
        assert same_but_for(answer, absent, task_id, stranger), "it is told apart from a task that there is not"
        assert server.ask(server.admin, method, path.format(task_id)).status_code == 404, "admins look at the journal"
    assert task_id not in server.ask(server.theirs, "GET", "/v1/tasks").text
    assert server.ask(server.mine, "GET", f"/v1/tasks/{task_id}?wait=10000").json()["state"] == "completed"


def same_but_for(one: httpx.Response, other: httpx.Response, this: str, that: str) -> bool:
    def plain(answer: httpx.Response, name: str) -> str:
        found = json.loads(answer.text.replace(name, "ID"))
        found.pop("correlation_id", None)
        return json.dumps(found)

    return plain(one, this) == plain(other, that)


def test_20_anothers_session(server: KeyedServer) -> None:
    session_id = str(uuid.uuid4())
    server.task(server.mine, session_id=session_id)
    answer = server.ask(server.theirs, "GET", f"/v1/sessions/{session_id}")
    assert (answer.status_code, code_of(answer.content)) == (404, "NOT_FOUND")
    # Closing what is not there is no error: somebody else's session is not there, and stays.
    assert server.ask(server.theirs, "DELETE", f"/v1/sessions/{uuid.uuid4()}").status_code == 204
    assert server.ask(server.theirs, "DELETE", f"/v1/sessions/{session_id}").status_code == 204
    assert session_id not in server.ask(server.theirs, "GET", "/v1/sessions").text
    turn = server.ask(server.theirs, "POST", "/v1/tasks", json=PROMPT | {"session_id": session_id})
    assert turn.status_code in {404, 409}
    assert server.ask(server.mine, "GET", f"/v1/sessions/{session_id}").json()["turns"] == 1


def test_21_anothers_response(server: KeyedServer) -> None:
    made = server.ask(server.mine, "POST", "/v1/responses", json={"model": "mock", "input": "x", "store": True})
    assert made.status_code == 200, made.text
    response_id = made.json()["id"]
    for method, path in (
        ("GET", "/v1/responses/{}"),
        ("GET", "/v1/responses/{}/input_items"),
        ("POST", "/v1/responses/{}/cancel"),
        ("DELETE", "/v1/responses/{}"),
    ):
        assert server.ask(server.theirs, method, path.format(response_id)).status_code == 404, path
    follow = {"model": "mock", "input": "y", "previous_response_id": response_id}
    assert server.ask(server.theirs, "POST", "/v1/responses", json=follow).status_code in {400, 404}
    assert server.ask(server.mine, "GET", f"/v1/responses/{response_id}").status_code == 200


def test_22_anothers_budget(server: KeyedServer) -> None:
    mine = f"/v1/budgets/key/{server.ids['mine']}"
    assert server.ask(server.admin, "PUT", mine, json={"tokens": 1_000_000_000}).status_code == 200
    assert server.ask(server.mine, "GET", mine).status_code == 200
    answer = server.ask(server.theirs, "GET", mine)
    assert (answer.status_code, code_of(answer.content)) == (404, "NOT_FOUND")
    assert server.ids["mine"] not in server.ask(server.theirs, "GET", "/v1/budgets").text
    for key in (server.mine, server.theirs):
        assert server.ask(key, "PUT", mine, json={"tokens": 1}).status_code == 403
        assert server.ask(key, "DELETE", mine).status_code == 403


def test_23_anothers_idempotency_key_and_task_id(server: KeyedServer) -> None:
    headers = {"Idempotency-Key": "shared"}
    one = server.ask(server.mine, "POST", "/v1/tasks", json=PROMPT, headers=headers).json()
    other = server.ask(server.theirs, "POST", "/v1/tasks", json=PROMPT, headers=headers).json()
    assert one["task_id"] != other["task_id"]
    assert not other["attached"]
    taken = server.ask(server.theirs, "POST", "/v1/tasks", json=PROMPT | {"task_id": one["task_id"]})
    assert (taken.status_code, code_of(taken.content)) == (409, "CONFLICT")


# --- browsers and proxies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:80", "", "a b", "[::1"]
)
def test_24_a_foreign_host(server: KeyedServer, host: str) -> None:
    ((status, _),) = server.raw(get("/v1/tasks", server.mine, host=host))
    assert status in {400, 403}
    ((status, _),) = server.raw(get("/health", None, host=host))
    assert status in {400, 403}


def test_25_no_host_or_two(server: KeyedServer) -> None:
    ((status, _),) = server.raw(get("/v1/tasks", server.mine, "Host: evil.example"))
    assert status == 403
    key = f"Authorization: Bearer {server.mine}\r\n".encode()
    for version in (b"1.1", b"1.0"):
        ((status, _),) = server.raw(b"GET /v1/tasks HTTP/" + version + b"\r\nConnection: close\r\n" + key + b"\r\n")
        assert status == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "file://"])
def test_26_a_post_from_another_site(server: KeyedServer, origin: str) -> None:
    for media_type in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
        headers = {"Origin": origin, "Content-Type": media_type}
        answer = server.ask(server.mine, "POST", "/v1/tasks", content=json.dumps(PROMPT), headers=headers)
        assert (answer.status_code, code_of(answer.content)) == (403, "FORBIDDEN")
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = server.ask(None, "OPTIONS", "/v1/tasks", headers=asked)
    assert preflight.status_code == 403
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "line",
    [
        "X-Forwarded-For: 127.0.0.1",
        "Forwarded: for=127.0.0.1;host=localhost",
        "X-Real-IP: 127.0.0.1",
        "X-Forwarded-Host: localhost",
        "X-Forwarded-User: admin",
        "X-Remote-User: admin",
        "Remote-User: admin",
        "X-Client-Cert: CN=admin",
        "X-Original-URL: /health",
        "X-Rewrite-URL: /health",
    ],
)
def test_27_what_only_a_proxy_may_say(server: KeyedServer, line: str) -> None:
    ((status, _),) = server.raw(get("/v1/tasks", None, line))
    assert status == 401
    ((status, _),) = server.raw(get("/v1/keys", server.mine, line))
    assert status == 403


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "_method"])
def test_28_another_method_by_header(server: KeyedServer, name: str) -> None:
    task_id = server.task(server.mine)
    server.ask(server.mine, "GET", f"/v1/tasks/{task_id}?wait=10000")
    key_path = f"/v1/keys/{server.ids['theirs']}"
    answer = server.ask(server.admin, "GET", key_path, headers={name: "DELETE"})
    assert answer.json()["state"] == "active"
    assert server.ask(server.admin, "POST", key_path, headers={name: "DELETE"}, json={}).status_code == 405
    assert server.ask(server.theirs, "GET", "/v1/tasks").status_code == 200


# --- HTTP ------------------------------------------------------------------------------------------------------------


def test_29_headers_that_are_too_large(server: KeyedServer) -> None:
    ((status, body),) = server.raw(get("/v1/tasks", server.mine, "X-Long: " + "x" * 33_000))
    assert (status, code_of(body)) == (431, "PAYLOAD_TOO_LARGE")
    many = [f"X-{n}: {'x' * 50}" for n in range(700)]
    ((status, _),) = server.raw(get("/v1/tasks", server.mine, *many))
    assert status == 431


def test_30_a_body_that_is_too_large(server: KeyedServer) -> None:
    large = b'{"model_ref":"mock","prompt":"' + b"x" * 5000 + b'"}'
    post = b"POST /v1/tasks HTTP/1.1\r\n"
    ((status, body),) = server.raw(post + head_of(server.mine, f"Content-Length: {len(large)}") + large)
    assert (status, code_of(body)) == (413, "PAYLOAD_TOO_LARGE")
    chunked = b"".join(b"400\r\n" + b"x" * 1024 + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
    ((status, _),) = server.raw(post + head_of(server.mine, "Transfer-Encoding: chunked") + chunked)
    assert status == 413
    ((status, _),) = server.raw(post + head_of(None, f"Content-Length: {len(large)}") + large)
    assert status == 401, "who has no key learns nothing of limits"


def test_31_headers_that_never_end(hasty: KeyedServer) -> None:
    ((status, _),) = hasty.raw(b"GET /v1/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ")
    assert status == 408


def test_32_a_body_that_never_comes(hasty: KeyedServer) -> None:
    post = b"POST /v1/tasks HTTP/1.1\r\n"
    ((status, _),) = hasty.raw(post + head_of(hasty.mine, "Content-Length: 100") + b'{"model_ref"')
    assert status == 408
    ((status, _),) = hasty.raw(post + head_of(hasty.mine, "Transfer-Encoding: chunked") + b"10\r\nabc")
    assert status == 408


SMUGGLED = b"GET /v1/keys HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", "Content-Length: 5"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 5"],
        ["Content-Length: +5"],
        ["Content-Length: 0x5"],
        ["Content-Length: -5"],
        ["Content-Length: 5 5"],
        ["Content-Length: 99999999999999999999"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding:\x0bchunked"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding: chunked\x00"],
    ],
)
def test_33_a_second_request_hidden_in_the_first(server: KeyedServer, lines: list[str]) -> None:
    request = b"POST /v1/tasks HTTP/1.1\r\n" + head_of(server.mine, *lines).replace(b"Connection: close\r\n", b"")
    answers = server.raw(request + b"0\r\n\r\n" + SMUGGLED)
    assert [status for status, _ in answers] == [400], "one answer, and the connection is closed"


def test_34_chunks_that_are_none(server: KeyedServer) -> None:
    request = b"POST /v1/tasks HTTP/1.1\r\n" + head_of(server.mine, "Transfer-Encoding: chunked")
    for body in (
        b"2\n{}\n0\n\n",
        b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}x\r\n0\r\n\r\n",
    ):
        assert [status for status, _ in server.raw(request + body)] == [400], body
    old = b"POST /v1/tasks HTTP/1.0\r\n" + head_of(server.mine, "Transfer-Encoding: chunked")
    assert [status for status, _ in server.raw(old + b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED)] == [400]


@pytest.mark.parametrize(
    "lines",
    [
        b"X-A: b\r\n c\r\n",
        b"X-A: b\r\n\tc\r\n",
        b"X-A: b\n",
        b"X-A: b\rX-C: d\r\n",
        b"X-A: a\x00b\r\n",
        b"X A: b\r\n",
        b"X-A : b\r\n",
        b": b\r\n",
        b"X-A\r\n",
        b" X-A: b\r\n",
    ],
)
def test_35_lines_that_are_no_headers(server: KeyedServer, lines: bytes) -> None:
    key = f"Authorization: Bearer {server.mine}\r\n".encode()
    raw = b"GET /v1/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" + lines + key + b"\r\n"
    assert [status for status, _ in server.raw(raw)] == [400]
    only_lines = (b"GET /v1/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" + key + b"\r\n").replace(
        b"\r", b""
    )
    assert [status for status, _ in server.raw(only_lines)] == [400]


def test_36_a_key_behind_the_body(server: KeyedServer) -> None:
    post = b"POST /v1/tasks HTTP/1.1\r\n"
    body = json.dumps(PROMPT).encode()
    chunked = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    chunks = "Transfer-Encoding: chunked"
    trailer = f"Authorization: Bearer {server.mine}\r\n\r\n".encode()
    ((status, _),) = server.raw(post + head_of(None, chunks) + chunked + trailer)
    assert status == 401
    admin = f"x-api-key: {server.admin}\r\nAuthorization: Bearer {server.admin}\r\nHost: evil.example\r\n\r\n".encode()
    ((status, said),) = server.raw(post + head_of(server.mine, chunks) + chunked + admin)
    assert status == 202, said
    task_id = json.loads(said)["task_id"]
    assert server.ask(server.mine, "GET", f"/v1/tasks/{task_id}").json()["owner"] == server.ids["mine"]


def test_37_a_request_in_the_body_of_a_refused_one(server: KeyedServer) -> None:
    inner = get("/v1/keys", server.admin)
    outer = head_of(None, f"Content-Length: {len(inner)}").replace(b"Connection: close\r\n", b"")
    answers = server.raw(b"POST /v1/tasks HTTP/1.1\r\n" + outer + inner + get("/health", None))
    assert [status for status, _ in answers] == [401, 200]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/..;/keys",
        "/v1/x/../keys",
        "/v1/%2e%2e/v1/keys",
        "/v1/%2e/keys",
        "//v1/keys",
        "/v1//keys",
        "/v1%2fkeys",
        "/v1%2Fkeys",
        "/v1/keys%00",
        "/v1/keys%20",
        "/V1/KEYS",
        "/v1/keys;x=1",
        "/v1/keys.json",
        "/v1/keys%3fx",
        "/health/../v1/keys",
        "/health%2f..%2fv1%2fkeys",
        "/health;/../v1/keys",
        "/./v1/keys",
        "/v1/%c0%aekeys",
        "/v1/tasks/..%2fkeys",
        "/v1/tasks/%2e%2e%2fkeys",
    ],
)
def test_38_paths_that_mean_another(server: KeyedServer, path: str) -> None:
    for key, expected in ((None, {401, 404}), (server.mine, {403, 404}), (server.admin, {404})):
        ((status, body),) = server.raw(get(path, key))
        assert status in expected, (path, body)


def test_39_keys_one_after_another_on_one_connection(server: KeyedServer) -> None:
    mine = server.task(server.mine)
    theirs = server.task(server.theirs)

    def ask(key: str | None, task_id: str) -> bytes:
        return get(f"/v1/tasks/{task_id}", key).replace(b"Connection: close\r\n", b"")

    sent = [
        ask(server.mine, mine),
        ask(server.theirs, mine),
        ask(server.theirs, theirs),
        ask(None, mine),
        ask("wrong", mine),
        ask(server.mine, theirs),
        get(f"/v1/tasks/{mine}", server.mine),
    ]
    answers = server.raw(b"".join(sent))
    assert [status for status, _ in answers] == [200, 404, 200, 401, 401, 404, 200]


@pytest.mark.parametrize("name", ["X-Correlation-Id", "X-Request-Id", "Idempotency-Key", "Last-Event-ID"])
def test_40_headers_in_what_is_echoed(server: KeyedServer, name: str) -> None:
    for value in ("a%0d%0aX-Injected: 1", "a\\r\\nX-Injected: 1", "a\x0bX-Injected: 1", "<script>", "x" * 5000):
        with server.connect() as one:
            one.sendall(get("/v1/tasks", server.mine, f"{name}: {value}"))
            said = read(one)
        head = said.partition(b"\r\n\r\n")[0].lower()
        assert b"x-injected" not in head
        assert b"<script>" not in head
        assert b"x" * 5000 not in head
        assert answers_in(said)[0][0] in {200, 400}


def read(one: socket.socket) -> bytes:
    said = b""
    while part := one.recv(65536):
        said += part
    return said


def test_41_a_target_that_is_no_path_of_this_server(server: KeyedServer) -> None:
    key = head_of(server.mine)
    for line in (
        b"GET http://evil.example/v1/tasks",
        b"GET ftp://127.0.0.1/v1/tasks",
        b"CONNECT 127.0.0.1:80",
        b"OPTIONS *",
        b"GET v1/tasks",
        b"GET \\v1\\tasks",
        b"GET ?x",
    ):
        assert [status for status, _ in server.raw(line + b" HTTP/1.1\r\n" + key)] == [400], line
    ((status, _),) = server.raw(b"GET http://127.0.0.1/v1/tasks HTTP/1.1\r\n" + head_of(None))
    assert status == 401


def test_42_another_protocol_on_the_same_connection(server: KeyedServer) -> None:
    for lines in (
        ["Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"],
        ["Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"],
    ):
        raw = get("/v1/tasks", None, *lines).replace(b"Connection: close", b"Connection: Upgrade, close")
        assert [status for status, _ in server.raw(raw)] == [401]
    assert [status for status, _ in server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")] == [400]


# --- the list itself -------------------------------------------------------------------------------------------------

#: numbers whose tests stand elsewhere, because they need another stage
ELSEWHERE = {
    14: "tests/unit/core/test_key_timing.py",
    43: "tests/contract/api/test_hostile_connections.py",
    44: "tests/contract/api/test_key_canary.py",
    45: "tests/contract/api/test_proxy_identity.py",
    46: "tests/contract/api/test_tls.py",
    47: "tests/contract/api/test_oidc.py",
    48: "tests/contract/api/test_key_limits.py",
}


def test_every_attack_of_the_list_has_its_test_and_every_test_its_line() -> None:
    listed = [int(n) for n in re.findall(r"^\| (\d+) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)]
    here = {int(found[1]) for name in vars(sys.modules[__name__]) if (found := re.match(r"test_(\d\d)_", name))}
    assert listed == sorted(listed)
    assert set(listed) == here | set(ELSEWHERE)
    root = Path(__file__).parents[3]
    assert [path for path in ELSEWHERE.values() if not (root / path).is_file()] == []


def test_the_bootstrap_key_is_a_key(server: KeyedServer) -> None:
    assert server.ask(BOOTSTRAP, "GET", "/v1/keys").status_code == 200
    assert server.ask(BOOTSTRAP[:-1], "GET", "/v1/keys").status_code == 401
