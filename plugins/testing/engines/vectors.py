"""The contract of engines: embeddings and ranking. Engines that do nothing else inherit this part alone."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Sequence

from ....core.engine_ports import AttemptEnd, EmbeddingResult, RerankResult
from .recorder import Recorder
from .suite import OpenEngine, Suite

TEXTS = ("a red apple", "the green tree", "a red apple")


class VectorContract(Suite):
    """Jobs that have a result and no entries."""

    def test_each_text_has_its_vector(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "embedding" not in await self.claims(it):
                    await self.refuses(it, self.embedding_job(TEXTS))
                    return
                end, sink = await self.said(it, self.embedding_job(TEXTS))
                assert sink.batches == []
                assert sink.start is not None
                vectors = self._vectors(end)
                assert len(vectors) == len(TEXTS)
                assert len({len(vector) for vector in vectors}) == 1
                assert all(math.isfinite(number) for vector in vectors for number in vector)
                # Not to the bit: what else is in the batch decides how an engine sums up.
                assert _near(vectors[0], vectors[2])
                assert not _near(vectors[0], vectors[1])
                assert end.prompt_tokens > 0
                assert end.tokens == 0
                again, _ = await self.said(it, self.embedding_job(TEXTS[1:]))
                assert _near(self._vectors(again)[0], vectors[1])
                assert _near(self._vectors(again)[1], vectors[0])
                one, _ = await self.said(it, self.embedding_job(TEXTS[:1]))
                assert one.prompt_tokens < end.prompt_tokens

        self.run(test())

    def test_each_text_has_its_score_in_the_order_of_the_texts(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "rerank" not in await self.claims(it):
                    await self.refuses(it, self.rerank_job("apple", TEXTS))
                    return
                end, sink = await self.said(it, self.rerank_job("apple", TEXTS))
                assert sink.batches == []
                assert isinstance(end.result, RerankResult)
                scores = [float(score) for score in end.result.scores]
                assert len(scores) == len(TEXTS)
                assert all(math.isfinite(score) for score in scores)
                assert _near(scores[:1], scores[2:])
                assert not _near(scores[:1], scores[1:2])
                assert end.prompt_tokens > 0
                turned, _ = await self.said(it, self.rerank_job("apple", TEXTS[::-1]))
                assert isinstance(turned.result, RerankResult)
                assert _near([float(score) for score in turned.result.scores], scores[::-1])

        self.run(test())

    def test_a_text_beyond_the_context_cannot_be_embedded_or_ranked(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                jobs = [self.embedding_job(("a", "word, " * 8000))] if "embedding" in claims else []
                jobs += [self.rerank_job("a", ("b", "word, " * 8000))] if "rerank" in claims else []
                for job in jobs:
                    sink = Recorder()
                    handle = it.generate(job, sink)
                    failure = await sink.failure()
                    assert (failure.kind, failure.retriable) == ("context", False)
                    assert failure.message
                    assert await handle.slot_free() == "slot-free"

        self.run(test())

    def test_a_cancelled_batch_is_silent_and_frees_what_it_held(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                texts = ["many words, " * 40] * 24
                jobs = [self.embedding_job(texts)] if "embedding" in claims else []
                jobs += [self.rerank_job("a", texts)] if "rerank" in claims else []
                for job in jobs:
                    sink = Recorder()
                    handle = it.generate(job, sink)
                    await self.cancels(handle, sink)
                    if self.tells_slots:
                        assert await it.slots_in_use() == 0
                    assert sink.breaches == []
                    assert sink.outcome is None

        self.run(test())

    @staticmethod
    def _vectors(end: AttemptEnd) -> list[list[float]]:
        assert isinstance(end.result, EmbeddingResult)
        vectors = []
        for raw in end.result.vectors:
            numbers = array.array("f")
            numbers.frombytes(raw)
            if sys.byteorder == "big":
                numbers.byteswap()
            vectors.append(list(numbers))
        return vectors


def _near(some: Sequence[float], others: Sequence[float]) -> bool:
    return len(some) == len(others) and all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(some, others, strict=True))
