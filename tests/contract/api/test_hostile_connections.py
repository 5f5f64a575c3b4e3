"""Connections that are slow, endless, garbled or gone: bounded, answered, and heard (STR-3, PERF-6)."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_orch.core.settings import LimitSettings, PoolSettings

from .live_server import LiveServer

LIMITS = LimitSettings(
    body_bytes=4096, header_bytes=2048, connections=8, header_timeout_ms=300, body_timeout_ms=300, keep_alive_ms=1000
)
BODY = b'{"model_ref":"mock","prompt":"x"}'


@pytest.fixture
def server(make_server: Callable[..., LiveServer]) -> LiveServer:
    pool = PoolSettings(id="m", engine="mock", model="mock", ctx=100_000)
    return make_server(limits=LIMITS, pools=[pool])


@pytest.fixture
def connect(server: LiveServer) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def make() -> socket.socket:
        host, _, port = server.url.removeprefix("http://").partition(":")
        one = socket.create_connection((host, int(port)), timeout=20)
        opened.append(one)
        return one

    yield make
    for one in opened:
        one.close()


Connect = Callable[[], socket.socket]


def read_all(one: socket.socket) -> bytes:
    """Everything until the server closes."""
    said = b""
    try:
        while piece := one.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def status_of(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


def error_of(said: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(said.rpartition(b"\r\n\r\n")[2])
    assert found["code"]
    assert found["remedy"]
    return found


def request(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, **more: str) -> bytes:
    headers = {**(headers or {}), **more}
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if body:
        head += f"Content-Length: {len(body)}\r\n"
    head += "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    return head.encode() + b"\r\n" + body


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/0.9\r\nHost: 127.0.0.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400_and_closed(connect: Connect, garbage: bytes) -> None:
    one = connect()
    one.sendall(garbage)
    said = read_all(one)
    assert status_of(said) in {400, 404}
    error_of(said)


def test_headers_that_never_end_are_cut_off_by_time(connect: Connect) -> None:
    one = connect()
    one.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
    said = read_all(one)
    assert status_of(said) == 408
    assert "headers" in str(error_of(said)["message"])


def test_headers_that_trickle_are_cut_off_by_time(connect: Connect) -> None:
    one = connect()
    one.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    one.settimeout(0.05)
    said = b""
    for _ in range(200):
        try:
            one.sendall(b"X-A: b\r\n")
            piece = one.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            break
        said += piece
        if not piece:
            break
    assert status_of(said) == 408


def test_a_connection_that_says_nothing_is_closed(connect: Connect) -> None:
    assert read_all(connect()) == b""


def test_a_body_that_does_not_come_is_cut_off_by_time(connect: Connect) -> None:
    one = connect()
    one.sendall(request("POST", "/v1/tasks", BODY)[:-5])
    said = read_all(one)
    assert status_of(said) == 408
    assert "body" in str(error_of(said)["message"])


@pytest.mark.parametrize("pieces", [1, 4])
def test_headers_that_are_too_long_are_431(connect: Connect, pieces: int) -> None:
    one = connect()
    raw = request("GET", "/health", headers={"X-Long": "x" * 4000})
    size = len(raw) // pieces
    try:
        for at in range(0, len(raw), size):
            one.sendall(raw[at : at + size])
    except OSError:
        pass  # it was cut off before the rest was sent
    said = read_all(one)
    assert status_of(said) == 431
    assert "limits.header_bytes" in str(error_of(said)["remedy"])


def test_a_body_that_is_too_large_is_413_by_its_own_word(connect: Connect) -> None:
    one = connect()
    one.sendall(request("POST", "/v1/tasks", Connection="close", headers={"Content-Length": "5000"}))
    said = read_all(one)
    assert status_of(said) == 413
    assert error_of(said)["limit_bytes"] == 4096


def test_a_body_in_chunks_that_grows_too_large_is_413(connect: Connect) -> None:
    one = connect()
    one.sendall(request("POST", "/v1/tasks", Connection="close", headers={"Transfer-Encoding": "chunked"}))
    for _ in range(5):
        one.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
    one.sendall(b"0\r\n\r\n")
    assert status_of(read_all(one)) == 413


def test_too_many_connections_are_refused_and_told_why(connect: Connect) -> None:
    kept = [connect() for _ in range(8)]
    for one in kept:
        one.sendall(request("GET", "/health"))
        assert status_of(one.recv(65536)) == 200
    said = read_all(connect())
    assert status_of(said) == 503
    assert "limits.connections" in str(error_of(said)["remedy"])


def test_an_idle_connection_is_closed_after_a_while(connect: Connect) -> None:
    one = connect()
    one.sendall(request("GET", "/health"))
    assert status_of(read_all(one)) == 200


def test_requests_on_one_connection_are_answered_in_order(connect: Connect) -> None:
    one = connect()
    one.sendall(request("GET", "/health") + request("GET", "/nowhere") + request("GET", "/readyz", Connection="close"))
    said = read_all(one)
    assert [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200]


def test_a_body_sent_byte_by_byte_is_taken(connect: Connect) -> None:
    one = connect()
    for byte in request("POST", "/v1/tasks", BODY, Connection="close"):
        one.sendall(bytes([byte]))
    assert status_of(read_all(one)) == 202


def test_expect_100_is_answered(connect: Connect) -> None:
    one = connect()
    raw = request("POST", "/v1/tasks", BODY, Connection="close", Expect="100-continue")
    one.sendall(raw[: -len(BODY)])
    assert one.recv(65536).startswith(b"HTTP/1.1 100")
    one.sendall(BODY)
    assert status_of(read_all(one)) == 202


def test_an_upgrade_is_not_taken_and_the_request_answered(connect: Connect) -> None:
    one = connect()
    one.sendall(request("GET", "/health", Connection="Upgrade, close", Upgrade="h2c"))
    assert status_of(read_all(one)) == 200


@pytest.mark.parametrize("apart", [False, True], ids=["in one piece", "body later"])
def test_the_body_of_a_request_that_asks_for_an_upgrade_is_its_body(connect: Connect, *, apart: bool) -> None:
    # So Java's client begins every connection. What is skipped of a body would be read as the next request.
    asks = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQ"}
    head, _, body = request("POST", "/v1/tasks", BODY, asks).partition(b"\r\n\r\n")
    one = connect()
    one.sendall(head + b"\r\n\r\n" + (b"" if apart else body))
    if apart:
        one.sendall(body)
    one.sendall(request("GET", "/health") + request("GET", "/v1/pools", Connection="close"))
    said = read_all(one)
    assert [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:]] == [202, 200, 200]
    assert b'"task_id"' in said and b'"pools"' in said


def test_connect_is_refused(connect: Connect) -> None:
    one = connect()
    one.sendall(b"CONNECT /v1/models HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n")
    assert status_of(read_all(one)) == 400


def test_a_foreign_host_is_403_on_the_wire(connect: Connect) -> None:
    one = connect()
    one.sendall(b"GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    said = read_all(one)
    assert status_of(said) == 403
    assert error_of(said)["field"] == "Host"


def follow(one: socket.socket, server: LiveServer, prompt: str) -> str:
    """Submit a task that is cancelled when its reader leaves, and read its first token."""
    body = json.dumps({"model_ref": "mock", "prompt": prompt, "cancel_on_disconnect": True}).encode()
    one.sendall(request("POST", "/v1/tasks", body))
    task_id: str = json.loads(one.recv(65536).partition(b"\r\n\r\n")[2])["task_id"]
    one.sendall(request("GET", f"/v1/tasks/{task_id}/stream"))
    said = b""
    while b"event: token" not in said:
        said += one.recv(65536)
    return task_id


def ended_reason(server: LiveServer, task_id: str) -> str:
    deadline = time.monotonic() + 20
    while True:
        state = server.call(lambda: server.services.journal.head.tasks.live.get(task_id))
        if state is None:
            return "ended"
        assert time.monotonic() < deadline, "the reader's leaving was never heard"
        time.sleep(0.002)


@pytest.mark.parametrize("reset", [False, True])
def test_a_reader_that_leaves_a_silent_stream_is_heard(connect: Connect, server: LiveServer, reset: bool) -> None:
    one = connect()
    task_id = follow(one, server, "[[mock fault=silent:1]]")
    if reset:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    one.close()
    assert ended_reason(server, task_id) == "ended"


def test_a_reader_that_leaves_is_heard_behind_a_pipelined_request(connect: Connect, server: LiveServer) -> None:
    one = connect()
    task_id = follow(one, server, "[[mock fault=silent:1]]")
    one.sendall(request("GET", "/health"))
    one.close()
    assert ended_reason(server, task_id) == "ended"


def test_a_reader_that_stalls_holds_nobody_up_and_is_let_go(connect: Connect, server: LiveServer) -> None:
    stalled = connect()
    body = json.dumps({"model_ref": "mock", "prompt": "[[mock tokens=60000]]"}).encode()
    stalled.sendall(request("POST", "/v1/tasks", body))
    task_id = json.loads(stalled.recv(65536).partition(b"\r\n\r\n")[2])["task_id"]
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    stalled.sendall(request("GET", f"/v1/tasks/{task_id}/stream"))
    quick = connect()
    quick.sendall(request("GET", f"/v1/tasks/{task_id}/stream", Connection="close"))
    said = read_all(quick)
    assert said.count(b"event: token") == 60_000
    assert b"event: end" in said
    # And the stalled one gets all of it too, from the journal, once it reads on.
    late = b""
    while b"event: end" not in late:
        late += stalled.recv(1 << 20)
    assert late.count(b"event: token") == 60_000


@given(
    base=st.sampled_from(
        [
            request("GET", "/health", Connection="close"),
            request("POST", "/v1/tasks", BODY, Connection="close"),
            request(
                "POST",
                "/v1/chat/completions",
                b'{"model":"mock","messages":[{"role":"user","content":"x"}],"stream":true}',
                Connection="close",
            ),
            request(
                "POST", "/v1/tasks", b'5\r\n{"mod\r\n0\r\n\r\n', {"Transfer-Encoding": "chunked"}, Connection="close"
            ),
            request("GET", "/v1/tasks?limit=1", Origin="http://127.0.0.1", Expect="100-continue", Connection="close"),
        ]
    ),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=6)), max_size=4),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_on_the_wire_are_a_defect(
    server: LiveServer, caplog: pytest.LogCaptureFixture, base: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    raw = bytearray(base)
    for at, dropped, added in changes:
        place = at % (len(raw) + 1)
        raw[place : place + dropped] = added
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as one:
        one.sendall(raw)
        said = read_all(one)
    for answer in said.split(b"HTTP/1.1 ")[1:]:
        if answer[:3].isdigit():
            assert int(answer[:3]) < 500
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
