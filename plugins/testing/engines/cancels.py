"""The contract of engines: how an attempt is broken off."""

from __future__ import annotations

import asyncio

from ..covers import covers
from .recorder import PATIENCE_S, Recorder
from .suite import OpenEngine, Suite


class CancelContract(Suite):
    """Nothing is heard after a cancel, and the slot is seen free."""

    @covers("CAN-1")
    def test_nothing_is_heard_after_a_cancel_and_the_slot_becomes_free(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                sink = Recorder()
                handle = it.generate(self.job(self.prompt(4000), max_tokens=4000), sink)
                await sink.until(lambda: sink.count >= 3)
                await self.cancels(handle, sink)
                if self.tells_slots:
                    assert await it.slots_in_use() == 0
                after = Recorder()
                it.generate(self.job(self.prompt(16)), after)
                await after.end()
                assert sink.breaches == []
                assert sink.outcome is None

        self.run(test())

    @covers("CAN-1")
    def test_a_cancel_before_the_first_word_and_one_from_within_the_sink_are_kept(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                early = Recorder()
                handle = it.generate(self.job(self.prompt(4000), max_tokens=4000), early)
                await self.cancels(handle, early)
                within = Recorder()
                handle = it.generate(self.job(self.prompt(4000), max_tokens=4000), within)

                def cancel() -> None:
                    within.muted = True
                    handle.cancel()

                within.on_entries = cancel
                await within.until(lambda: within.muted)
                assert await handle.slot_free() == "slot-free"
                after = Recorder()
                it.generate(self.job(self.prompt(16)), after)
                await after.end()
                assert early.breaches == []
                assert within.breaches == []

        self.run(test())

    @covers("CAN-1")
    def test_a_cancel_is_idempotent_and_harmless_after_the_end(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                sink = Recorder()
                handle = it.generate(self.job(self.prompt(16)), sink)
                await sink.end()
                for _ in range(2):
                    await self.cancels(handle, sink)
                assert sink.breaches == []

        self.run(test())

    def test_closing_the_engine_ends_what_waits_on_it(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                sink = Recorder()
                handle = it.generate(self.job(self.prompt(4000), max_tokens=4000), sink)
                await sink.until(lambda: sink.count >= 1)
                await it.close()
                assert (await sink.failure()).retriable
                async with asyncio.timeout(PATIENCE_S):
                    assert await handle.slot_free() == "engine-gone"

        self.run(test())
