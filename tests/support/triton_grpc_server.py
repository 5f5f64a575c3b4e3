"""Triton's dialect over gRPC, behind a wire that can break, for faults that a real Triton does not show."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import aio
from tritonclient.grpc import service_pb2

from llama_orch.plugins.engines._mock_script import KnobError, tokenize

from .stand_in import AFTER, speech_of
from .triton_server import INPUTS, MODEL

#: classes that are made when the module is loaded, so that no checker knows them
messages: Any = service_pb2
SERVICE = "inference.GRPCInferenceService"


class Wire:
    """Passes bytes on to a port, until it is told to break."""

    def __init__(self, target: int, *, split: bool) -> None:
        self._target = target
        self._split = split
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def reset(self) -> None:
        """Every connection breaks."""
        for writer in list(self._open):
            writer.transport.abort()

    def die(self) -> None:
        """And nobody answers any more."""
        assert self._server is not None
        self._server.close()
        self.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._open |= {writer, back}
        try:
            await asyncio.gather(self._pass(reader, back, split=False), self._pass(there, writer, split=self._split))
        finally:
            self._open -= {writer, back}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, split: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                for piece in [data[n : n + 1] for n in range(len(data))] if split else [data]:
                    writer.write(piece)
                    await writer.drain()
        writer.close()


class TritonGrpcServer:
    """One model of TensorRT-LLM's contract.

    Args:
        fault: of those that the contract of engines names; "" = none.
        inputs: of the model, and their types.
    """

    def __init__(self, *, fault: str = "", inputs: Mapping[str, str] = INPUTS) -> None:
        self.fault = fault
        self.inputs = inputs
        self.ctx = 4096
        self.completed = 0
        #: requests that streams asked for
        self.asked: list[Any] = []
        #: set whenever a client leaves a stream before its end
        self.left = asyncio.Event()
        self._wire: Wire | None = None

    @property
    def url(self) -> str:
        assert self._wire is not None
        return f"grpc://127.0.0.1:{self._wire.port}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[TritonGrpcServer]:
        """Listen on a free port of loopback."""
        server = aio.server()
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, self._handlers())])
        self._wire = Wire(server.add_insecure_port("127.0.0.1:0"), split=self.fault == "split")
        await server.start()
        await self._wire.start()
        try:
            yield self
        finally:
            self._wire.die()
            await server.stop(None)

    def _handlers(self) -> dict[str, Any]:
        def plain(name: str, answer: Any) -> Any:
            async def handler(request: Any, context: Any) -> Any:
                return await answer(context)

            request = getattr(messages, f"{name}Request")
            return grpc.unary_unary_rpc_method_handler(handler, request.FromString, _bytes)

        return {
            "ModelReady": plain("ModelReady", self._ready),
            "ServerMetadata": plain("ServerMetadata", self._server_told),
            "ModelMetadata": plain("ModelMetadata", self._model_told),
            "ModelStatistics": plain("ModelStatistics", self._statistics),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                self._stream, messages.ModelInferRequest.FromString, _bytes
            ),
        }

    # --- questions

    async def _ready(self, context: Any) -> Any:
        return messages.ModelReadyResponse(ready=self.fault != "loading")

    async def _server_told(self, context: Any) -> Any:
        return messages.ServerMetadataResponse(name="triton", version="0.0.1")

    async def _model_told(self, context: Any) -> Any:
        if self.fault == "loading":
            message = f"Request for unknown model: '{MODEL}' has no available versions"
            await context.abort(grpc.StatusCode.UNAVAILABLE, message)
        told = messages.ModelMetadataResponse(name=MODEL, versions=["1"], platform="made-up")
        for name, kind in self.inputs.items():
            told.inputs.add(name=name, datatype=kind, shape=[1])
        told.outputs.add(name="text_output", datatype="BYTES", shape=[1])
        return told

    async def _statistics(self, context: Any) -> Any:
        told = messages.ModelStatisticsResponse()
        told.model_stats.add(name=MODEL, version="1").inference_stats.success.count = self.completed
        return told

    # --- streams

    async def _stream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for request in requests:
                self.asked.append(request)
                async for response in self._answer(request, context):
                    yield response
                if self.fault == "unfinished":
                    return
        except asyncio.CancelledError:
            self.left.set()
            raise
        finally:
            self.completed += 1

    async def _answer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        assert self._wire is not None
        match self.fault:
            case "refused" | "loading":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is busy")
            case "server-error":
                await context.abort(grpc.StatusCode.INTERNAL, "it failed")
            case "cut-early":
                self._wire.reset()
                return
        inputs = {each.name: each.contents for each in request.inputs}
        prompt = inputs["text_input"].bytes_contents[0].decode()
        stops = [word.decode() for word in inputs["stop_words"].bytes_contents] if "stop_words" in inputs else []
        count = len(tokenize(prompt, add_special=True))
        if count >= self.ctx:
            message = f"Prompt length ({count}) exceeds maximum input length ({self.ctx})"
            yield messages.ModelStreamInferResponse(error_message=message)
            return
        seed, limit = inputs["random_seed"].uint64_contents[0], inputs["max_tokens"].int_contents[0]
        try:
            speech, rate = speech_of(prompt, seed=seed, limit=limit, room=self.ctx - count, stop=[])
        except KnobError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise
        so_far = ""
        while (said := speech.next()) is not None:
            if rate:
                await asyncio.sleep(said.tokens / rate)
            if self.fault == "slow":
                await asyncio.sleep(0.002)
            for _ in range(said.tokens - 1):
                yield _text(b"")
            yield _text(said.text.encode())
            so_far += said.text
            if speech.counted >= AFTER and self.fault not in ("", "slow", "split"):
                async for response in self._strike():
                    yield response
                return
            if any(stop in so_far for stop in stops):
                break
        last = messages.ModelStreamInferResponse()
        last.infer_response.parameters["triton_final_response"].bool_param = True
        yield last

    async def _strike(self) -> AsyncIterator[Any]:
        assert self._wire is not None
        match self.fault:
            case "cut":
                await asyncio.sleep(0.05)  # what was said is on its way through the wire
                self._wire.reset()
            case "dies":
                await asyncio.sleep(0.05)
                self._wire.die()
            case "silent":
                await asyncio.Event().wait()
            case "garbage":
                yield b"\xff\xff\xff"
            case "bad-utf8":
                yield _text(b"\xff\xc3")
            case "error-frame":
                yield messages.ModelStreamInferResponse(error_message="it failed")


def _text(text: bytes) -> Any:
    told = messages.ModelStreamInferResponse()
    told.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    told.infer_response.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
    return told


def _bytes(message: Any) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())
