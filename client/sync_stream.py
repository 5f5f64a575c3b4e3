"""A stream as an iterator, over connections that come and go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
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
Connect = Callable[[Call[Any]], httpx2.Response]
#: waits, seconds, and finds the server again
Pause = Callable[[float], None]


class Frames(Iterator[Frame]):
    """A stream's frames; leave it with :meth:`close`, or use it in a ``with`` block."""

    def __init__(self, cursor: Cursor, *, connect: Connect, pause: Pause) -> None:
        self._cursor, self._connect, self._pause = cursor, connect, pause
        self._response: httpx2.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._ready: deque[Frame] = deque()
        self._pause_s: float | None = None
        self._closed = False

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Frames:
        return self

    def __next__(self) -> Frame:
        while not self._ready:
            if self._cursor.ended or self._closed:
                self.close()
                raise StopIteration
            self._advance()
        return self._ready.popleft()

    def close(self) -> None:
        """Leave the stream; the task goes on, unless its request said otherwise."""
        self._closed = True
        self._hang_up()

    def _advance(self) -> None:
        """Read a chunk, or connect (again)."""
        cursor = self._cursor
        try:
            if self._response is None:
                if self._pause_s is not None:
                    self._pause(self._pause_s)
                    self._pause_s = None
                self._response = self._connect(cursor.request())
                self._chunks = self._response.iter_bytes()
            self._ready.extend(cursor.feed(self._chunk()))
            if cursor.broken is None:
                if cursor.ended:
                    self._hang_up()  # who hears that the task failed asks for nothing more
                return
            error: LlamaOrchError = cursor.broken
        except LlamaOrchError as refused:
            error = refused
        except BaseException:
            self._hang_up()
            raise
        self._hang_up()
        self._pause_s, told = cursor.failed(error)
        self._ready.extend(told)

    def _chunk(self) -> bytes:
        assert self._response is not None, "connected"
        try:
            chunk = next(self._chunks, None)
        except httpx2.HTTPError as error:
            raise unreachable(error, str(self._response.url)) from error
        if chunk is None:
            raise UnreachableError("the stream broke off")
        return chunk

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


class Stream(Iterator[T], Generic[T]):
    """A stream's events; leave it with :meth:`close`, or use it in a ``with`` block."""

    def __init__(self, frames: Frames, convert: Callable[[Frame], T | None]) -> None:
        self._frames, self._convert = frames, convert

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        while True:
            event = self._convert(next(self._frames))
            if event is not None:
                return event

    def close(self) -> None:
        """Leave the stream; the task goes on, unless its request said otherwise."""
        self._frames.close()
