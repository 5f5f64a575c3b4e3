"""The SDK against real servers that are killed: each token once, in order, one end; many streams and slow readers beside."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llama_orch.client import (
    AsyncClient,
    Client,
    End,
    Event,
    NotFoundError,
    Reconnected,
    Started,
    TaskRequest,
    Token,
)

TOKENS = 300
STREAMS = 50
POOL = {"id": "mock", "engine": "mock", "model": "mock", "slots": 4}


def request(prompt: str, **fields: Any) -> TaskRequest:
    return TaskRequest(model_ref="mock", prompt=prompt, seed=11, max_tokens=50_000, **fields)


def check(events: list[Event], tokens: int) -> str:
    """One start, each token once and in order, one end; the text."""
    said = [event for event in events if not isinstance(event, Reconnected)]
    assert [type(event) for event in said] == [Started, *[Token] * tokens, End]
    assert [event.index for event in said if isinstance(event, Token)] == list(range(tokens))
    assert [int(event.frame_id.split(".")[1]) for event in said] == list(range(tokens + 2))
    assert isinstance(said[-1], End)
    assert (said[-1].tokens_out, said[-1].finish_reason) == (tokens, "stop")
    return "".join(event.text for event in said if isinstance(event, Token))


@pytest.fixture
def server(new_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server that the SDK finds by its file, wherever it answers after a restart."""
    made = new_server({"pools": [POOL]}).start()
    monkeypatch.setenv("LLORCH_DATA_DIR", str(made.home.data_dir))
    for name in ("LLORCH_URL", "LLORCH_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(stream_retries=None) as made:
        yield made


def test_a_stream_over_two_kills_yields_each_token_once_and_one_end(server, client, eventually):
    events: list[Event] = []
    asked = request(f"[[mock tokens={TOKENS} rate=100]]")
    task = client.submit(asked)

    def read() -> None:
        with task.stream() as stream:
            events.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    for seen in (TOKENS // 8, TOKENS // 2):
        eventually(lambda seen=seen: len(events) > seen, f"{seen} tokens")
        server.kill()
        server.restart()
    reader.join()
    told = [event.frame_id for event in events if isinstance(event, Token)]
    text = check(events, TOKENS)
    epochs = {frame_id.split(".")[0] for frame_id in told}
    assert len(epochs) == 3, "it was killed twice while it decoded"
    assert any(isinstance(event, Reconnected) for event in events)

    ended = task.wait()
    assert (ended.state, ended.text) == ("completed", text)
    assert "".join(client.submit(asked).text()) == text, (
        "what was continued is what would have been said without the kills"
    )


def test_fifty_streams_and_a_slow_reader_over_a_kill_see_the_same(server, eventually):
    async def scene() -> list[list[Event]]:
        async with AsyncClient(stream_retries=None) as client:
            tasks = [await client.submit(request(f"[[mock tokens={TOKENS} rate=150]]")) for _ in range(4)]
            seen: list[list[Event]] = [[] for _ in range(STREAMS)]
            others = asyncio.Event()

            async def read(number: int) -> None:
                async with tasks[number % 4].stream() as stream:
                    async for event in stream:
                        seen[number].append(event)
                        if number == 0:
                            await others.wait()  # it takes nothing more until all the others are through

            slow = asyncio.ensure_future(read(0))
            readers = [asyncio.ensure_future(read(number)) for number in range(1, STREAMS)]
            while len(seen[1]) < TOKENS // 4:
                await asyncio.wait(readers, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.restart)
            await asyncio.gather(*readers)
            assert len(seen[0]) == 1
            others.set()
            await slow
            return seen

    seen = asyncio.run(scene())
    assert len({check(events, TOKENS) for events in seen}) == 1
    assert all(any(isinstance(event, Reconnected) for event in events) for events in seen)


def test_a_submission_that_a_kill_interrupts_is_one_task(server, client):
    """The answer is lost: the same call, sent again to the next server, attaches."""
    first = client.submit(request("[[mock tokens=3]]"), idempotency_key="once")
    server.kill()
    server.restart()
    second = client.submit(request("[[mock tokens=3]]"), idempotency_key="once")
    assert second.task_id == first.task_id
    assert second.admission is not None
    assert second.admission.attached
    assert len(client.tasks().tasks) == 1


def test_waiting_goes_on_over_a_restart(server, client, eventually):
    task = client.submit(request("[[mock tokens=150 rate=50]]"))
    ended: list[Any] = []
    waiter = threading.Thread(target=lambda: ended.append(task.wait()))
    waiter.start()
    eventually(lambda: task.get().state == "running", "the task runs")
    server.kill()
    server.restart()
    waiter.join()
    assert [(found.state, found.usage.completion_tokens) for found in ended] == [("completed", 150)]


def test_what_the_server_tells_of_itself_is_typed(server, client):
    running = client.submit(request("[[mock tokens=5000 rate=100]]", priority="batch"))
    with running.stream() as stream:
        assert isinstance(next(stream), Started)
    running.cancel()
    assert running.wait().state == "cancelled"
    assert [pool.pool_id for pool in client.pools()] == ["mock"]
    assert client.pool_health("mock")["ready"]
    assert [model.id for model in client.models()] == ["mock"]
    assert client.capabilities()["engines"][0]["engine"] == "mock"
    assert running.decision()["selected_pool_id"] == "mock"
    assert client.queue(limit=5).groups is not None
    session = "22222222-2222-4222-8222-222222222222"
    client.submit(request("[[mock tokens=1]]", session_id=session)).wait()
    assert [(found.session_id, found.turns) for found in client.sessions()] == [(session, 1)]
    assert client.session(session).turns_remaining == client.session(session).turn_limit - 1
    with pytest.raises(NotFoundError):
        client.get("33333333-3333-4333-8333-333333333333")
