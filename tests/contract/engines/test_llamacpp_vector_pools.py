"""Pools that embed or rank: real llama.cpp, from the settings to the first vector and the first score."""

import asyncio
import math
import struct

import pytest

from llama_orch.core.settings import PoolSettings, ProvisioningSettings
from llama_orch.plugins import EmbeddingResult, GenerateJob, RerankResult
from llama_orch.plugins.manager import PluginManager
from llama_orch.plugins.testing.engines import Recorder
from llama_orch.pools.manager import PoolManager
from llama_orch.pools.outfitting import Outfitter

from ...engines.tiny_gguf import VARIANTS, write_model
from ...unit.pools.conftest import TIMING, Heard, SystemClock, desired

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]


async def done(tmp_path, variant, options, job):
    """Bring up such a pool, do the job; what the pool told of itself, and how the job ended."""
    model = write_model(tmp_path / "m.gguf", VARIANTS[variant])
    settings = PoolSettings(
        id="p", model=str(model), slots=2, provisioning=ProvisioningSettings(threads=1, options=options)
    )
    plugins, heard = PluginManager(entry_points=False), Heard()
    launchers = plugins.launchers()
    manager = PoolManager(
        sink=heard,
        data_dir=tmp_path,
        engines=plugins.engines(),
        launchers=launchers,
        preparer=Outfitter(launchers, {}, data_dir=tmp_path),
        clock=SystemClock(),
        timing=TIMING,
    )
    await manager.apply(desired(settings))
    told = await heard.next("p", "ready")
    sink = Recorder()
    engine = manager.engine("p")
    assert engine is not None
    engine.generate(job, sink)
    end = await sink.end()
    await manager.stop(kill_engines=True)
    return told["properties"], end


def test_a_pool_that_embeds_gets_ready_and_embeds(tmp_path):
    job = GenerateJob(task_id="t", attempt=1, workload="embedding", inputs=["a red apple", "two"] * 20)
    properties, end = asyncio.run(done(tmp_path, "plain", {"embedding": True, "pooling": "mean"}, job))
    assert properties.workloads == ("embedding",)
    assert isinstance(end.result, EmbeddingResult)
    vectors = [struct.unpack(f"<{VARIANTS['plain'].width}f", vector) for vector in end.result.vectors]
    assert len(vectors) == 40
    for vector in vectors:
        assert math.isclose(sum(number * number for number in vector), 1, abs_tol=1e-3), "llama.cpp normalises"


def test_a_pool_that_ranks_gets_ready_and_ranks(tmp_path):
    job = GenerateJob(task_id="t", attempt=1, workload="rerank", query="apple", inputs=["a red apple", "two"] * 20)
    properties, end = asyncio.run(done(tmp_path, "ranking", {"reranking": True}, job))
    assert properties.workloads == ("rerank",)
    assert isinstance(end.result, RerankResult)
    assert len(end.result.scores) == 40
    assert all(0 <= float(score) <= 1 for score in end.result.scores)
