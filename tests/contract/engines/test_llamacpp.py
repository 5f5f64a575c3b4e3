"""The llama.cpp plugin against the real server."""

import contextlib
import json

import msgspec
import pytest
import uvloop

from llama_orch.plugins import ChatJob
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.testing.engines import CLOCK, WEATHER, EngineContract, Recorder, VectorContract

from ...engines.chat_models import write_thinking_model, write_tool_model
from ...engines.real_llama import llama_server
from ...engines.tiny_gguf import VARIANTS, write_model

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]

MODELS = {
    **{name: lambda path, shape=shape: write_model(path, shape) for name, shape in VARIANTS.items()},
    "tools": write_tool_model,
    "thinking": write_thinking_model,
    "embedding": lambda path: write_model(path, VARIANTS["plain"]),
    "reranking": lambda path: write_model(path, VARIANTS["ranking"]),
}
STARTED_FOR = {
    "embedding": ("--embedding", "--pooling", "mean", "--ubatch-size", "2048"),
    "reranking": ("--reranking", "--ubatch-size", "2048"),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Opens engines on a model's server, which lives as long as this module's tests."""
    running = {}
    with contextlib.ExitStack() as stack:

        def opener(variant):
            if variant not in running:
                model = MODELS[variant](tmp_path_factory.mktemp("model") / f"{variant}.gguf")
                server = llama_server(model, extra=STARTED_FOR.get(variant, ()))
                running[variant] = _opener(stack.enter_context(server), model)
            return running[variant]

        yield opener


def _opener(url, model):
    @contextlib.asynccontextmanager
    async def opened():
        engine = LlamaCpp({"url": url, "model_path": str(model)})
        yield engine
        await engine.close()

    return opened


class TestLlamaCpp(EngineContract):
    faults = {
        "wrong grammar": ("a", "invalid"),
    }

    def job(self, prompt, **changes):
        if prompt == "a":
            changes["grammar"] = "root ::= (("
        return super().job(prompt, **changes)

    variant = "plain"

    @pytest.fixture
    def engine(self, servers):
        return servers(self.variant)

    def test_the_text_that_stopped_it_is_told(self, engine):
        async def test():
            async with engine() as it:
                stop = ("never said", self.stop_text)
                for job in (self.job("a b", stop=stop), self.chat_job("a b", stop=stop)):
                    end, _ = await self.said(it, msgspec.structs.replace(job, max_tokens=300))
                    assert (end.finish_reason, end.stop_sequence) == ("stop", self.stop_text)

        self.run(test())


class TestLlamaCppThatSaysBytes(TestLlamaCpp):
    """The same with a model that says single bytes, of which hardly any make a character."""

    stop_text = "a"
    variant = "bytes"


class TestLlamaCppThatCallsTools(TestLlamaCpp):
    """The same with a model whose template shows it tools, and which calls them."""

    variant = "tools"

    def tool_job(self, **changes):
        job = super().tool_job(**changes)
        assert job.chat is not None
        # A model of random weights calls whatever it may, and goes on for as long as it may.
        choice = {"type": "function", "function": {"name": "get_weather"}}
        chat = msgspec.structs.replace(job.chat, tool_choice=choice, parallel_tool_calls=False)
        return msgspec.structs.replace(job, chat=chat, max_tokens=800)

    def test_several_calls_are_told_apart(self, engine):
        async def test():
            async with engine() as it:
                chat = ChatJob(
                    messages=[{"role": "user", "content": "Once upon a time"}],
                    tools=[WEATHER, CLOCK],
                    tool_choice="required",
                    parallel_tool_calls=True,
                )
                end, sink = await self.said(it, self.chat_job("", chat=chat, max_tokens=500))
                calls = {channel: text for (_, channel), text in sink.channels.items() if channel.startswith("call:")}
                assert list(calls) == [f"call:{number}" for number in range(len(calls))]
                assert len(calls) >= 2
                for number, name in enumerate(list(calls.values())[:-1]):  # the last one may be cut off
                    arguments = json.loads(sink.channels[0, f"tool:{number}"])
                    assert arguments.keys() == ({"city", "days"} if name == "get_weather" else {"utc"})
                assert end.tokens == sink.tokens

        self.run(test())

    def test_tools_beside_a_schema_are_refused_by_name(self, engine):
        async def test():
            async with engine() as it:
                sink = Recorder()
                it.generate(self.tool_job(json_schema={"type": "object"}), sink)
                failure = await sink.failure()
                assert (failure.kind, failure.message.partition(":")[0]) == ("invalid", "json_schema")

        self.run(test())


class TestLlamaCppThatThinks(TestLlamaCppThatCallsTools):
    """The same with a model that thinks before it speaks."""

    variant = "thinking"

    def test_a_schema_holds_what_is_said_and_leaves_room_for_thoughts(self, engine):
        async def test():
            async with engine() as it:
                for seed in range(3):
                    job = self.thinking_job(json_schema={"type": "boolean"}, seed=seed)
                    _, sink = await self.said(it, job)
                    assert sink.channels[0, "reasoning"]
                    assert sink.channels[0, ""].strip() in ("true", "false")
                _, sink = await self.said(it, self.thinking_job(grammar='root ::= "ja" | "nein"'))
                assert sink.channels in ({(0, ""): "ja"}, {(0, ""): "nein"}), "there is no room in a grammar"

        self.run(test())


class TestLlamaCppOnUvloop(TestLlamaCpp):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()


class TestLlamaCppThatEmbeds(VectorContract):
    """A server that was started with ``--embedding``."""

    variant = "embedding"

    @pytest.fixture
    def engine(self, servers):
        return servers(self.variant)


class TestLlamaCppThatRanks(TestLlamaCppThatEmbeds):
    """A server that was started with ``--reranking``."""

    variant = "reranking"
