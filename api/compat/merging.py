"""Several tasks' streams as one, for requests that ask for several tasks at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec


class Part(msgspec.Struct, frozen=True, gc=False):
    """An item of one of the streams."""

    #: which of the streams
    number: int
    item: Any


class Merged:
    """What becomes ready in any of the streams, each in its own order.

    A stream's next items are asked for only once those before were taken, so a slow reader makes nothing grow.
    """

    def __init__(self, streams: Sequence[AsyncIterator[Sequence[Any]]]) -> None:
        self._streams = streams
        self._asked: dict[asyncio.Future[Sequence[Any]], int] = {}
        self._open = set(range(len(streams)))

    def __aiter__(self) -> Merged:
        return self

    async def __anext__(self) -> list[Part]:
        while True:
            asked = set(self._asked.values())
            for number in sorted(self._open - asked):
                self._asked[asyncio.ensure_future(self._next(number))] = number
            if not self._asked:
                raise StopAsyncIteration
            done, _ = await asyncio.wait(self._asked, return_when=asyncio.FIRST_COMPLETED)
            parts: list[Part] = []
            for future in sorted(done, key=self._asked.__getitem__):
                number = self._asked.pop(future)
                items = future.result()
                if not items:
                    self._open.discard(number)
                parts += [Part(number, item) for item in items]
            if parts:
                return parts

    async def _next(self, number: int) -> Sequence[Any]:
        """A stream's next items; none = it is over."""
        try:
            return await anext(self._streams[number])
        except StopAsyncIteration:
            return ()

    async def aclose(self) -> None:
        """Stop listening to all of them."""
        asked, self._asked, self._open = list(self._asked), {}, set()
        for future in asked:
            future.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        for stream in self._streams:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
