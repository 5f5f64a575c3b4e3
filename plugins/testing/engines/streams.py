"""The contract of engines: what a stream of text is."""

from __future__ import annotations

import math

from ....core.engine_ports import EngineState
from ....core.entries import pack, unpack
from ....core.logprobs import unpack_logprobs
from .recorder import Recorder
from .suite import OpenEngine, Suite


class StreamContract(Suite):
    """Who the engine says that it is, and the streams of plain completions."""

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

    # --- streams

    def test_a_stream_is_started_then_entries_then_one_end(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                sink = Recorder()
                it.generate(self.job(self.prompt(16)), sink)
                assert sink.heard == 0, "nothing may be said from within generate()"
                end = await sink.end()
                self.check_prompt(sink, end)
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
                logprobs = "logprobs" in await self.claims(it)
                _, sink = await self.said(it, self.job(self.utf8_prompt, max_tokens=40, logprobs=logprobs))
                for batch in sink.batches:
                    assert unpack(pack(batch)) == batch
                    count = len(batch)
                    columns = (batch.dts_us, batch.tokens, batch.id_counts, batch.incomplete, batch.logprobs)
                    assert all(column is None or len(column) == count for column in columns)
                    ids = count if batch.ids else 0
                    assert len(batch.ids) == (sum(batch.id_counts) if batch.id_counts is not None else ids)
                    for text, value in zip(batch.texts, batch.logprobs or (), strict=False):
                        for token in unpack_logprobs(text, value):
                            assert -math.inf < float(token.logprob) <= 0

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
                if "seed" not in await self.claims(it):
                    return  # a job always has a seed, so that there is nothing to refuse
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
                assert end.stop_sequence in ("", self.stop_text), "not every engine tells which it was"
                assert sink.text == free.text[: free.text.index(self.stop_text)]
                assert sink.tokens == end.tokens

        self.run(test())

    def test_a_continued_stream_goes_on_behind_its_prefix(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "continue" not in await self.claims(it):
                    await self.refuses(it, self.job(self.prompt(16), prefix=" said"))
                    return
                fresh, continued = Recorder(), Recorder()
                it.generate(self.job(self.prompt(16), max_tokens=4), fresh)
                plain = await fresh.end()
                it.generate(self.job(self.prompt(16), prefix=fresh.text, max_tokens=4), continued)
                end = await continued.end()
                assert end.prompt_tokens > plain.prompt_tokens or self.tells_prompt == "never"
                assert continued.tokens == 4

        self.run(test())

    def test_a_json_schema_is_obeyed(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                job = self.job(self.prompt(16), max_tokens=40, json_schema={"type": "boolean"})
                if "json_schema" not in await self.claims(it):
                    await self.refuses(it, job)
                    return
                _, sink = await self.said(it, job)
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
