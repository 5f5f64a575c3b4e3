"""The contract of engines: questions that are no tasks."""

from __future__ import annotations

import asyncio

import pytest

from ....core.errors import InvalidParamsError
from .recorder import Recorder
from .suite import CLOCK, OpenEngine, Suite


class QuestionContract(Suite):
    """Tokens, texts, prompts of chats, what a slot remembers; what the engine does not claim it refuses by name."""

    def test_metrics_are_numbers(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                for name, value in (await it.metrics()).items():
                    assert name
                    assert isinstance(value, (int, float))

        self.run(test())

    def test_tokens_are_counted_as_the_engine_itself_does(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "tokenize" not in await self.claims(it):
                    with pytest.raises(InvalidParamsError):
                        await it.tokenize(self.prompt(16), add_special=True, parse_special=True)
                    return
                ids = await it.tokenize(self.prompt(16), add_special=True, parse_special=True)
                assert ids == await it.tokenize(self.prompt(16), add_special=True, parse_special=True)
                end, _ = await self.said(it, self.job(self.prompt(16), max_tokens=1))
                assert end.prompt_tokens == len(ids)

        self.run(test())

    def test_token_ids_become_the_text_again(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "detokenize" not in await self.claims(it):
                    with pytest.raises(InvalidParamsError):
                        await it.detokenize([5, 6])
                    return
                text = "alpha, beta gamma"
                ids = await it.tokenize(text, add_special=False, parse_special=False)
                assert (await it.detokenize(ids)).strip() == text
                assert await it.detokenize([]) == ""
                with pytest.raises(InvalidParamsError):
                    await it.detokenize([2**31 - 1])

        self.run(test())

    def test_a_chat_is_rendered_with_every_message(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                chat = [
                    {"role": "user", "content": "alpha ß"},
                    {"role": "assistant", "content": "beta"},
                    {"role": "user", "content": "gamma"},
                ]
                if "render" not in claims:
                    with pytest.raises(InvalidParamsError):
                        await it.render_chat(chat)
                    return
                prompt = await it.render_chat(chat)
                places = [prompt.index(message["content"]) for message in chat]
                assert places == sorted(places)
                assert prompt == await it.render_chat(chat)
                if "tools" in claims:
                    assert "get_time" in await it.render_chat(chat, tools=[CLOCK])

        self.run(test())

    def test_what_a_slot_remembers_is_said_and_can_be_forgotten(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                job = self.job(self.prompt(16), cache_prompt=True, max_tokens=1)
                await self.said(it, job)
                end, sink = await self.said(it, job)
                assert sink.start is not None
                assert 0 <= end.cached_tokens <= end.prompt_tokens
                if not await it.forget(0):
                    return
                after, _ = await self.said(it, job)
                assert after.cached_tokens == 0

        self.run(test())

    def test_what_nobody_can_do_is_refused_by_name(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                await self.refuses(it, self.job(self.prompt(16), workload="divination"))
                if "grammar" not in claims:
                    await self.refuses(it, self.job(self.prompt(16), grammar='root ::= "a"'))
                else:
                    _, sink = await self.said(it, self.job(self.prompt(16), grammar='root ::= "ja" | "nein"'))
                    assert not self.obeys_schema or sink.text in ("ja", "nein")

        self.run(test())

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

    def test_every_prompt_that_shall_fail_fails_as_it_shall(self, engine: OpenEngine) -> None:
        async def test(prompt: str, kind: str) -> None:
            async with engine() as it:
                sink = Recorder()
                handle = it.generate(self.job(prompt), sink)
                failure = await sink.failure()
                assert (failure.kind, bool(failure.message)) == (kind, True), prompt
                async with asyncio.timeout(60):
                    assert await handle.slot_free() in ("slot-free", "engine-gone")

        for prompt, kind in self.faults.values():
            self.run(test(prompt, kind))
