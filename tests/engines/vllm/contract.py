"""The vLLM plugin against real vLLM. `make test-vllm` runs it: it needs an environment of 2.5 GB."""

import asyncio
import contextlib
import copy
from typing import Any

import msgspec
import pytest
import uvloop

from llama_orch.plugins import EngineState, GenerateJob
from llama_orch.plugins.engines.openai import OpenAI
from llama_orch.plugins.engines.vllm import Vllm
from llama_orch.plugins.testing.engines import EngineContract, Recorder, VectorContract

from .server import vllm_server, write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def running(model):
    with vllm_server(model, "--enable-auto-tool-choice", "--tool-call-parser", "hermes") as running:
        yield running


@pytest.fixture(scope="module")
def url(running):
    return running.url


def opener(make):
    @contextlib.asynccontextmanager
    async def opened():
        engine = make()
        yield engine
        await engine.close()

    return opened


class RealVllm(EngineContract):
    def tool_job(self, **changes):
        job = super().tool_job(**changes)
        assert job.chat is not None
        # A model of random weights calls whatever it may; vLLM holds arguments to the schema of strict functions alone,
        # and lets control characters stand in their texts.
        choice = {"type": "function", "function": {"name": "get_weather"}}
        tools: list[Any] = copy.deepcopy(list(job.chat.tools))
        for tool in tools:
            tool["function"]["strict"] = True
        tools[0]["function"]["parameters"]["properties"]["city"] = {"enum": ["Bern", "Rome"]}
        chat = msgspec.structs.replace(job.chat, tools=tools, tool_choice=choice, parallel_tool_calls=False)
        return msgspec.structs.replace(job, chat=chat, max_tokens=800)


class TestVllm(RealVllm):
    faults = {"wrong grammar": ("a", "invalid")}

    def job(self, prompt, **changes):
        if prompt == "a":
            changes["grammar"] = "root ::= (("
        return super().job(prompt, **changes)

    @pytest.fixture
    def engine(self, url):
        return opener(lambda: Vllm({"url": url}))

    def new_loop(self):
        return uvloop.new_event_loop()

    def test_it_is_known_by_version_weights_and_what_it_can(self, url):
        async def test():
            async with opener(lambda: Vllm({"url": url, "slots": 1}))() as it:
                properties = await it.properties()
                assert properties.engine_version.startswith("vllm 0.")
                assert properties.model_name == "tiny"
                assert properties.model_digest.startswith("sha256:")
                assert properties.tokenizer_digest.startswith("sha256:")
                assert properties.workloads == ("completion", "chat")
                assert {"render", "tools", "prompt_ids", "grammar", "logit_bias"} <= set(properties.features)
                assert properties.strict_capable
                metrics = await it.metrics()
                assert metrics["vllm:num_requests_running"] == 0
                assert metrics["vllm:kv_cache_usage_perc"] >= 0

        self.run(test())

    def test_without_a_bound_it_goes_on_until_the_context_is_full(self, url):
        async def test():
            async with opener(lambda: Vllm({"url": url}))() as it:
                end, sink = await self.said(it, self.job("a b c", max_tokens=0))
                assert end.finish_reason == "length"
                assert end.tokens == sink.tokens == 2048 - end.prompt_tokens

        self.run(test())

    def test_a_cold_start_takes_nothing_from_the_cache(self, url):
        async def test():
            async with opener(lambda: Vllm({"url": url}))() as it:
                hits = "vllm:prefix_cache_hits_total"
                prompt = "lamona " * 200
                warm = self.job(prompt, cache_prompt=True, max_tokens=1)
                await self.said(it, warm)
                before = (await it.metrics())[hits]
                await self.said(it, msgspec.structs.replace(warm, cache_prompt=False))
                assert (await it.metrics())[hits] == before
                await self.said(it, warm)
                assert (await it.metrics())[hits] > before

        self.run(test())

    def test_a_rendered_chat_says_what_the_chat_itself_does(self, url):
        async def test():
            async with opener(lambda: Vllm({"url": url}))() as it:
                await it.properties()
                text = "Räuber 🙂 und Gendarm"
                end, parsed = await self.said(it, self.chat_job(text))
                prompt = await it.render_chat([{"role": "user", "content": text}])
                plain = self.job(prompt, workload="chat")
                rendered_end, rendered = await self.said(it, plain)
                assert rendered.text == parsed.text
                assert rendered_end.prompt_tokens == end.prompt_tokens

        self.run(test())

    def test_who_leaves_is_noticed_within_a_moment(self, url):
        async def test():
            async with opener(lambda: Vllm({"url": url}))() as it:
                loop = asyncio.get_running_loop()
                times = []
                for _ in range(10):
                    sink = Recorder()
                    handle = it.generate(self.job("a b c", max_tokens=2000), sink)
                    await sink.until(lambda sink=sink: sink.count >= 20)
                    left = loop.time()
                    handle.cancel()
                    assert await handle.slot_free() == "slot-free"
                    times.append(round((loop.time() - left) * 1000))
                    assert await it.slots_in_use() == 0
                print("cancel to free, ms:", sorted(times))

        self.run(test())


class TestOpenAIOnVllm(RealVllm):
    """The client of any server, on vLLM's OpenAI API, which it knows by what its list of models shows."""

    tells_slots = False

    @pytest.fixture
    def engine(self, url):
        features = ["tools", "logprobs", "json_schema", "grammar", "seed", "continue"]
        return opener(lambda: OpenAI({"url": f"{url}/v1", "slots": 4, "features": features}))


def test_an_engine_that_is_killed_ends_its_streams_as_failures_and_is_gone(running):
    """The last of those that need this server."""

    async def test():
        async with opener(lambda: Vllm({"url": running.url}))() as it:
            sinks = [Recorder(), Recorder()]
            job = GenerateJob(task_id="dies", attempt=1, prompt="a b c", seed=3, max_tokens=2000)
            handles = [it.generate(job, sink) for sink in sinks]
            for sink in sinks:
                await sink.until(lambda sink=sink: sink.count >= 20)
            running.kill_engine()
            for sink in sinks:
                failure = await sink.failure()
                assert failure.retriable
                print("killed:", failure.kind, failure.message)
            for handle in handles:
                assert await handle.slot_free() in ("engine-gone", "slot-free")
            while (await it.health()).state is not EngineState.UNREACHABLE:
                await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.fixture(scope="module")
def embedder(model):
    with vllm_server(model, "--runner", "pooling", "--convert", "embed") as running:
        yield running.url


class TestVllmThatEmbeds(VectorContract):
    @pytest.fixture
    def engine(self, embedder):
        return opener(lambda: Vllm({"url": embedder}))
