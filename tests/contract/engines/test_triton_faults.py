"""The Triton plugin against stand-ins, where faults can be had that a real Triton does not show."""

import contextlib

import pytest
import uvloop

from llama_orch.plugins.engines.triton import Triton
from llama_orch.plugins.testing.engines import EngineContract, FaultContract

from ...support.triton_grpc_server import TritonGrpcServer
from ...support.triton_server import MODEL, TritonServer
from .test_triton import TEMPLATE

OPTIONS = {"model": MODEL, "chat_template": TEMPLATE}


class TestTritonOverHttpOnStandIn(EngineContract, FaultContract):
    faults = {"wrong knob": ("[[mock fault=unheard-of]]", "invalid")}
    # Over HTTP a stream has no last frame: the end of its body is its end.
    hidden_faults = frozenset({"unfinished"})
    utf8_prompt = "[[mock text=utf8 tokens=100]]"
    stop_text = "ke"
    tells_slots = False
    tells_prompt = "never"

    def prompt(self, tokens):
        rate = 500 if tokens > 100 else 0
        return f"[[mock tokens={tokens} rate={rate}]] Once upon a time"

    def open(self, fault=""):
        @contextlib.asynccontextmanager
        async def opened():
            async with TritonServer(fault=fault).serving() as server:
                engine = Triton({"url": server.url, "slots": 2, "ctx": server.ctx, **OPTIONS})
                yield engine
                await engine.close()

        return opened

    @pytest.fixture
    def engine(self):
        return self.open()

    @pytest.fixture
    def faulty(self):
        return lambda fault: self.open(fault)()


class TestTritonOverHttpOnStandInOnUvloop(TestTritonOverHttpOnStandIn):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()


class TestTritonOverGrpcOnStandIn(TestTritonOverHttpOnStandIn):
    hidden_faults = frozenset()

    def open(self, fault=""):
        @contextlib.asynccontextmanager
        async def opened():
            async with TritonGrpcServer(fault=fault).serving() as server:
                engine = Triton({"url": server.url, "slots": 2, "ctx": server.ctx, **OPTIONS})
                yield engine
                await engine.close()

        return opened


class TestTritonOverGrpcOnStandInOnUvloop(TestTritonOverGrpcOnStandIn):
    def new_loop(self):
        return uvloop.new_event_loop()
