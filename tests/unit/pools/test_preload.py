"""What an engine does once before its pool is ready: whatever it is for."""

import asyncio

import pytest

from llama_orch.plugins.engines.mock import MockEngine
from llama_orch.pools.preload import PRELOAD_TOKENS, PreloadError, preload


def preloaded(workloads, **script):
    """The rate that was measured, and the tokens that the engine said for it."""

    async def test():
        engine = MockEngine({"script": script})
        try:
            rate = await preload(engine, workloads=workloads, slot=0, timeout_s=30)
            return rate, engine.machine.tokens_said
        finally:
            await engine.close()

    return asyncio.run(test())


@pytest.mark.parametrize("workloads", [(), ("completion", "chat"), ("chat",)])
def test_what_says_texts_says_a_few_tokens_and_is_measured(workloads):
    rate, said = preloaded(workloads, rate=200)
    assert said == PRELOAD_TOKENS
    assert rate > 0


@pytest.mark.parametrize("workloads", [("embedding",), ("rerank",), ("embedding", "rerank")])
def test_what_embeds_or_ranks_does_that_and_has_no_rate(workloads):
    assert preloaded(workloads) == (0, 0)


@pytest.mark.parametrize("workloads", [("completion",), ("chat",), ("embedding",), ("rerank",)])
def test_what_fails_at_it_is_not_ready(workloads):
    with pytest.raises(PreloadError):
        preloaded(workloads, fault="500")


def test_what_ends_without_a_word_is_not_ready():
    with pytest.raises(PreloadError, match="without a token"):
        preloaded(("completion",), tokens=0)
