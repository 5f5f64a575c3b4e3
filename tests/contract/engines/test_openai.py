"""The client of OpenAI's API against the API of the real llama.cpp server."""

import contextlib

import pytest
import uvloop

from llama_orch.plugins.engines.openai import OpenAI
from llama_orch.plugins.testing.engines import EngineContract

from ...engines.real_llama import llama_server
from ...engines.tiny_gguf import VARIANTS, write_model

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server that lives as long as this module's tests."""
    model = write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", VARIANTS["plain"])
    with llama_server(model) as url:
        yield url


class TestOpenAIOnLlamaCpp(EngineContract):
    tells_slots = False
    tells_prompt = "end"

    @pytest.fixture
    def engine(self, url):
        @contextlib.asynccontextmanager
        async def opened():
            # Whether it calls tools depends on its template, which this model's does not.
            features = ["logprobs", "json_schema", "grammar", "seed", "continue"]
            engine = OpenAI({"url": f"{url}/v1", "slots": 2, "features": features})
            yield engine
            await engine.close()

        return opened


class TestOpenAIOnLlamaCppOnUvloop(TestOpenAIOnLlamaCpp):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()
