"""The contract of engines: several answers, probabilities, prompts as ids, and biases."""

from __future__ import annotations

import functools
import math

import msgspec

from ....core.logprobs import unpack_logprobs
from ....core.types import REASONING, TEXT
from .recorder import Recorder
from .suite import OpenEngine, Suite


class ChoiceContract(Suite):
    """What may be asked for beside one plain text."""

    def test_several_answers_are_told_apart_and_each_has_its_own_bound(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                jobs = [self.job(self.prompt(16), n=3, max_tokens=9)] if "completion" in claims else []
                jobs += [self.chat_job(self.prompt(16), n=3, max_tokens=9)] if "chat" in claims else []
                for job in jobs:
                    end, sink = await self.said(it, job)
                    assert end.finish_reasons == ("length",) * 3
                    assert end.tokens == sink.tokens == 27
                    counts = [sum(e.tokens for e in sink.all if e.choice == choice) for choice in range(3)]
                    assert counts == [9, 9, 9]
                    said = {tuple((e.channel, e.text) for e in sink.all if e.choice == choice) for choice in range(3)}
                    assert len(said) > 1
                    alone, _ = await self.said(it, msgspec.structs.replace(job, n=1))
                    assert end.prompt_tokens == alone.prompt_tokens, "the prompt is one, and is counted once"
                    if "seed" in claims:
                        _, again = await self.said(it, job)
                        assert again.channels == sink.channels

        self.run(test())

    def test_several_answers_end_one_by_one(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "completion" not in await self.claims(it):
                    return
                job = self.job(self.prompt(200), n=2, max_tokens=200, stop=(self.stop_text,))
                end, sink = await self.said(it, job)
                assert end.finish_reasons[0] == "stop"
                assert len(end.finish_reasons) == 2
                assert self.stop_text not in sink.channels.get((0, TEXT), "")
                assert end.tokens == sink.tokens

        self.run(test())

    def test_several_answers_are_cancelled_as_one(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "completion" not in await self.claims(it):
                    return
                for choice in (0, 1):
                    sink = Recorder()
                    handle = it.generate(self.job(self.prompt(200), n=3, max_tokens=60), sink)
                    await sink.until(functools.partial(_reached, sink, choice))
                    await self.cancels(handle, sink)
                    if self.tells_slots:
                        assert await it.slots_in_use() == 0
                    assert sink.breaches == []

        self.run(test())

    def test_each_token_has_its_probability_and_the_likeliest_beside_it(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                jobs = [self.job(self.prompt(16), logprobs=True, top_logprobs=top) for top in (0, 3)]
                if "chat" in claims:
                    jobs += [self.chat_job(self.prompt(16), logprobs=True, top_logprobs=top) for top in (0, 3)]
                for job in jobs:
                    if "logprobs" not in claims:
                        await self.refuses(it, job)
                        continue
                    end, sink = await self.said(it, job)
                    assert sum(e.tokens for e in sink.all) == end.tokens
                    found = [(entry, unpack_logprobs(entry.text, entry.logprob)) for entry in sink.all]
                    assert any(tokens for _, tokens in found)
                    for entry, tokens in found:
                        # An engine may hold back a token's text, and never tell how likely it was.
                        assert len(tokens) <= entry.tokens
                        assert tokens or not entry.text or entry.channel not in (TEXT, REASONING)
                        for token in tokens:
                            assert -math.inf < float(token.logprob) <= 0
                            assert len(token.top) <= job.top_logprobs
                            assert all(-math.inf < float(other.logprob) <= 0 for other in token.top)
                            assert token.raw.decode("utf-8", "replace") == token.token or not token.raw
                    if job.top_logprobs:
                        assert any(token.top for _, tokens in found for token in tokens)
                    if "seed" in claims:
                        plain = self.job(self.prompt(16)) if job.chat is None else self.chat_job(self.prompt(16))
                        _, without = await self.said(it, plain)
                        assert without.channels == sink.channels, "to be asked for them changes nothing"

        self.run(test())

    def test_a_prompt_may_be_its_tokens(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                if "prompt_ids" not in claims:
                    await self.refuses(it, self.job("", prompt_ids=(5, 6, 7)))
                    return
                text = self.prompt(16)
                ids = await it.tokenize(text, add_special=True, parse_special=True)
                end, sink = await self.said(it, self.job("", prompt_ids=tuple(ids)))
                assert end.prompt_tokens == len(ids)
                assert end.tokens == sink.tokens > 0
                if "continue" in claims:
                    longer, _ = await self.said(it, self.job("", prompt_ids=tuple(ids), prefix=" and then"))
                    assert longer.prompt_tokens > end.prompt_tokens

        self.run(test())

    def test_a_token_that_is_ruled_out_is_not_said(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                job = self.job(self.prompt(16), sampling={"temperature": 0.0}, max_tokens=1)
                if "logit_bias" not in claims:
                    await self.refuses(it, self.job(self.prompt(16), logit_bias={"5": -100.0}))
                    return
                _, plain = await self.said(it, job)
                ids = plain.batches[0].ids
                assert ids, "an engine that takes biases by id tells ids"
                biased = self.job(
                    self.prompt(16), sampling={"temperature": 0.0}, max_tokens=1, logit_bias={str(ids[0]): -100.0}
                )
                _, other = await self.said(it, biased)
                assert other.batches[0].ids[:1] != ids[:1]

        self.run(test())


def _reached(sink: Recorder, choice: int) -> bool:
    return any(entry.choice >= choice for entry in sink.all)
