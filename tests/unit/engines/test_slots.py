"""Waiting for slots: one question for all who wait, none that is older than the wish."""

import asyncio

import pytest

from llama_orch.plugins.engines._slots import EngineGoneError, SlotWatch


class Looks:
    """An engine's slots, as a test moves them."""

    def __init__(self, *busy):
        self.busy = set(busy)
        self.gone = False
        self.garbled = False
        self.asked = 0
        self.changed = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self):
        self.asked += 1
        self.changed.set()
        seen = {n: n in self.busy for n in range(64)}
        await self.gate.wait()
        if self.gone:
            raise EngineGoneError
        return None if self.garbled else seen


def nobody():
    return 0


async def settled(looks, count):
    """Until the engine was asked so often."""
    while looks.asked < count:
        looks.changed.clear()
        await looks.changed.wait()


def run(test):
    async def bounded():
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


def test_a_slot_is_free_once_it_is_seen_free():
    async def test():
        looks = Looks(3)
        watch = SlotWatch(looks)
        waiting = asyncio.create_task(watch.free(3, others=nobody))
        await settled(looks, 3)
        assert not waiting.done()
        looks.busy.clear()
        assert await waiting == "slot-free"

    run(test)


def test_an_answer_that_was_on_its_way_before_the_wish_does_not_count():
    async def test():
        looks = Looks(0)
        watch = SlotWatch(looks)
        looks.gate.clear()
        first = asyncio.create_task(watch.free(0, others=nobody))
        await settled(looks, 1)  # slot 1 was free when this question was asked
        looks.busy.add(1)
        second = asyncio.create_task(watch.free(1, others=nobody))
        await asyncio.sleep(0)
        looks.gate.set()
        await settled(looks, 3)
        assert not second.done()
        looks.busy.clear()
        assert await asyncio.gather(first, second) == ["slot-free", "slot-free"]

    run(test)


def test_many_who_wait_share_the_questions():
    async def test():
        looks = Looks(*range(64))
        watch = SlotWatch(looks)
        waiting = [asyncio.create_task(watch.free(n, others=nobody)) for n in range(64)]
        await settled(looks, 2)
        looks.busy.clear()
        assert await asyncio.gather(*waiting) == ["slot-free"] * 64
        assert looks.asked <= 4

    run(test)


def test_where_one_look_may_be_too_early_two_in_a_row_are_needed():
    async def test():
        looks = Looks()
        watch = SlotWatch(looks)
        waiting = asyncio.create_task(watch.free(5, others=nobody, looks=2))
        await settled(looks, 1)
        looks.busy.add(5)  # the job reached the slot after the first look
        await settled(looks, 3)
        assert not waiting.done()
        looks.busy.clear()
        assert await waiting == "slot-free"
        assert looks.asked >= 5

    run(test)


def test_an_unknown_slot_is_free_when_only_others_are_busy():
    async def test():
        looks = Looks(1, 2)
        watch = SlotWatch(looks)
        waiting = asyncio.create_task(watch.free(-1, others=lambda: 1))
        await settled(looks, 3)
        assert not waiting.done()
        looks.busy.discard(2)
        assert await waiting == "slot-free"

    run(test)


@pytest.mark.parametrize("garbled_first", [False, True])
def test_an_engine_that_is_gone_frees_all_its_slots(garbled_first):
    async def test():
        looks = Looks(0)
        looks.garbled = garbled_first
        watch = SlotWatch(looks)
        waiting = asyncio.create_task(watch.free(0, others=nobody))
        await settled(looks, 2)
        assert not waiting.done()
        looks.gone = True
        assert await waiting == "engine-gone"

    run(test)


def test_closing_answers_everybody_and_later_ones_at_once():
    async def test():
        looks = Looks(0)
        watch = SlotWatch(looks)
        waiting = asyncio.create_task(watch.free(0, others=nobody))
        await settled(looks, 1)
        await watch.close()
        assert await waiting == "engine-gone"
        assert await watch.free(0, others=nobody) == "engine-gone"

    run(test)


def test_nobody_is_asked_while_nobody_waits():
    async def test():
        looks = Looks()
        watch = SlotWatch(looks)
        await watch.free(0, others=nobody)
        asked = looks.asked
        for _ in range(100):
            await asyncio.sleep(0)
        assert looks.asked == asked
        cancelled = asyncio.create_task(watch.free(0, others=nobody))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await watch.free(0, others=nobody) == "slot-free"

    run(test)


def test_a_look_that_fails_in_a_way_nobody_expected_is_one_that_was_not_understood():
    async def test():
        looks = Looks(3)
        fails = [OverflowError("cannot convert float infinity to integer"), RecursionError()]

        async def look():
            if fails:
                raise fails.pop()
            return await looks()

        watch = SlotWatch(look)
        waiting = asyncio.create_task(watch.free(3, others=nobody))
        await settled(looks, 1)
        looks.busy.clear()
        assert await waiting == "slot-free"

    run(test)
