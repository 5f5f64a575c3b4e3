"""The TGI plugin against a second implementation of TGI's public API, with every fault."""

import contextlib
import json

import pytest
import uvloop

from llama_orch.plugins.engines.tgi import Tgi
from llama_orch.plugins.testing.engines import EngineContract, FaultContract

from ...support.tgi_server import TgiServer

SCHEMA = {"type": "object", "properties": {"done": {"type": "boolean"}}, "required": ["done"]}


class TestTgi(EngineContract, FaultContract):
    faults = {"wrong knob": ("[[mock fault=unheard-of]]", "invalid")}
    utf8_prompt = "[[mock text=utf8 tokens=100]]"
    stop_text = "ke"
    tells_prompt = "end"

    def prompt(self, tokens):
        rate = 500 if tokens > 100 else 0
        return f"[[mock tokens={tokens} rate={rate}]] Once upon a time"

    def open(self, fault=""):
        @contextlib.asynccontextmanager
        async def opened():
            async with TgiServer(fault=fault).serving() as server:
                engine = Tgi({"url": server.url})
                yield engine
                await engine.close()

        return opened

    @pytest.fixture
    def engine(self):
        return self.open()

    @pytest.fixture
    def faulty(self):
        return lambda fault: self.open(fault)()

    def test_a_json_schema_is_obeyed(self, engine):
        """TGI takes schemas of objects alone: a truth value, which other engines are asked for, it refuses."""

        async def test():
            async with engine() as it:
                job = self.job(self.prompt(16), max_tokens=40, json_schema=SCHEMA)
                _, sink = await self.said(it, job)
                assert json.loads(sink.text) == {"done": True}
                await self.refuses(it, self.job(self.prompt(16), json_schema={"type": "boolean"}))

        self.run(test())


class TestTgiOnUvloop(TestTgi):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()
