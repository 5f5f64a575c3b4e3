"""The attacks of docs/reference/attacks.md by browsers, by what only proxies may say, and on HTTP itself: sizes,
times, framing, paths, connections."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from llama_orch.core.settings import LimitSettings

from .keyed_server import PROMPT, KeyedServer, answers_in, code_of, get, head_of

LIMITS = LimitSettings(body_bytes=4096, header_bytes=32_768)
HASTY = LimitSettings(header_timeout_ms=300, body_timeout_ms=300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    started = KeyedServer(tmp_path_factory.mktemp("attacked"), limits=LIMITS)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    started = KeyedServer(tmp_path_factory.mktemp("hasty"), limits=HASTY)
    yield started
    started.stop()


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


# --- framing, sizes, times, paths -----------------------------------------------------------------------------------


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
