"""The parrot keeps the contract of engines."""

import contextlib

import pytest
from llama_orch_parrot.engine import Parrot

from llama_orch.plugins.testing.engines import EngineContract


class TestParrot(EngineContract):
    stop_text = "upon"

    @pytest.fixture
    def engine(self):
        @contextlib.asynccontextmanager
        async def opened():
            parrot = Parrot({})
            yield parrot
            await parrot.close()

        return opened
