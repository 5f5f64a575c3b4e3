"""The contract of engines: inherit :class:`EngineContract` in a test module, and say how to get at your engine.

::

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def engine(self, my_server):
            @contextlib.asynccontextmanager
            async def opened():
                engine = MyEngine({"url": my_server.url})
                yield engine
                await engine.close()
            return opened

The suite speaks of what every engine must do; what only some can is switched by the class attributes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest

from ...core.entries import EntryBatch, pack, unpack
from ...core.ports import (
    AttemptEnd,
    AttemptFailure,
    AttemptHandle,
    AttemptStart,
    Engine,
    EngineState,
    GenerateJob,
)
from .covers import covers

T = TypeVar("T")
#: what the suite gets an engine from: enter it on the running loop, leave it when done
OpenEngine = Callable[[], AbstractAsyncContextManager[Engine]]
#: a test that hangs is told apart from one that fails, in seconds
PATIENCE_S = 60.0


class Recorder:
    """A sink that keeps what it hears, and notes every breach of the sink's rules in ``breaches``.

    Args:
        pause_after: ask for a pause (once) as soon as so many entries are there; 0 = never.
    """

    def __init__(self, *, pause_after: int = 0) -> None:
        self.start: AttemptStart | None = None
        self.batches: list[EntryBatch] = []
        self.outcome: AttemptEnd | AttemptFailure | None = None
        self.breaches: list[str] = []
        #: calls so far
        self.heard = 0
        self.muted = False
        self.on_entries: Callable[[], None] | None = None
        self._pause_after = pause_after
        self._changed = asyncio.Event()

    # --- AttemptSink

    def started(self, start: AttemptStart) -> None:
        """The engine took the job."""
        self._hear("started")
        if self.start is not None or self.batches:
            self.breaches.append("started came twice or late")
        self.start = start

    def entries(self, batch: EntryBatch) -> None:
        """The engine said something."""
        self._hear("entries")
        if self.start is None:
            self.breaches.append("entries came before started")
        if len(batch) == 0:
            self.breaches.append("an empty batch came")
        self.batches.append(batch)
        if self.on_entries is not None:
            self.on_entries()

    def ended(self, end: AttemptEnd) -> None:
        """The engine finished."""
        self._hear("ended")
        if self.start is None:
            self.breaches.append("ended came before started")
        self.outcome = end

    def failed(self, failure: AttemptFailure) -> None:
        """The attempt broke off."""
        self._hear("failed")
        self.outcome = failure

    def pressure(self) -> bool:
        """Whether the engine's reader shall pause."""
        if self._pause_after and self.count >= self._pause_after:
            self._pause_after = 0
            return True
        return False

    # --- for tests

    @property
    def count(self) -> int:
        """Entries so far."""
        return sum(len(batch) for batch in self.batches)

    @property
    def tokens(self) -> int:
        """Tokens so far, as the entries tell."""
        return sum(batch.token_count for batch in self.batches)

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(text for batch in self.batches for text in batch.texts)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something heard makes a condition true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def over(self) -> AttemptEnd | AttemptFailure:
        """Wait for the end or failure."""
        await self.until(lambda: self.outcome is not None)
        assert self.outcome is not None
        return self.outcome

    async def end(self) -> AttemptEnd:
        """Wait for a proper end, kept by all the rules."""
        outcome = await self.over()
        assert isinstance(outcome, AttemptEnd), outcome
        assert self.breaches == []
        return outcome

    async def failure(self) -> AttemptFailure:
        """Wait for a failure, kept by all the rules."""
        outcome = await self.over()
        assert isinstance(outcome, AttemptFailure), outcome
        assert self.breaches == []
        return outcome

    def _hear(self, what: str) -> None:
        self.heard += 1
        if self.outcome is not None:
            self.breaches.append(f"{what} came after the end")
        if self.muted:
            self.breaches.append(f"{what} came after the cancel")
        self._changed.set()


class EngineContract:
    """What every engine plugin must do. Inherit it, and give the fixture ``engine``."""

    #: prompts that make the engine fail, and the kind of failure that follows: ``{name: (prompt, kind)}``
    faults: ClassVar[Mapping[str, tuple[str, str]]] = {}
    #: a prompt whose answer holds characters of several tokens
    utf8_prompt: ClassVar[str] = "Räuber 🙂 中文"
    #: a text that the answer to ``prompt(200)`` surely holds after some tokens, to be used as a stop string
    stop_text: ClassVar[str] = "e"
    #: the engine does as a JSON schema says
    obeys_schema: ClassVar[bool] = True
    #: it says which slots are in use
    tells_slots: ClassVar[bool] = True

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that each test runs on; llama-orch itself uses uvloop's."""
        return asyncio.new_event_loop()

    def run(self, test: Coroutine[Any, Any, T]) -> T:
        """Run an asynchronous test on a loop of its own, for not longer than the patience allows."""

        async def bounded() -> T:
            async with asyncio.timeout(2 * PATIENCE_S):
                return await test

        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            return runner.run(bounded())

    @pytest.fixture
    def engine(self) -> OpenEngine:
        """How to open the engine under test, which has at least two slots and at most 4,096 tokens of context."""
        raise NotImplementedError

    def prompt(self, tokens: int) -> str:
        """A prompt that the engine answers with at least so many tokens, if ``max_tokens`` lets it; when there are
        many, so slowly that a test can act meanwhile."""
        return "Once upon a time"

    def job(self, prompt: str, **changes: Any) -> GenerateJob:
        """A job with defaults that suit a test."""
        job = GenerateJob(
            task_id="contract", attempt=1, prompt=prompt, slot=0, seed=7, sampling={"temperature": 0.8}, max_tokens=16
        )
        return msgspec.structs.replace(job, **changes)

    # --- what it is

    def test_a_running_engine_is_ready_and_says_what_it_is(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                health = await it.health()
                assert health.state is EngineState.READY, health.detail
                properties = await it.properties()
                assert properties.engine_version
                assert properties.model_name
                assert properties.model_digest.startswith(("sha256:", "meta:"))
                assert properties.tokenizer_digest
                assert properties.slots >= 2
                assert 0 < properties.ctx <= 4096
                assert it.name

        self.run(test())

    def test_metrics_are_numbers(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                for name, value in (await it.metrics()).items():
                    assert name
                    assert isinstance(value, (int, float))

        self.run(test())

    # --- streams

    def test_a_stream_is_started_then_entries_then_one_end(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                sink = Recorder()
                it.generate(self.job(self.prompt(16)), sink)
                assert sink.heard == 0, "nothing may be said from within generate()"
                end = await sink.end()
                assert sink.start is not None
                assert sink.start.prompt_tokens == end.prompt_tokens > 0
                assert sink.count >= 1

        self.run(test())

    def test_max_tokens_is_kept_and_every_token_counted(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                for limit in (1, 2, 13):
                    sink = Recorder()
                    it.generate(self.job(self.prompt(16), max_tokens=limit), sink)
                    end = await sink.end()
                    assert (end.finish_reason, end.tokens, sink.tokens) == ("length", limit, limit)

        self.run(test())

    def test_batches_are_well_formed_and_survive_packing(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                sink = Recorder()
                it.generate(self.job(self.utf8_prompt, max_tokens=40, logprobs=1), sink)
                await sink.end()
                for batch in sink.batches:
                    assert unpack(pack(batch)) == batch
                    count = len(batch)
                    columns = (batch.dts_us, batch.tokens, batch.id_counts, batch.incomplete, batch.logprobs)
                    assert all(column is None or len(column) == count for column in columns)
                    ids = count if batch.ids else 0
                    assert len(batch.ids) == (sum(batch.id_counts) if batch.id_counts is not None else ids)
                    for value in batch.logprobs or ():
                        assert value == "" or (float(value) <= 0 and math.isfinite(float(value)))

        self.run(test())

    def test_characters_of_several_tokens_arrive_whole(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                sink = Recorder()
                it.generate(self.job(self.utf8_prompt, max_tokens=60), sink)
                end = await sink.end()
                assert sink.tokens == end.tokens
                assert sink.text.encode().decode() == sink.text

        self.run(test())

    def test_the_same_seed_says_the_same_on_every_slot_and_another_something_else(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                said: dict[tuple[int, int], str] = {}
                for seed in (7, 8):
                    for slot in (0, 1, 0):
                        sink = Recorder()
                        it.generate(self.job(self.prompt(16), seed=seed, slot=slot), sink)
                        await sink.end()
                        said.setdefault((seed, slot), sink.text)
                        assert said[seed, slot] == sink.text
                assert said[7, 0] == said[7, 1]
                assert said[8, 0] == said[8, 1]
                assert said[7, 0] != said[8, 0]

        self.run(test())

    def test_a_stop_string_ends_the_stream_before_it(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                free = Recorder()
                it.generate(self.job(self.prompt(200), max_tokens=200), free)
                await free.end()
                assert self.stop_text in free.text
                sink = Recorder()
                it.generate(self.job(self.prompt(200), max_tokens=200, stop=(self.stop_text, "\0never\0")), sink)
                end = await sink.end()
                assert end.finish_reason == "stop"
                assert sink.text == free.text[: free.text.index(self.stop_text)]
                assert sink.tokens == end.tokens

        self.run(test())

    def test_a_continued_stream_goes_on_behind_its_prefix(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                fresh, continued = Recorder(), Recorder()
                it.generate(self.job(self.prompt(16), max_tokens=4), fresh)
                plain = await fresh.end()
                it.generate(self.job(self.prompt(16), prefix=fresh.text, max_tokens=4), continued)
                end = await continued.end()
                assert end.prompt_tokens > plain.prompt_tokens
                assert continued.tokens == 4

        self.run(test())

    def test_a_json_schema_is_obeyed(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                sink = Recorder()
                job = self.job(self.prompt(16), max_tokens=40, json_schema={"type": "boolean"})
                it.generate(job, sink)
                await sink.end()
                if self.obeys_schema:
                    assert sink.text.strip() in ("true", "false")

        self.run(test())

    def test_several_streams_run_side_by_side(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                slots = (await it.properties()).slots
                sinks = [Recorder() for _ in range(slots)]
                for slot, sink in enumerate(sinks):
                    it.generate(self.job(self.prompt(16), slot=slot, seed=slot), sink)
                for sink in sinks:
                    end = await sink.end()
                    assert sink.tokens == end.tokens

        self.run(test())

    def test_a_paused_stream_is_silent_and_goes_on_without_loss(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                paused, other = Recorder(pause_after=4), Recorder()
                handle = it.generate(self.job(self.prompt(200), max_tokens=100), paused)
                await paused.until(lambda: paused.count >= 4)
                heard = paused.count
                if heard < 100:
                    it.generate(self.job(self.prompt(16), slot=1), other)
                    await other.end()
                    assert paused.count == heard
                handle.resume()
                end = await paused.end()
                assert paused.tokens == end.tokens == 100

        self.run(test())

    # --- cancel

    @covers("CAN-1")
    def test_nothing_is_heard_after_a_cancel_and_the_slot_becomes_free(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                sink = Recorder()
                handle = it.generate(self.job(self.prompt(4000), max_tokens=4000), sink)
                await sink.until(lambda: sink.count >= 3)
                await self._cancel(handle, sink)
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
                await self._cancel(handle, early)
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
                    await self._cancel(handle, sink)
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

    # --- refusals and faults

    def test_a_prompt_beyond_the_context_is_refused_as_that(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                sink = Recorder()
                handle = it.generate(self.job("word, " * 8000), sink)
                failure = await sink.failure()
                assert (failure.kind, failure.retriable) == ("context", False)
                assert failure.message
                assert await handle.slot_free() == "slot-free"

        self.run(test())

    def test_every_fault_is_a_failure_of_its_kind(self, engine: OpenEngine) -> None:
        async def test(prompt: str, kind: str) -> None:
            async with engine() as it:
                sink = Recorder()
                handle = it.generate(self.job(prompt), sink)
                failure = await sink.failure()
                assert (failure.kind, bool(failure.message)) == (kind, True), prompt
                async with asyncio.timeout(PATIENCE_S):
                    assert await handle.slot_free() in ("slot-free", "engine-gone")

        for prompt, kind in self.faults.values():
            self.run(test(prompt, kind))

    # --- tokens and chats

    def test_tokens_are_counted_as_the_engine_itself_does(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                ids = await it.tokenize(self.prompt(16), add_special=True, parse_special=True)
                assert ids == await it.tokenize(self.prompt(16), add_special=True, parse_special=True)
                sink = Recorder()
                it.generate(self.job(self.prompt(16), max_tokens=1), sink)
                assert (await sink.end()).prompt_tokens == len(ids)

        self.run(test())

    def test_a_chat_is_rendered_with_every_message(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                await it.properties()
                chat = [
                    {"role": "user", "content": "alpha ß"},
                    {"role": "assistant", "content": "beta"},
                    {"role": "user", "content": "gamma"},
                ]
                prompt = await it.render_chat(chat)
                places = [prompt.index(message["content"]) for message in chat]
                assert places == sorted(places)
                assert prompt == await it.render_chat(chat)

        self.run(test())

    # --- inside

    @staticmethod
    async def _cancel(handle: AttemptHandle, sink: Recorder) -> None:
        handle.cancel()
        sink.muted = True
        async with asyncio.timeout(PATIENCE_S):
            assert await handle.slot_free() == "slot-free"
