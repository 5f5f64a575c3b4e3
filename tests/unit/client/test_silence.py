"""A connection on which nothing comes any more, not even a heartbeat, is given up for another one."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from llama_orch.client import AsyncClient, Client, End, Event, Reconnected

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
START = b"event: started\nid: 1.0\ndata: {}\n\n"
END = b"event: end\nid: 1.1\ndata: {}\n\n"


@pytest.fixture
def half_dead() -> Iterator[str]:
    """A server that says nothing more behind the first frame of its first connection, and keeps that open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def serve() -> None:
            for said in (START, END):
                one, _ = listener.accept()
                held.append(one)
                one.recv(65_536)
                one.sendall(HEAD + said)
            held[-1].close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()
        for one in held:
            one.close()


def by_thread(url: str) -> list[Event]:
    with Client(url, silence_s=0.1) as client:
        return list(client.stream("t"))


def by_loop(url: str) -> list[Event]:
    async def scene() -> list[Event]:
        async with AsyncClient(url, silence_s=0.1) as client, client.stream("t") as stream:
            return [event async for event in stream]

    return asyncio.run(scene())


@pytest.mark.parametrize("read", [by_thread, by_loop])
def test_a_silent_connection_is_left_for_another_one(read: Callable[[str], list[Event]], half_dead: str) -> None:
    started, told, end = read(half_dead)
    assert (started.frame_id, end.frame_id) == ("1.0", "1.1")
    assert isinstance(told, Reconnected)
    assert told.after == "1.0"
    assert isinstance(end, End)
