"""Several streams as one: nothing is lost, each keeps its order, and a slow reader makes nothing grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from llama_orch.api.compat.merging import Merged


class Stream:
    """A stream that gives what a test puts into it."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.asked = 0
        self.closed = False

    def __aiter__(self) -> AsyncIterator[Sequence[Any]]:
        return self

    async def __anext__(self) -> Sequence[Any]:
        self.asked += 1
        item = await self.items.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return [item]

    async def aclose(self) -> None:
        self.closed = True


def test_all_of_all_streams_comes_in_the_order_of_each() -> None:
    async def run() -> list[tuple[int, Any]]:
        streams = [Stream() for _ in range(3)]
        for number, stream in enumerate(streams):
            for n in range(number + 1):
                stream.items.put_nowait(n)
            stream.items.put_nowait(None)
        return [(part.number, part.item) async for parts in Merged(streams) for part in parts]

    found = asyncio.run(run())
    assert sorted(found) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    for number in range(3):
        assert [item for n, item in found if n == number] == list(range(number + 1))


def test_what_is_ready_does_not_wait_for_what_is_not() -> None:
    async def run() -> None:
        silent, loud = Stream(), Stream()
        merged = Merged([silent, loud])
        for n in range(3):
            loud.items.put_nowait(n)
            parts = await anext(merged)
            assert [(part.number, part.item) for part in parts] == [(1, n)]
        assert silent.asked == 1
        await merged.aclose()

    asyncio.run(run())


def test_nothing_is_asked_for_before_what_was_there_is_taken() -> None:
    async def run() -> None:
        stream = Stream()
        merged = Merged([stream])
        for n in range(5):
            stream.items.put_nowait(n)
        await anext(merged)
        await asyncio.sleep(0)
        assert stream.asked == 1
        await merged.aclose()

    asyncio.run(run())


def test_an_error_of_one_is_the_error_of_all_and_closing_closes_all() -> None:
    async def run() -> None:
        streams = [Stream(), Stream()]
        streams[1].items.put_nowait(RuntimeError("broken"))
        merged = Merged(streams)
        with pytest.raises(RuntimeError, match="broken"):
            await anext(merged)
        await merged.aclose()
        assert [stream.closed for stream in streams] == [True, True]
        assert len(asyncio.all_tasks()) == 1
        with pytest.raises(StopAsyncIteration):
            await anext(merged)

    asyncio.run(run())
