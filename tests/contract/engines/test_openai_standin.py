"""The client of OpenAI's API against a stand-in, where faults can be had at will."""

import contextlib

import pytest
import uvloop

from llama_orch.plugins.engines.openai import OpenAI
from llama_orch.plugins.testing.engines import EngineContract, FaultContract

from ...support.openai_server import StandIn


class TestOpenAIOnStandIn(EngineContract, FaultContract):
    faults = {"wrong knob": ("[[mock fault=unheard-of]]", "invalid")}
    utf8_prompt = "[[mock text=utf8 tokens=100]]"
    stop_text = "ke"
    obeys_schema = False
    tells_slots = False
    tells_prompt = "end"
    config = {"features": ["tools", "reasoning", "logprobs", "seed", "continue"]}

    def prompt(self, tokens):
        rate = 500 if tokens > 100 else 0
        return f"[[mock tokens={tokens} rate={rate}]] Once upon a time"

    def open(self, fault=""):
        @contextlib.asynccontextmanager
        async def opened():
            async with StandIn(fault=fault, thinks=True).serving() as server:
                engine = OpenAI({"url": server.url, "release_ms": 20, **self.config})
                yield engine
                await engine.close()

        return opened

    @pytest.fixture
    def engine(self):
        return self.open()

    @pytest.fixture
    def faulty(self):
        return lambda fault: self.open(fault)()


class TestOpenAIOnStandInOnUvloop(TestOpenAIOnStandIn):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()
