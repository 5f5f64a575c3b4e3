"""The llama.cpp plugin against the mock that speaks its wire format, where faults can be had at will."""

import contextlib

import pytest
import uvloop

from llama_orch.plugins.engines._mock_machine import Machine
from llama_orch.plugins.engines._mock_server import MockServer
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.testing.engines import EngineContract, FaultContract, VectorContract

from .test_mock_engine import KNOBS, MockPrompts


@contextlib.asynccontextmanager
async def client(server):
    """The plugin on a mock server of its own."""
    port = await server.start()
    engine = LlamaCpp({"url": f"http://127.0.0.1:{port}"})
    yield engine
    await engine.close()
    server.stop()


class OnMockServer:
    """How to get at it, with the server's own start options."""

    serves = "text"
    script = {}

    @pytest.fixture
    def engine(self):
        return lambda: client(MockServer(Machine(slots=3, script=self.script), serves=self.serves))

    @pytest.fixture
    def faulty(self):
        def opened(fault):
            script = {**self.script, **KNOBS.get(fault, {})}
            machine, loading_s = Machine(slots=3, script=script), 3600.0 if fault == "loading" else 0.0
            return client(MockServer(machine, serves=self.serves, loading_s=loading_s, split=fault == "split"))

        return opened


class TestLlamaCppOnMockServer(OnMockServer, MockPrompts, FaultContract, EngineContract):
    faults = {"wrong knob": ("[[mock fault=unheard-of]]", "invalid")}
    # The mock takes a grammar and does not hold to it.
    obeys_schema = False


class TestLlamaCppThatThinksOnMockServer(OnMockServer, MockPrompts, FaultContract, EngineContract):
    """The same with thoughts."""

    obeys_schema = False
    script = {"thoughts": 5}


class TestLlamaCppThatEmbedsOnMockServer(OnMockServer, FaultContract, VectorContract):
    """As it is started for embeddings."""

    serves = "embedding"


class TestLlamaCppThatRanksOnMockServer(OnMockServer, FaultContract, VectorContract):
    """As it is started for ranking."""

    serves = "rerank"


class TestLlamaCppOnMockServerOnUvloop(TestLlamaCppOnMockServer):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()
