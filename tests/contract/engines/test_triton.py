"""The Triton plugin on a real Triton, over HTTP and over gRPC."""

import contextlib

import pytest
import uvloop

from llama_orch.plugins.engines.triton import Triton
from llama_orch.plugins.testing.engines import EngineContract

from ...engines.real_triton import CTX, MODEL, VLLM_MODEL, triton_server

pytestmark = pytest.mark.slow

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with triton_server(tmp_path_factory.mktemp("triton")) as it:
        yield it


class TestTritonOverHttp(EngineContract):
    utf8_prompt = "Räuber 🙂 中文 utf8=1 tokens=100"
    stop_text = "ke"
    tells_slots = False
    tells_prompt = "never"
    faults = {
        "an error in the stream": ("error_after=3", "server-error"),
        "an error at once": ("error=1", "server-error"),
    }

    def prompt(self, tokens):
        return f"Once upon a time tokens={tokens} delay_ms={2 if tokens > 100 else 0}"

    model = MODEL

    def url(self, server):
        return server.http

    @pytest.fixture
    def engine(self, server):
        @contextlib.asynccontextmanager
        async def opened():
            engine = Triton(
                {
                    "url": self.url(server),
                    "slots": 3,
                    "ctx": CTX,
                    "model": self.model,
                    "metrics_url": server.metrics,
                    "chat_template": TEMPLATE,
                }
            )
            yield engine
            await engine.close()

        return opened


class TestTritonOverHttpOnUvloop(TestTritonOverHttp):
    """On the event loop that the server uses."""

    def new_loop(self):
        return uvloop.new_event_loop()


class TestTritonOverGrpc(TestTritonOverHttp):
    def url(self, server):
        return server.grpc


class TestTritonOverGrpcOnUvloop(TestTritonOverGrpc):
    def new_loop(self):
        return uvloop.new_event_loop()


class TestVllmBackendOverHttp(TestTritonOverHttp):
    """A model with the inputs and outputs of Triton's vLLM backend."""

    model = VLLM_MODEL
    tells_prompt = "start"


class TestVllmBackendOverGrpc(TestVllmBackendOverHttp):
    def url(self, server):
        return server.grpc
