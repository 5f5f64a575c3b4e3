"""The contract of engines: inherit :class:`EngineContract` in a test module, and say how to get at your engine.

::

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def engine(self, my_server):
            @contextlib.asynccontextmanager
            async def opened():
                engine = MyEngine({"url": my_server.url})
                yield engine
                await engine.close()
            return opened

The suite speaks of what every engine must do. What only some can follows what the engine says of itself
(:class:`~llama_orch.plugins.EngineProperties`): what it claims has to work, and what it does not claim it has to refuse
as ``invalid``. Jobs that an engine needs otherwise (a prompt that makes a stand-in call a tool) are methods to override:
``prompt``, ``job``, ``chat_job``, ``tool_job``, ``thinking_job``, ``embedding_job``, ``rerank_job``.

A client of a server inherits :class:`FaultContract` too, on a stand-in that acts every fault; an engine that only embeds
or ranks inherits :class:`VectorContract` alone.
"""

from __future__ import annotations

from .cancels import CancelContract
from .chats import ChatContract
from .choices import ChoiceContract
from .faults import BREAKING, FAULTS, FaultContract, OpenFaulty
from .questions import QuestionContract
from .recorder import PATIENCE_S, Recorder
from .streams import StreamContract
from .suite import CLOCK, WEATHER, OpenEngine, Suite
from .vectors import VectorContract

__all__ = [
    "BREAKING",
    "CLOCK",
    "FAULTS",
    "PATIENCE_S",
    "WEATHER",
    "CancelContract",
    "ChatContract",
    "ChoiceContract",
    "EngineContract",
    "FaultContract",
    "OpenEngine",
    "OpenFaulty",
    "QuestionContract",
    "Recorder",
    "StreamContract",
    "Suite",
    "VectorContract",
]


class EngineContract(StreamContract, CancelContract, QuestionContract, ChatContract, ChoiceContract, VectorContract):
    """What every engine plugin that says texts must do. Inherit it, and give the fixture ``engine``."""
