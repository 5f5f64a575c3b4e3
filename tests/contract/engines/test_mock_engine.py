"""The mock, in process."""

import contextlib

import pytest
import uvloop

from llama_orch.plugins import ChatJob
from llama_orch.plugins.engines.mock import MockEngine
from llama_orch.plugins.testing.engines import EngineContract, FaultContract

#: what the contract calls a fault, and the knobs that act it
KNOBS = {
    "": {},
    "refused": {"fault": "refuse"},
    "server-error": {"fault": "500"},
    "cut": {"fault": "cut:3"},
    "cut-early": {"fault": "cut"},
    "dies": {"fault": "die:3"},
    "garbage": {"fault": "garbage:3"},
    "bad-utf8": {"fault": "utf8:3"},
    "error-frame": {"fault": "error:3"},
    "unfinished": {"fault": "unfinished:3"},
    "silent": {"fault": "silent:3"},
    "slow": {"rate": 500},
    "split": {},
    "loading": {},
}


class MockPrompts:
    """What the mock is told to do what a test wants."""

    utf8_prompt = "[[mock text=utf8 tokens=100]]"
    stop_text = "ke"

    def prompt(self, tokens):
        rate = 500 if tokens > 100 else 0
        return f"[[mock tokens={tokens} rate={rate}]] Once upon a time"


class TestMockEngine(MockPrompts, FaultContract, EngineContract):
    faults = {"wrong knob": ("[[mock fault=unheard-of]]", "invalid")}
    # There is nothing to load in this process.
    hidden_faults = frozenset({"loading"})

    @pytest.fixture
    def engine(self):
        @contextlib.asynccontextmanager
        async def opened():
            engine = MockEngine({"slots": 3})
            yield engine
            await engine.close()

        return opened

    @pytest.fixture
    def faulty(self):
        @contextlib.asynccontextmanager
        async def opened(fault):
            engine = MockEngine({"slots": 3, "script": KNOBS[fault]})
            yield engine
            await engine.close()

        return opened


class TestMockEngineThatThinks(MockPrompts, EngineContract):
    """With thoughts among its default knobs."""

    @pytest.fixture
    def engine(self):
        @contextlib.asynccontextmanager
        async def opened():
            engine = MockEngine({"slots": 3, "script": {"thoughts": 5}})
            yield engine
            await engine.close()

        return opened


class TestMockEngineOnUvloop(TestMockEngine):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()


@pytest.mark.parametrize(
    "names, called", [("", 0), ("get_weather", 1), ("get_time,get_weather", 2), ("get_time,none", 1)]
)
def test_a_script_says_which_tools_are_called_until_one_has_answered(names, called):
    suite = TestMockEngine()

    async def test():
        engine = MockEngine({})
        offered = suite.tool_job().chat
        assert offered is not None
        asked = [{"role": "user", "content": f"[[mock calls={names}]] please"}]
        sinks = []
        for messages in (asked, [*asked, {"role": "tool", "tool_call_id": "c", "content": "rain"}]):
            chat = ChatJob(messages=messages, tools=offered.tools)
            _, sink = await suite.said(engine, suite.chat_job("", chat=chat))
            sinks.append({channel for _, channel in sink.channels if channel.startswith("call:")})
        await engine.close()
        return sinks

    first, second = suite.run(test())
    assert len(first) == called
    assert second == set()
