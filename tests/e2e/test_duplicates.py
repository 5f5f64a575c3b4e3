"""Fifty racing duplicates of one key: one engine call, fifty streams of identical entries (ADM-6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from .conftest import MOCK_POOL, Server, wait_until

SAYS = "[[mock rate=100 tokens=40]] tell me"
FIFTY = 50


def chunks(raw: bytes) -> list[bytes]:
    """What a stream says: comments tell of each reader's own wait."""
    return [event for event in raw.split(b"\n\n") if event and not event.startswith(b":")]


async def stream(
    client: httpx.AsyncClient, key: str, gate: asyncio.Event, *, prompt: str = SAYS, seen: list[bytes] | None = None
) -> tuple[str, bytes]:
    """One streamed chat completion: the task behind it, and all its bytes until its end or its break."""
    body = {"model": "mock", "stream": True, "messages": [{"role": "user", "content": prompt}], "seed": 7}
    await gate.wait()
    raw, task_id = b"", ""
    try:
        async with client.stream(
            "POST", "/v1/chat/completions", json=body, headers={"Idempotency-Key": key}, timeout=60
        ) as answer:
            assert answer.status_code == 200, await answer.aread()
            task_id = answer.headers["x-task-id"]
            async for piece in answer.aiter_raw():
                raw += piece
                if seen is not None:
                    seen.append(piece)
    except httpx.TransportError:
        assert seen is not None, "nobody broke this stream off"
    return task_id, raw


async def race(
    url: str, key: str, *, seen: list[bytes] | None = None, meanwhile: Callable[[], Any] | None = None
) -> list[tuple[str, bytes]]:
    """Fifty of them at once."""
    gate = asyncio.Event()
    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=None)) as client:
        running = [asyncio.create_task(stream(client, key, gate, seen=seen)) for _ in range(FIFTY)]
        gate.set()
        if meanwhile is not None:
            await asyncio.to_thread(meanwhile)
        return await asyncio.gather(*running)


@pytest.fixture
def server(new_server: Callable[..., Server]) -> Server:
    return new_server({"pools": [MOCK_POOL]}).start()


def test_fifty_at_once_are_one_task_and_one_stream(server: Server) -> None:
    said = asyncio.run(race(server.url, "one"))
    (task_id,) = {task for task, _ in said}
    (once,) = {tuple(chunks(raw)) for _, raw in said}
    assert once[-1] == b"data: [DONE]"
    info = server.get(f"/v1/tasks/{task_id}")
    assert (info["state"], info["attempts"], info["usage"]["completion_tokens"]) == ("completed", 1, 40)
    # After the end the same comes out of the journal, and again nothing runs.
    late = asyncio.run(race(server.url, "one"))
    assert {(task, tuple(chunks(raw))) for task, raw in late} == {(task_id, once)}
    assert len(server.get("/v1/tasks")["tasks"]) == 1


def test_they_find_their_task_again_after_a_kill(server: Server) -> None:
    seen: list[bytes] = []

    def kill() -> None:
        wait_until(lambda: sum(piece.count(b'"content"') for piece in seen) > FIFTY * 5, "some tokens")
        server.kill()

    before = asyncio.run(race(server.url, "one", seen=seen, meanwhile=kill))
    (task_id,) = {task for task, _ in before}
    server.restart()
    after = asyncio.run(race(server.url, "one"))
    (once,) = {tuple(chunks(raw)) for _, raw in after}
    assert {task for task, _ in after} == {task_id}
    assert once[-1] == b"data: [DONE]"
    whole = b"\n\n".join(once)
    for _, raw in before:
        # What was seen before the kill, up to a cut in the middle of a chunk, is how the same stream begins now.
        assert whole.startswith(b"\n\n".join(chunks(raw[: raw.rfind(b"\n\n") + 2])))
    info = server.get(f"/v1/tasks/{task_id}")
    assert (info["state"], info["usage"]["completion_tokens"]) == ("completed", 40)
    assert len(server.get("/v1/tasks")["tasks"]) == 1


def test_another_body_is_refused_and_runs_nothing(server: Server) -> None:
    said = asyncio.run(race(server.url, "one"))
    body = {"model": "mock", "messages": [{"role": "user", "content": "something else"}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers={"Idempotency-Key": "one"}, timeout=60)
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "CONFLICT"
    assert answer.json()["error"]["task_id"] == said[0][0]
    assert len(server.get("/v1/tasks")["tasks"]) == 1
