"""Both clients do the same: calls, retries, streams that resume, and what they raise."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import httpx2
import pytest

from llama_orch.client import (
    ApiError,
    AsyncClient,
    AsyncTaskHandle,
    BadTokenError,
    BudgetCap,
    Client,
    End,
    InvalidParamsError,
    JournalUnavailableError,
    LlamaOrchError,
    Metrics,
    NewSession,
    NotFoundError,
    Queued,
    Reconnected,
    Restarted,
    ResumeLostError,
    SilentError,
    Started,
    StreamBrokenError,
    TaskFailedError,
    TaskHandle,
    TaskRequest,
    Token,
    UnreachableError,
)
from llama_orch.client.target import Server

URL = "http://server"
T = "11111111-1111-4111-8111-111111111111"
REQUEST = TaskRequest(model_ref="m", prompt="hi")
ACCEPTED = (202, {"task_id": T, "queue_position": 2, "newer": 1})
GONE = httpx2.ConnectError("refused")
BUSY = (503, {"code": "JOURNAL_UNAVAILABLE", "message": "full", "retriable": True, "retry_after_ms": 700})


def piece(event: str, data: dict[str, Any], frame_id: str = "") -> bytes:
    head = f"id: {frame_id}\n" if frame_id else ""
    return f"event: {event}\n{head}data: {json.dumps(data)}\n\n".encode()


START, A, B = piece("started", {"seed": 7}, "1.0"), piece("token", {"t": "a"}, "1.1"), piece("token", {"t": "b"}, "1.2")
END = piece("end", {"tokens_out": 2, "finish_reason": "stop", "usage": {"total_tokens": 5}}, "1.3")


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_submission_carries_a_key_of_its_own_and_is_repeated_with_it(client, wire):
    wire.say(GONE, BUSY, ACCEPTED, ACCEPTED)
    handle = client.submit(REQUEST)
    client.submit(REQUEST)
    assert (handle.task_id, handle.admission.queue_position) == (T, 2)
    assert [asked.headers["Idempotency-Key"] for asked in wire.asked] == ["key-0"] * 3 + ["key-1"]
    assert wire.asked[0].content == b'{"model_ref":"m","prompt":"hi"}'
    assert wire.asked[0].headers["Authorization"] == "Bearer key"
    assert wire.pauses == [0.1, 0.7]


def test_a_named_key_is_sent_as_it_is(client, wire):
    wire.say(ACCEPTED)
    client.submit(REQUEST, idempotency_key="mine")
    assert wire.asked[0].headers["Idempotency-Key"] == "mine"


def test_retries_end(client, wire):
    wire.say(*[BUSY] * 4)
    with pytest.raises(JournalUnavailableError) as caught:
        client.pools()
    assert (len(wire.asked), caught.value.retry_after_ms) == (4, 700)


def test_a_server_that_was_started_again_with_another_key_is_asked_with_that(client, wire, servers):
    refused = (401, {"code": "BAD_TOKEN", "message": "no"})
    servers.append(Server(URL, "next"))
    wire.say(refused, {"pools": []})
    assert client.pools() == []
    servers.append(Server(URL, "third"))
    wire.say(refused, [START, piece("end", {}, "1.1")])
    assert len(list(client.stream(T))) == 2
    assert [asked.headers["Authorization"].split()[1] for asked in wire.asked] == ["key", "next", "next", "third"]
    wire.say(refused)
    with pytest.raises(BadTokenError):
        client.pools()


def test_what_is_wrong_is_not_sent_again(client, wire):
    wire.say((400, {"code": "INVALID_PARAMS", "message": "no", "field": "prompt", "got": 3}))
    with pytest.raises(InvalidParamsError) as caught:
        client.submit(REQUEST)
    assert (len(wire.asked), caught.value.field, caught.value.got) == (1, "prompt", 3)


@pytest.mark.parametrize("ask", [lambda c: c.cancel("t"), lambda c: c.pools(), lambda c: list(c.stream("t"))])
def test_a_redirect_is_no_answer(client, wire, ask):
    wire.say((301, None))
    with pytest.raises(ApiError) as caught:
        ask(client)
    assert (caught.value.status, len(wire.asked)) == (301, 1)


def test_a_server_that_is_silent_or_away_is_told_apart(client, wire):
    wire.say(*[httpx2.ReadTimeout("slow")] * 4, *[GONE] * 4)
    with pytest.raises(SilentError, match="too long"):
        client.queue()
    with pytest.raises(UnreachableError, match="does not answer") as caught:
        client.queue()
    assert caught.value.url == "http://server"


@pytest.mark.parametrize(
    "ask, method, target, body, expected",
    [
        (lambda c: c.get("t").state, "GET", "/v1/tasks/t", {"task_id": "t", "state": "running"}, "running"),
        (lambda c: c.tasks(state="queued", limit=2).next, "GET", "/v1/tasks?state=queued&limit=2", {"tasks": [], "next": "9"}, "9"),
        (lambda c: c.cancel("t"), "POST", "/v1/tasks/t/cancel", None, None),
        (lambda c: c.decision("t"), "GET", "/v1/tasks/t/decision", {"a": 1}, {"a": 1}),
        (lambda c: [s.turns for s in c.sessions()], "GET", "/v1/sessions", {"sessions": [{"session_id": "s", "turns": 3}]}, [3]),
        (lambda c: c.session("s").session_id, "GET", "/v1/sessions/s", {"session_id": "s"}, "s"),
        (lambda c: c.open_session(NewSession(turn_limit=3)).turn_limit, "POST", "/v1/sessions", {"session_id": "s", "turn_limit": 3}, 3),
        (lambda c: c.end_session("s"), "DELETE", "/v1/sessions/s", None, None),
        (lambda c: [b.window for b in c.budgets()], "GET", "/v1/budgets", {"budgets": [{"scope": "key", "subject": "k"}]}, ["none"]),
        (lambda c: c.budgets("session", "s"), "GET", "/v1/budgets/session/s", {"budgets": []}, []),
        (lambda c: c.set_budget("key", "k", BudgetCap(window="day", tokens=5)).caps.tokens, "PUT", "/v1/budgets/key/k",
         {"scope": "key", "subject": "k", "caps": {"tokens": 5}}, 5),
        (lambda c: c.remove_budget("key", "k", window="day"), "DELETE", "/v1/budgets/key/k?window=day", None, None),
        (lambda c: c.queue(limit=1).groups, "GET", "/v1/queue?limit=1", {"groups": []}, []),
        (lambda c: [p.slots for p in c.pools()], "GET", "/v1/pools", {"pools": [{"pool_id": "p", "slots": 2}]}, [2]),
        (lambda c: c.pool_health("p"), "GET", "/v1/pools/p/health", {"live": True}, {"live": True}),
        (lambda c: [m.id for m in c.models()], "GET", "/v1/models", {"data": [{"id": "m"}]}, ["m"]),
        (lambda c: c.capabilities(), "GET", "/v1/capabilities", {"engines": []}, {"engines": []}),
    ],
)  # fmt: skip
def test_each_question_has_its_route_and_its_answer(client, wire, ask, method, target, body, expected):
    wire.say((200 if body is not None else 204, body))
    assert ask(client) == expected
    (asked,) = wire.asked
    assert (asked.method, asked.url.raw_path.decode()) == (method, target)


def test_waiting_asks_until_the_task_has_ended(client, wire):
    running = {"task_id": T, "state": "running"}
    wire.say(running, GONE, running, {"task_id": T, "state": "completed", "text": "ab"})
    assert client.wait(T).text == "ab"
    assert "wait=20000" in str(wire.asked[0].url)
    wire.say({"task_id": T, "state": "failed", "error": {"code": "WORKER_RESET", "message": "m", "retriable": True}})
    with pytest.raises(TaskFailedError) as caught:
        client.task(T).wait()
    assert (caught.value.code, caught.value.retriable, caught.value.task_id) == ("WORKER_RESET", True, T)


# --- streams ------------------------------------------------------------------------------------------------------------


def test_a_stream_is_typed_and_ends_with_its_end(client, wire):
    wire.say(
        [piece("queued", {"queue_position": 1}), START + A, piece("metrics", {"queue_depth": 3}), B, b": hb\n\n", END]
    )
    events = list(client.stream(T, progress=True, metrics=True))
    assert [type(event) for event in events] == [Queued, Started, Token, Metrics, Token, End]
    assert [event.text for event in events if isinstance(event, Token)] == ["a", "b"]
    assert (events[-1].frame_id, events[-1].usage.total_tokens) == ("1.3", 5)
    assert "progress=1&metrics=1" in str(wire.asked[0].url)
    assert wire.bodies[0].closed


def test_a_stream_that_breaks_goes_on_after_its_last_frame(client, wire):
    wire.say([START + A[:9], httpx2.ReadError("cut")], BUSY, GONE, [A, B, END])
    events = list(client.stream(T))
    told = [event for event in events if isinstance(event, Reconnected)]
    assert [(event.after, event.attempt) for event in told] == [("1.0", 1), ("1.0", 2), ("1.0", 3)]
    assert [event.frame_id for event in events if event not in told] == ["1.0", "1.1", "1.2", "1.3"]
    assert [asked.headers.get("Last-Event-ID") for asked in wire.asked] == [None, "1.0", "1.0", "1.0"]
    assert wire.pauses == [0.1, 0.7, 0.4]
    assert all(body.closed for body in wire.bodies)


def test_a_stream_begins_where_it_is_told_to(client, wire):
    wire.say([B, END])
    assert [event.frame_id for event in client.task(T).stream(after="1.1")] == ["1.2", "1.3"]
    assert wire.asked[0].headers["Last-Event-ID"] == "1.1"


def test_the_text_is_what_the_first_answer_says_aloud(client, wire):
    other = piece("token", {"t": "x", "choice": 1}, "1.2") + piece("token", {"t": "y", "channel": "reasoning"}, "1.3")
    wire.say([START, A, other, piece("end", {}, "1.4")])
    assert list(client.task(T).text()) == ["a"]


def test_a_task_that_fails_is_raised_at_its_place(client, wire):
    error = {"code": "DECODE_TIMEOUT", "message": "silent", "retriable": True, "retry_after_ms": 1000}
    wire.say([START, A, piece("error", error, "1.2")])
    seen: list[Any] = []
    with pytest.raises(TaskFailedError) as caught:
        seen.extend(client.stream(T))
    assert (caught.value.code, caught.value.retry_after_ms) == ("DECODE_TIMEOUT", 1000)
    assert [asked.method for asked in wire.asked] == ["GET"]
    assert wire.bodies[0].closed


def test_a_lost_tail_is_raised_or_gone_on_from(client, wire):
    lost = (409, {"code": "RESUME_LOST", "message": "gone", "last_id_held": "1.0"})
    wire.say(lost)
    with pytest.raises(ResumeLostError) as caught:
        list(client.stream(T, after="1.9"))
    assert (caught.value.last_id_held, caught.value.seen) == ("1.0", "1.9")

    wire.say(lost, [piece("token", {"t": "c"}, "2.1"), piece("end", {}, "2.2")])
    events = list(client.stream(T, after="1.9", restart_lost=True))
    assert events[0] == Restarted(last_id_held="1.0", seen="1.9")
    assert [event.frame_id for event in events[1:]] == ["2.1", "2.2"]


def test_a_server_that_stays_away_is_given_up(client, wire):
    wire.say([START], *[GONE] * 10)
    with pytest.raises(StreamBrokenError) as caught:
        list(client.stream(T))
    assert (caught.value.task_id, caught.value.last_id) == (T, "1.0")
    assert len(wire.asked) == 11


def test_an_unknown_task_is_told_at_once(client, wire):
    wire.say((404, {"code": "NOT_FOUND", "message": "no"}))
    with pytest.raises(NotFoundError):
        list(client.stream(T))
    assert wire.pauses == []


def test_a_frame_that_is_none_of_ours_is_told(client, wire):
    wire.say([b"id: 1.0\nevent: started\ndata: <html>\n\n"])
    with pytest.raises(LlamaOrchError, match="not what a llama-orch server sends"):
        list(client.stream(T))


def test_a_reader_who_leaves_closes_the_connection_and_takes_no_more(client, wire):
    wire.say([START, A, B, END])
    stream = client.stream(T)
    for event in stream:
        if isinstance(event, Token):
            break
    stream.close()
    assert wire.bodies[0].closed
    assert wire.bodies[0].taken == 2
    assert list(stream) == []


# --- the asynchronous one alone --------------------------------------------------------------------------------------------


def test_cancelling_a_call_cancels_its_request():
    given_up: list[str] = []

    class Never(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                given_up.append(request.url.path)
                raise
            raise AssertionError

    async def scene() -> None:
        async with AsyncClient("http://server", transport=Never()) as client:
            for work in (client.submit(REQUEST), client.wait(T), anext(client.stream(T))):
                asked.clear()
                call = asyncio.ensure_future(work)
                await asked.wait()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call

    asked = asyncio.Event()
    asyncio.run(scene())
    assert given_up == ["/v1/tasks", f"/v1/tasks/{T}", f"/v1/tasks/{T}/stream"]


@pytest.mark.parametrize("one, other", [(Client, AsyncClient), (TaskHandle, AsyncTaskHandle)])
def test_both_clients_have_the_same_methods_with_the_same_arguments(one, other):
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in vars(kind).items()
            if not name.startswith("_") and callable(member)
        }

    assert methods(one) == methods(other)
    assert methods(one)
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)


def test_the_asynchronous_half_is_imported_when_it_is_asked_for():
    import llama_orch.client

    assert llama_orch.client.AsyncClient is AsyncClient
    with pytest.raises(AttributeError):
        llama_orch.client.NoSuchThing  # noqa: B018
    for name in llama_orch.client.__all__:
        assert getattr(llama_orch.client, name) is not None
