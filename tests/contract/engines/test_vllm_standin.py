"""The client of vLLM against a stand-in that speaks as vLLM does, where faults can be had at will."""

import contextlib

import pytest
import uvloop

from llama_orch.plugins.engines.vllm import Vllm
from llama_orch.plugins.testing.engines import EngineContract, FaultContract

from ...support.openai_server import StandIn


class TestVllmOnStandIn(EngineContract, FaultContract):
    faults = {"wrong knob": ("[[mock fault=unheard-of]]", "invalid")}
    utf8_prompt = "[[mock text=utf8 tokens=100]]"
    stop_text = "ke"
    obeys_schema = False
    thinks = False
    config = {}

    def prompt(self, tokens):
        rate = 500 if tokens > 100 else 0
        return f"[[mock tokens={tokens} rate={rate}]] Once upon a time"

    def open(self, fault=""):
        @contextlib.asynccontextmanager
        async def opened():
            async with StandIn(fault=fault, vllm=True, thinks=self.thinks).serving() as server:
                engine = Vllm({"url": f"{server.url}/v1", **self.config})
                yield engine
                await engine.close()

        return opened

    @pytest.fixture
    def engine(self):
        return self.open()

    @pytest.fixture
    def faulty(self):
        return lambda fault: self.open(fault)()


class TestVllmThatThinksOnStandInOnUvloop(TestVllmOnStandIn):
    """With a parser of thoughts, and on the event loop that the server uses."""

    thinks = True
    config = {
        "features": ["reasoning", "render", "tools", "tokenize", "detokenize", "seed", "logprobs", "continue"],
    }

    def new_loop(self):
        return uvloop.new_event_loop()
