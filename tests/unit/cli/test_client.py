"""The client: errors in words, and streams that resume."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace

import pytest

from llama_orch.cli import exits
from llama_orch.cli.client import MOST_RETRIES, Client
from llama_orch.cli.exits import CliError


def answer(status=200, body=None, chunks=None):
    return SimpleNamespace(status=status, body=body, chunks=chunks)


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def client(server, pauses):
    return Client(server.url, pause=pauses.append, rand=lambda: 1.0)


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def events(stream):
    return [(frame.event, json.loads(frame.data), frame.id) for frame in stream]


STREAM = "/v1/tasks/t/stream"


def test_json_goes_both_ways(server, client):
    server.on("POST", "/v1/tasks", answer(202, {"task_id": "ü"}))
    assert client.post("/v1/tasks", {"prompt": "ä"}, {"Idempotency-Key": "k"}) == {"task_id": "ü"}
    (said,) = server.said
    assert said.body == {"prompt": "ä"}
    assert said.headers["Idempotency-Key"] == "k"
    assert said.headers["Authorization"] == "Bearer local"


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(CliError) as caught:
        Client(closed_port().replace("//", "//user:pa55w0rd@")).get("/v1/pools")
    assert caught.value.status == exits.UNREACHABLE
    assert "pa55w0rd" not in f"{caught.value} {caught.value.remedy} {caught.value.details}"


def test_a_line_end_around_the_key_is_none_of_it(server):
    server.on("GET", "/v1/pools", answer(body=[]))
    Client(server.url, token="lo_mine\n").get("/v1/pools")
    assert server.said[0].headers["Authorization"] == "Bearer lo_mine"


@pytest.mark.parametrize("key", ["lo_one\nlo_two", "lo_ä"])
def test_what_can_be_no_key_is_refused_and_not_repeated(server, key):
    with pytest.raises(CliError) as caught:
        Client(server.url, token=key).get("/v1/pools")
    assert caught.value.status == exits.USAGE
    assert "lo_" not in str(caught.value) + caught.value.remedy


def test_query_values_are_quoted_and_none_left_out(server, client):
    server.on("GET", "/v1/tasks", answer(body=[]))
    client.get("/v1/tasks", state=None, model_ref="a b&c", limit=3)
    assert server.said[0].path == "/v1/tasks?model_ref=a+b%26c&limit=3"


@pytest.mark.parametrize(
    "status, exit_status",
    [(400, exits.USAGE), (413, exits.USAGE), (403, exits.FAILED), (404, exits.FAILED), (409, exits.FAILED),
     (429, exits.REFUSED), (503, exits.REFUSED), (500, exits.FAILED)],
)  # fmt: skip
def test_an_error_keeps_the_servers_words_and_gets_the_fitting_status(server, client, status, exit_status):
    body = {"code": "SOME_CODE", "message": "no", "remedy": "do", "retry_after_ms": 1500, "field": "prompt"}
    for wrapped in (body, {"error": body}):
        server.on("GET", "/x", answer(status, wrapped))
        with pytest.raises(CliError) as caught:
            client.get("/x")
        assert (caught.value.message, caught.value.remedy) == ("no", "do (after 1.5 s)")
        assert (caught.value.code, caught.value.status) == ("SOME_CODE", exit_status)
        assert caught.value.details["field"] == "prompt"


@pytest.mark.parametrize("token, told", [("local", "asks for a key"), ("lo_wrong", "is not known")])
def test_who_named_no_key_is_told_how_to(server, token, told):
    refusal = {"code": "BAD_TOKEN", "message": "this key is not known", "remedy": "Use one that is."}
    server.on("GET", "/v1/queue", answer(401, refusal))
    with pytest.raises(CliError) as refused:
        Client(server.url, token=token).get("/v1/queue")
    assert told in refused.value.message
    assert refused.value.details["http_status"] == 401
    assert ("LLORCH_API_TOKEN" in refused.value.remedy) == (token == "local")


def test_a_server_that_does_not_answer_is_unreachable():
    with pytest.raises(CliError) as caught:
        Client(closed_port()).get("/x")
    assert caught.value.status == exits.UNREACHABLE
    assert "llama-orch serve" in caught.value.remedy


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://h", "http://", "http://h:99999", "http://[::1"])
def test_an_address_that_is_none_is_a_usage_error(url):
    with pytest.raises(CliError) as caught:
        Client(url)
    assert caught.value.status == exits.USAGE


def test_a_stream_ends_with_its_end(server, client, frame, pauses):
    chunks = [frame("started", {}, "1.0"), b": beat\n\n", frame("token", {"t": "a"}, "1.1"), frame("end", {}, "1.2")]
    server.on("GET", STREAM, answer(chunks=[*chunks, frame("token", {"t": "never"}, "1.3")]))
    assert [event for event, _, _ in events(client.stream("t"))] == ["started", "token", "end"]
    assert pauses == []


def test_a_cut_stream_is_resumed_after_the_last_frame_seen(server, client, frame, pauses):
    server.on(
        "GET",
        STREAM,
        answer(chunks=[frame("started", {}, "1.0"), frame("token", {"t": "a"}, "1.1"), b"id: 1.2\nevent: tok"]),
        answer(503, {"code": "JOURNAL_UNAVAILABLE", "message": "full"}),
        answer(chunks=[frame("token", {"t": "b"}, "2.2"), frame("metrics", {}), frame("end", {}, "2.3")]),
    )
    seen = events(client.stream("t"))
    assert [data["t"] for event, data, _ in seen if event == "token"] == ["a", "b"]
    assert [said.headers.get("Last-Event-ID") for said in server.asked("GET", STREAM)] == [None, "1.1", "1.1"]
    assert pauses == [0.1, 0.2]


def test_an_error_of_the_transport_does_not_end_the_task(server, client, frame):
    server.on(
        "GET",
        STREAM,
        answer(chunks=[frame("started", {}, "1.0"), frame("error", {"code": "JOURNAL_UNAVAILABLE", "message": "x"})]),
        answer(chunks=[frame("end", {}, "1.1")]),
    )
    assert [event for event, _, _ in events(client.stream("t"))] == ["started", "reconnected", "end"]


def test_an_error_of_the_task_ends_the_stream(server, client, frame):
    server.on("GET", STREAM, answer(chunks=[frame("error", {"code": "WORKER_RESET", "message": "x"}, "1.1")]))
    assert [event for event, _, _ in events(client.stream("t"))] == ["error"]


def test_a_lost_tail_is_told_and_the_stream_goes_on_from_what_is_held(server, client, frame):
    server.on(
        "GET",
        STREAM,
        answer(409, {"code": "RESUME_LOST", "message": "gone", "last_id_held": "1.4"}),
        answer(chunks=[frame("token", {"t": "x"}, "2.5"), frame("end", {}, "2.6")]),
    )
    seen = events(client.stream("t", "1.9"))
    assert seen[0] == ("resume_lost", {"last_id_held": "1.4", "seen": "1.9"}, "")
    assert [event for event, _, _ in seen[1:]] == ["token", "end"]
    assert [said.headers["Last-Event-ID"] for said in server.asked("GET", STREAM)] == ["1.9", "1.4"]


def test_a_server_that_stays_away_is_given_up_with_the_way_to_go_on(pauses):
    with pytest.raises(CliError) as caught:
        list(Client(closed_port(), pause=pauses.append).stream("t", "1.5"))
    assert len(pauses) == MOST_RETRIES
    assert max(pauses) <= 5
    assert caught.value.status == exits.UNREACHABLE
    assert "llama-orch stream t --from 1.5" in caught.value.remedy


def test_an_unknown_task_is_not_asked_for_again(server, client, pauses):
    with pytest.raises(CliError) as caught:
        list(client.stream("t"))
    assert caught.value.code == "NOT_FOUND"
    assert pauses == []


def test_a_server_that_comes_back_elsewhere_is_found(server, frame, pauses):
    server.on("GET", STREAM, answer(chunks=[frame("end", {}, "1.1")]))
    client = Client(closed_port(), pause=pauses.append, relocate=lambda: server.url)
    assert [event for event, _, _ in events(client.stream("t"))] == ["reconnected", "end"]
