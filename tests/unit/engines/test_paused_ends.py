"""Whoever asks for a pause with the last words of an answer does not hold the connection that it came by."""

import asyncio
import contextlib
import json

import pytest

from llama_orch.plugins import GenerateJob
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.engines.openai import OpenAI
from llama_orch.plugins.engines.tgi import Tgi
from llama_orch.plugins.engines.triton import Triton
from llama_orch.plugins.testing.engines import Recorder

from ...support.triton_grpc_server import TritonGrpcServer
from ...support.triton_server import MODEL

JOB = GenerateJob(task_id="t", attempt=1, prompt="hello", seed=5, max_tokens=4)


class Scripted:
    """Answers questions at once, and a stream up to its last event; HTTP's own end follows when it is let."""

    def __init__(self, answers, path, *events):
        self.answers = answers
        self.path = path
        self.body = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
        self.streams = 0
        self.may_end = asyncio.Event()
        #: clients that left once the server had said that it says no more
        self.left = 0
        self.changed = asyncio.Event()
        self.url = ""

    @contextlib.asynccontextmanager
    async def serving(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def until_left(self, count):
        while self.left < count:
            self.changed.clear()
            await self.changed.wait()

    async def _serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    (int(line[15:]) for line in head.lower().split("\r\n") if line[:15] == "content-length:"), 0
                )
                await reader.readexactly(length)
                path = head.split()[1]
                if path != self.path:
                    status, value = self.answers.get(path, (404, {"error": "there is no such route"}))
                    body = json.dumps(value).encode()
                    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                    continue
                self.streams += 1
                told = self.body.encode()
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(told), told))
                await self.may_end.wait()
                writer.write(b"0\r\n\r\n")
                writer.write_eof()
                await reader.read()
                self.left += 1
                self.changed.set()
                writer.close()
                return


def openai_server():
    choice = {"index": 0, "text": "rain", "finish_reason": "stop"}
    return Scripted({"/v1/models": (200, {"data": [{"id": "m"}]})}, "/v1/completions", {"choices": [choice]}, "[DONE]")


def tgi_server():
    info = {"model_id": "m", "version": "3"}
    token = {"id": 1, "text": "rain", "logprob": -1.0, "special": False}
    last = {"token": token, "details": {"finish_reason": "length", "input_length": 2}}
    return Scripted({"/info": (200, info)}, "/generate_stream", last)


def llamacpp_server():
    last = {"content": "rain", "tokens": [1], "tokens_predicted": 1, "tokens_evaluated": 2, "stop": True}
    return Scripted({}, "/completion", {**last, "stop_type": "eos", "timings": {}})


@pytest.mark.parametrize(
    "engine_of, server_of", [(OpenAI, openai_server), (Tgi, tgi_server), (LlamaCpp, llamacpp_server)]
)
@pytest.mark.parametrize("n", [1, 2])
def test_a_pause_that_is_asked_for_with_the_last_words_ends_with_them(engine_of, server_of, n):
    async def test():
        async with asyncio.timeout(30), server_of().serving() as server:
            engine, sink = engine_of({"url": server.url, "model": "m"}), Recorder()
            sink.pressure = lambda: len(sink.batches) == n  # type: ignore[method-assign]
            engine.generate(JOB if n == 1 else GenerateJob(task_id="t", attempt=1, prompt="hello", seed=5, n=n), sink)
            assert (await sink.end()).finish_reason in ("stop", "length")
            server.may_end.set()
            await server.until_left(server.streams)
            assert server.streams == n
            await engine.close()

    asyncio.run(test())


def test_a_call_that_ends_at_a_stop_string_while_its_reader_pauses_is_broken_off():
    async def test():
        async with asyncio.timeout(30), TritonGrpcServer().serving() as server:
            engine, first = Triton({"url": server.url, "model": MODEL}), Recorder()
            engine.generate(JOB, first)
            await first.end()
            job = GenerateJob(task_id="t", attempt=2, prompt="hello", seed=5, max_tokens=4, stop=(first.all[1].text,))
            sink = Recorder()
            sink.pressure = lambda: sink.count >= 2  # type: ignore[method-assign]
            engine.generate(job, sink)
            assert (await sink.end()).finish_reason == "stop"
            while server.completed < 2:
                await asyncio.sleep(0)  # its loop is this one
            await engine.close()

    asyncio.run(test())
