"""The client of OpenAI's API against the API of the real llama.cpp server."""

import contextlib

import msgspec
import pytest
import uvloop

from llama_orch.plugins.engines.openai import OpenAI
from llama_orch.plugins.testing.engines import EngineContract, VectorContract

from ...engines.chat_models import write_thinking_model, write_tool_model
from ...engines.real_llama import llama_server
from ...engines.tiny_gguf import VARIANTS, write_model

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]

MODELS = {
    "plain": lambda path: write_model(path, VARIANTS["plain"]),
    "bytes": lambda path: write_model(path, VARIANTS["bytes"]),
    "tools": write_tool_model,
    "thinking": write_thinking_model,
    "embedding": lambda path: write_model(path, VARIANTS["plain"]),
    "reranking": lambda path: write_model(path, VARIANTS["ranking"]),
}
STARTED_FOR = {
    "embedding": ("--embedding", "--pooling", "mean", "--ubatch-size", "2048"),
    "reranking": ("--reranking", "--ubatch-size", "2048"),
}
#: what such a server cannot tell: what its model's template is made for
FEATURES = ["logprobs", "json_schema", "grammar", "seed", "continue"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Addresses of servers by their model, which live as long as this module's tests."""
    running = {}
    with contextlib.ExitStack() as stack:

        def url(variant):
            if variant not in running:
                model = MODELS[variant](tmp_path_factory.mktemp("model") / f"{variant}.gguf")
                server = llama_server(model, extra=STARTED_FOR.get(variant, ()))
                running[variant] = stack.enter_context(server)
            return running[variant]

        yield url


def opener(url, **options):
    @contextlib.asynccontextmanager
    async def opened():
        engine = OpenAI({"url": f"{url}/v1", "slots": 2, "release_ms": 100, **options})
        yield engine
        await engine.close()

    return opened


class TestOpenAIOnLlamaCpp(EngineContract):
    tells_slots = False
    tells_prompt = "end"
    variant = "plain"
    features = FEATURES

    @pytest.fixture
    def engine(self, servers):
        return opener(servers(self.variant), features=self.features)


class TestOpenAIOnLlamaCppOnUvloop(TestOpenAIOnLlamaCpp):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()


class TestOpenAIOnLlamaCppThatSaysBytes(TestOpenAIOnLlamaCpp):
    """The same with a model that says single bytes, of which hardly any make a character."""

    stop_text = "a"
    variant = "bytes"


class TestOpenAIOnLlamaCppThatCallsTools(TestOpenAIOnLlamaCpp):
    """The same with a model whose template shows it tools, and which calls them."""

    variant = "tools"
    features = [*FEATURES, "tools"]

    def tool_job(self, **changes):
        job = super().tool_job(**changes)
        assert job.chat is not None
        # A model of random weights calls whatever it may, and goes on for as long as it may.
        choice = {"type": "function", "function": {"name": "get_weather"}}
        chat = msgspec.structs.replace(job.chat, tool_choice=choice, parallel_tool_calls=False)
        return msgspec.structs.replace(job, chat=chat, max_tokens=800)


class TestOpenAIOnLlamaCppThatThinks(TestOpenAIOnLlamaCppThatCallsTools):
    """The same with a model that thinks before it speaks."""

    variant = "thinking"
    features = [*FEATURES, "tools", "reasoning"]


class TestOpenAIOnLlamaCppThatEmbeds(VectorContract):
    """A server that was started with ``--embedding``."""

    tells_slots = False
    variant = "embedding"
    options = {}

    @pytest.fixture
    def engine(self, servers):
        return opener(servers(self.variant), **self.options)


class TestOpenAIOnLlamaCppThatRanks(TestOpenAIOnLlamaCppThatEmbeds):
    """A server that was started with ``--reranking``."""

    variant = "reranking"
    # It has a route for embeddings as well, which answers with vectors of nothing.
    options = {"workloads": ["rerank"]}
