"""A stream as an asynchronous iterator, over connections that come and go."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

import httpx2

from .calls import Call
from .connection import unreachable
from .errors import LlamaOrchError, UnreachableError
from .resume import Cursor
from .sse import Frame

T = TypeVar("T")
#: opens an answer whose body has not been read
Connect = Callable[[Call[Any]], Awaitable[httpx2.Response]]
#: waits, seconds, and finds the server again
Pause = Callable[[float], Awaitable[None]]


class AsyncFrames(AsyncIterator[Frame]):
    """A stream's frames; leave it with :meth:`close`, or use it in a ``async with`` block."""

    def __init__(self, cursor: Cursor, *, connect: Connect, pause: Pause) -> None:
        self._cursor, self._connect, self._pause = cursor, connect, pause
        self._response: httpx2.Response | None = None
        self._chunks: AsyncIterator[bytes]
        self._ready: deque[Frame] = deque()
        self._pause_s: float | None = None
        self._closed = False

    async def __aenter__(self) -> AsyncFrames:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncFrames:
        return self

    async def __anext__(self) -> Frame:
        while not self._ready:
            if self._cursor.ended or self._closed:
                await self.close()
                raise StopAsyncIteration
            await self._advance()
        return self._ready.popleft()

    async def close(self) -> None:
        """Leave the stream; the task goes on, unless its request said otherwise."""
        self._closed = True
        await self._hang_up()

    async def _advance(self) -> None:
        """Read a chunk, or connect (again)."""
        cursor = self._cursor
        try:
            if self._response is None:
                if self._pause_s is not None:
                    await self._pause(self._pause_s)
                    self._pause_s = None
                self._response = await self._connect(cursor.request())
                self._chunks = self._response.aiter_bytes()
            self._ready.extend(cursor.feed(await self._chunk()))
            if cursor.broken is None:
                if cursor.ended:
                    await self._hang_up()  # who hears that the task failed asks for nothing more
                return
            error: LlamaOrchError = cursor.broken
        except LlamaOrchError as refused:
            error = refused
        except BaseException:
            await self._hang_up()
            raise
        await self._hang_up()
        self._pause_s, told = cursor.failed(error)
        self._ready.extend(told)

    async def _chunk(self) -> bytes:
        assert self._response is not None, "connected"
        try:
            chunk = await anext(self._chunks, None)
        except httpx2.HTTPError as error:
            raise unreachable(error, str(self._response.url)) from error
        if chunk is None:
            raise UnreachableError("the stream broke off")
        return chunk

    async def _hang_up(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None


class AsyncStream(AsyncIterator[T], Generic[T]):
    """A stream's events; leave it with :meth:`close`, or use it in a ``async with`` block."""

    def __init__(self, frames: AsyncFrames, convert: Callable[[Frame], T | None]) -> None:
        self._frames, self._convert = frames, convert

    async def __aenter__(self) -> AsyncStream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncStream[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            event = self._convert(await anext(self._frames))
            if event is not None:
                return event

    async def close(self) -> None:
        """Leave the stream; the task goes on, unless its request said otherwise."""
        await self._frames.close()
