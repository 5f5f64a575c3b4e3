"""The llama.cpp plugin against the real server."""

import contextlib

import pytest
import uvloop

from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.testing.engines import EngineContract

from ...engines.real_llama import llama_server
from ...engines.tiny_gguf import VARIANTS, write_model

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Opens engines on a model's server, which lives as long as this module's tests."""
    running = {}
    with contextlib.ExitStack() as stack:

        def opener(variant):
            if variant not in running:
                model = write_model(tmp_path_factory.mktemp("model") / f"{variant}.gguf", VARIANTS[variant])
                running[variant] = _opener(stack.enter_context(llama_server(model)), model)
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


class TestLlamaCppThatSaysBytes(TestLlamaCpp):
    """The same with a model that says single bytes, of which hardly any make a character."""

    stop_text = "a"
    variant = "bytes"


class TestLlamaCppOnUvloop(TestLlamaCpp):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()
