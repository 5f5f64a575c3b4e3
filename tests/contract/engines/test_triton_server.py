"""The Triton plugin and the life of a real Triton: models that are unloaded, counters, metrics, its sudden end."""

import asyncio
import os
import signal
import urllib.request

import pytest

from llama_orch.plugins import EngineState, GenerateJob
from llama_orch.plugins.engines.triton import Triton
from llama_orch.plugins.testing.engines import Recorder

from ...engines.real_triton import MODEL, triton_server

pytestmark = pytest.mark.slow

LONG = GenerateJob(
    task_id="t", attempt=1, prompt="Once tokens=100000 delay_ms=5", slot=0, sampling={}, max_tokens=100_000
)


@pytest.fixture
def server(tmp_path):
    with triton_server(tmp_path, "--model-control-mode=explicit", f"--load-model={MODEL}") as it:
        yield it


def clients(server, **options):
    """A client of each protocol."""
    for url in (server.http, server.grpc):
        yield Triton({"url": url, "slots": 2, "model": MODEL, **options})


def repository(server, what):
    """Load or unload the model."""
    url = f"{server.http}/v2/repository/models/{MODEL}/{what}"
    with urllib.request.urlopen(urllib.request.Request(url, data=b"{}"), timeout=30) as answer:
        assert answer.status == 200


def statistics(server):
    with urllib.request.urlopen(f"{server.http}/v2/models/{MODEL}/stats", timeout=10) as answer:
        return answer.read()


async def failure(engine):
    sink = Recorder()
    handle = engine.generate(LONG, sink)
    found = await sink.failure()
    assert await handle.slot_free() in ("slot-free", "engine-gone")
    return found.kind, found.retriable


def run(test):
    async def bounded():
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


def test_a_model_that_is_unloaded_is_loading_to_those_who_knew_it_and_a_strange_one_has_failed(server):
    async def test():
        for engine in clients(server):
            assert (await engine.health()).state is EngineState.READY
            assert (await engine.properties()).engine_version == "triton 2.51.0"
            await asyncio.to_thread(repository, server, "unload")
            async with asyncio.timeout(20):
                health = await engine.health()
                while health.state is EngineState.READY:  # it lets what runs come to its end first
                    health = await engine.health()
            assert health.state is EngineState.LOADING, health.detail
            assert await failure(engine) == ("refused", True)
            await asyncio.to_thread(repository, server, "load")
            assert (await engine.health()).state is EngineState.READY
            await engine.close()
        for url in (server.http, server.grpc):
            strange = Triton({"url": url, "model": "nobody"})
            health = await strange.health()
            assert (health.state, "nobody" in health.detail) == (EngineState.FAILED, True)
            assert await failure(strange) == ("invalid", False)
            await strange.close()

    run(test)


def test_metrics_are_read_where_they_are_configured(server):
    async def test():
        for engine in clients(server, metrics_url=server.metrics):
            names = await engine.metrics()
            assert any(name.startswith("nv_inference_request_success{") for name in names)
            await engine.close()
        for engine in clients(server):
            assert await engine.metrics() == {}
            await engine.close()

    run(test)


def test_a_cancel_reaches_the_model_before_its_slot_is_given_away(server):
    async def test():
        for number, engine in enumerate(clients(server), 1):
            sink = Recorder()
            handle = engine.generate(LONG, sink)
            await sink.until(lambda sink=sink: sink.count >= 3)
            handle.cancel()
            assert await handle.slot_free() == "slot-free"
            assert f'"fail":{{"count":{number},'.encode() in await asyncio.to_thread(statistics, server)
            await engine.close()

    run(test)


def test_a_server_that_is_killed_in_the_middle_of_a_stream_is_a_cut_and_then_unreachable(server):
    async def test():
        engines = list(clients(server))
        running = []
        for engine in engines:
            sink = Recorder()
            running.append((engine, sink, engine.generate(LONG, sink)))
            await sink.until(lambda sink=sink: sink.count >= 3)
        os.killpg(server.process.pid, signal.SIGKILL)
        for engine, sink, handle in running:
            assert (await sink.failure()).kind == "cut"
            assert await handle.slot_free() == "engine-gone"
            assert (await engine.health()).state is EngineState.UNREACHABLE
            assert await failure(engine) == ("unreachable", True)
            await engine.close()

    run(test)
