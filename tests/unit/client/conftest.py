"""Both clients over a transport that answers as a test says, and one way to use them."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from llama_orch.client import AsyncClient, Client
from llama_orch.client.target import Server, Target

URL = "http://server"


class Pieces(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body in pieces; a piece that is an exception is raised. It says whether it was closed."""

    def __init__(self, pieces: list[bytes | Exception]) -> None:
        self._pieces = pieces
        self.taken = 0
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.taken += 1
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            await asyncio.sleep(0)
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Wire:
    """Gives its answers one after the other, and keeps what was asked."""

    answers: list[Any] = field(default_factory=list)
    asked: list[httpx2.Request] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    bodies: list[Pieces] = field(default_factory=list)

    def say(self, *answers: Any) -> None:
        """Each is an exception, JSON, ``(status, JSON)``, or a list of pieces."""
        self.answers += answers

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        assert self.answers, f"nobody said what {request.method} {request.url} answers"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, list):
            self.bodies.append(Pieces(answer))
            return httpx2.Response(200, stream=self.bodies[-1])
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return httpx2.Response(status, content=b"" if body is None else json.dumps(body).encode())


@pytest.fixture
def wire() -> Wire:
    return Wire()


class Either:
    """A client of either kind whose calls are done when they return."""

    def __init__(self, inner: Any, run: Callable[[Any], Any]) -> None:
        self._inner, self._run = inner, run

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._wrapped(found) if callable(found) else found

    def _wrapped(self, method: Callable[..., Any]) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            value = method(*arguments, **named)
            value = self._run(value) if inspect.iscoroutine(value) else value
            return value if isinstance(value, (str, list, dict, tuple, type(None))) else Either(value, self._run)

        return call

    def __iter__(self) -> Iterator[Any]:
        if not hasattr(self._inner, "__aiter__"):
            yield from self._inner
            return
        rest = aiter(self._inner)

        async def following() -> Any:
            return await anext(rest)

        while True:
            try:
                yield self._run(following())
            except StopAsyncIteration:
                return


@pytest.fixture
def servers() -> list[Server]:
    """Where the server was and is; the last one counts when it is looked for."""
    return [Server(URL, "key")]


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, wire: Wire, servers: list[Server]) -> Iterator[Any]:
    target = Target(servers[0], lambda: servers[-1])
    keys = iter(f"key-{n}" for n in range(99))
    options: dict[str, Any] = {"target": target, "rand": lambda: 1.0, "new_key": lambda: next(keys)}
    if request.param == "sync":
        with Client(transport=httpx2.MockTransport(wire), sleep=wire.pauses.append, **options) as made:
            yield Either(made, lambda value: value)
        return

    async def sleep(seconds: float) -> None:
        wire.pauses.append(seconds)

    with asyncio.Runner() as runner:
        other = AsyncClient(transport=httpx2.MockTransport(wire), sleep=sleep, **options)
        yield Either(other, runner.run)
        runner.run(other.close())
