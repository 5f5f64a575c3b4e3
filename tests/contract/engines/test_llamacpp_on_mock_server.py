"""The llama.cpp plugin against the mock that speaks its wire format, where faults can be had at will."""

import contextlib

import pytest
import uvloop

from llama_orch.plugins.engines._mock_machine import Machine
from llama_orch.plugins.engines._mock_server import MockServer
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.testing.engines import EngineContract

FAULTS = {
    "cut": ("[[mock fault=cut:3]]", "cut"),
    "cut at once": ("[[mock fault=cut]]", "cut"),
    "die": ("[[mock fault=die:3]]", "cut"),
    "garbage": ("[[mock fault=garbage:3]]", "garbage"),
    "wrong UTF-8": ("[[mock fault=utf8:3]]", "garbage"),
    "error in the stream": ("[[mock fault=error:3]]", "server-error"),
    "no last frame": ("[[mock fault=unfinished:3]]", "cut"),
    "503": ("[[mock fault=refuse]]", "refused"),
    "500": ("[[mock fault=500]]", "server-error"),
    "wrong knob": ("[[mock fault=unheard-of]]", "invalid"),
}


class TestLlamaCppOnMockServer(EngineContract):
    faults = FAULTS
    utf8_prompt = "[[mock text=utf8 tokens=100]]"
    stop_text = "ke"
    obeys_schema = False

    def prompt(self, tokens):
        rate = 500 if tokens > 100 else 0
        return f"[[mock tokens={tokens} rate={rate}]] Once upon a time"

    @pytest.fixture
    def engine(self):
        @contextlib.asynccontextmanager
        async def opened():
            server = MockServer(Machine(slots=3))
            port = await server.start()
            engine = LlamaCpp({"url": f"http://127.0.0.1:{port}"})
            yield engine
            await engine.close()
            server.stop()

        return opened


class TestLlamaCppOnMockServerOnUvloop(TestLlamaCppOnMockServer):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()
