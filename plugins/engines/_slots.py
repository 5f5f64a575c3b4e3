"""Waits until an engine's slots are seen free: one poll at a time for all who wait (CAN-1)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal

SlotAnswer = Literal["slot-free", "engine-gone"]
#: pause between two looks, in seconds, while a decoding slot is about to be freed
FIRST_PAUSE_S: Final = 0.005
#: and later, when the engine has to finish a prefill first
LAST_PAUSE_S: Final = 0.025
QUICK_LOOKS: Final = 40


class EngineGoneError(Exception):
    """Nobody answers at the engine's address any more."""


class _Waiter:
    __slots__ = ("future", "left", "looks", "others", "slot")

    def __init__(self, slot: int, others: Callable[[], int], looks: int) -> None:
        self.slot = slot
        self.others = others
        self.looks = self.left = looks
        self.future: asyncio.Future[SlotAnswer] = asyncio.get_running_loop().create_future()


class SlotWatch:
    """Looks at an engine's slots while somebody waits for one.

    Args:
        look: asks the engine which slots are busy, ``{slot: busy}``, or ``None`` when it did not understand its
            answer. Raises :class:`EngineGoneError` when nobody answers.
    """

    def __init__(self, look: Callable[[], Awaitable[Mapping[int, bool] | None]]) -> None:
        self._look = look
        self._waiters: set[_Waiter] = set()
        self._task: asyncio.Task[None] | None = None
        self._looked = 0
        self._closed = False

    async def free(self, slot: int, *, others: Callable[[], int], looks: int = 1) -> SlotAnswer:
        """Wait until a slot is free, or the engine gone.

        Args:
            slot: its number; a negative one is unknown, then as many slots must be free as nobody uses.
            others: how many slots are rightly in use by other attempts, asked at each look.
            looks: how many looks in a row must find it free; more than one where the engine may not have taken the
                job from its own queue yet.
        """
        if self._closed:
            return "engine-gone"
        waiter = _Waiter(slot, others, looks)
        self._waiters.add(waiter)
        self._looked = 0
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            return await waiter.future
        finally:
            self._waiters.discard(waiter)

    async def close(self) -> None:
        """The engine is given up: everybody who waits hears so."""
        self._closed = True
        self._answer(self._waiters, "engine-gone")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._waiters:
                # Whoever comes while the answer is on its way waits for the next one: this one may be older than
                # their cancel.
                asked = set(self._waiters)
                try:
                    busy = await self._look()
                except EngineGoneError:
                    self._answer(asked, "engine-gone")
                    busy = None
                except Exception:
                    # Nobody waits for this task: whatever a look raises, it was not understood, and the next one may be.
                    busy = None
                if busy is not None:
                    self._settle(asked & self._waiters, busy)
                if not self._waiters:
                    break
                self._looked += 1
                slower = 1.25 ** max(0, min(self._looked - QUICK_LOOKS, 20))
                await asyncio.sleep(min(FIRST_PAUSE_S * slower, LAST_PAUSE_S))
        finally:
            self._task = None

    def _settle(self, waiters: set[_Waiter], busy: Mapping[int, bool]) -> None:
        in_use = sum(busy.values())
        for waiter in waiters:
            free = not busy[waiter.slot] if waiter.slot in busy else in_use <= waiter.others()
            waiter.left = waiter.left - 1 if free else waiter.looks
            if waiter.left <= 0:
                self._answer({waiter}, "slot-free")

    def _answer(self, waiters: set[_Waiter], answer: SlotAnswer) -> None:
        for waiter in list(waiters):
            self._waiters.discard(waiter)
            if not waiter.future.done():
                waiter.future.set_result(answer)
