"""The llama.cpp plugin against the real server."""

import contextlib

import msgspec
import pytest
import uvloop

from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.testing.engines import EngineContract, VectorContract

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


class TestLlamaCppThatThinks(TestLlamaCppThatCallsTools):
    """The same with a model that thinks before it speaks."""

    variant = "thinking"


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
