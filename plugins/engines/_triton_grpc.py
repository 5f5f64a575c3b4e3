"""Triton over gRPC, with the protocol's messages from the package `tritonclient`."""

from __future__ import annotations

import asyncio
import importlib
import re
import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from .. import AttemptFailure, AttemptSink, ConfigError, EngineHealth, EngineState
from ._slots import EngineGoneError
from ._stream_attempt import Owner, RefusedError, failed_plugin
from ._triton_frames import Answer, failure_of
from ._triton_model import Model, Tensor

TIMEOUT_S: Final = 5.0
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # so long a try to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_UNREACHABLE: Final = re.compile(
    r"failed to connect|connection refused|name resolution|dns|not connected", re.IGNORECASE
)
_CUT: Final = re.compile(
    r"socket closed|reset|goaway|broken pipe|rst_stream|transport|stream removed|eof", re.IGNORECASE
)
_FINAL: Final = "triton_final_response"
#: where a tensor's values go in a message, and of what type they are
_CONTENTS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "BYTES": ("bytes_contents", lambda value: str(value).encode()),
    "BOOL": ("bool_contents", bool),
    "FP32": ("fp32_contents", float),
    "FP64": ("fp64_contents", float),
    "INT8": ("int_contents", int),
    "INT16": ("int_contents", int),
    "INT32": ("int_contents", int),
    "INT64": ("int64_contents", int),
    "UINT8": ("uint_contents", int),
    "UINT16": ("uint_contents", int),
    "UINT32": ("uint_contents", int),
    "UINT64": ("uint64_contents", int),
}
_NUMBERS: Final = {"INT32": "<i", "UINT32": "<I", "INT64": "<q", "UINT64": "<Q", "INT16": "<h", "UINT16": "<H"}


class GrpcTransport:
    """Speaks to one model.

    Args:
        url: ``grpc://host:port``, or ``grpcs://…`` with TLS.
        model: name of the model.
        version: of the model; "" = the one that the server's policy picks.
        headers: sent with every call.

    Raises:
        ValueError: the URL is none.
        ConfigError: the package `tritonclient` is not installed with what gRPC needs.
    """

    def __init__(self, url: str, model: str, version: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        if not parts.hostname or not parts.port:
            msg = f"url: {url!r} is no grpc:// address with a port"
            raise ValueError(msg)
        try:
            self._grpc: Any = importlib.import_module("grpc.aio")
            self._messages: Any = importlib.import_module("tritonclient.grpc.service_pb2")
            self._service: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")
        except ImportError as error:
            msg = f"url: gRPC needs the package tritonclient: {error}"
            remedy = "pip install 'llama-orch[triton]', or name Triton's http:// address."
            raise ConfigError(msg, field="url", got=url, remedy=remedy) from error
        self.host = parts.hostname
        self._target = parts.netloc.rpartition("@")[2]
        self._secure = parts.scheme == "grpcs"
        self._name = model
        self._version = version
        # Without `triton_grpc_error`, which would give errors in streams a status: Triton 2.51 with it can die of a call
        # that is cancelled.
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        self._secret = headers.get("Authorization", "").removeprefix("Bearer ")
        self._channel: Any = None
        self._stub: Any = None
        self._attempts: set[GrpcAttempt] = set()
        self._closed = False

    async def health(self) -> EngineHealth:
        """Whether the model is ready; the server as a whole is not of interest."""
        messages = self._messages
        try:
            ready = await self._call("ModelReady", messages.ModelReadyRequest(name=self._name, version=self._version))
        except RefusedError as error:
            return _health(error.failure)
        if ready.ready:
            return EngineHealth(state=EngineState.READY)
        try:
            await self.model()
        except RefusedError as error:
            return _health(error.failure)
        return EngineHealth(state=EngineState.LOADING, detail="the model is not ready")

    async def version(self) -> str:
        """Of the server. :raises RefusedError: it does not say."""
        return str((await self._call("ServerMetadata", self._messages.ServerMetadataRequest())).version)

    async def model(self) -> Model:
        """What the server tells of the model. :raises RefusedError: nothing."""
        request = self._messages.ModelMetadataRequest(name=self._name, version=self._version)
        told = await self._call("ModelMetadata", request)
        inputs, outputs = (
            [Tensor(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in tensors]
            for tensors in (told.inputs, told.outputs)
        )
        return Model(told.name, list(told.versions), told.platform, inputs, outputs)

    async def completed(self) -> int | None:
        """Requests that the model has done with, well or not, since the server started; ``None`` = it does not say.

        Raises:
            EngineGoneError: nobody answers.
        """
        request = self._messages.ModelStatisticsRequest(name=self._name, version=self._version)
        try:
            told = await self._call("ModelStatistics", request)
        except RefusedError as error:
            if error.failure.kind == "unreachable":
                raise EngineGoneError(error.failure.message) from error
            return None
        counts = [entry.inference_stats for entry in told.model_stats]
        return sum(int(each.success.count) + int(each.fail.count) for each in counts)

    def attempt(self, owner: Owner, sink: AttemptSink, *, max_tokens: int, stop: Sequence[str]) -> GrpcAttempt:
        """An attempt that is not sent yet."""
        attempt = GrpcAttempt(self, owner, sink, Answer(max_tokens=max_tokens, stop=stop))
        self._attempts.add(attempt)
        return attempt

    async def close(self) -> None:
        """Drop the connection; what runs on it is cut."""
        self._closed = True
        for attempt in list(self._attempts):
            attempt.lost()
        if self._channel is not None:
            await self._channel.close()

    # --- for attempts

    def done(self, attempt: GrpcAttempt) -> None:
        """An attempt is over."""
        self._attempts.discard(attempt)

    def request(self, tensors: Mapping[str, Any], model: Model) -> Any:
        """The message that asks the model for a stream. :raises RefusedError: an input is of a type that is none here."""
        request = self._messages.ModelInferRequest(model_name=self._name, model_version=self._version)
        # The last response says that it is, also when it holds nothing else.
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for name, value in tensors.items():
            tensor = model.tensor(name)
            assert tensor is not None
            if tensor.datatype not in _CONTENTS:
                raise RefusedError("invalid", f"{name}: it is of type {tensor.datatype}, which is not sent over gRPC")
            field, kind = _CONTENTS[tensor.datatype]
            values = value if isinstance(value, list) else [value]
            shape = [1] * (len(tensor.shape) - 1) + [len(values)]
            wire = request.inputs.add(name=name, datatype=tensor.datatype, shape=shape)
            try:
                getattr(wire.contents, field).extend(kind(each) for each in values)
            except (TypeError, ValueError) as error:
                raise RefusedError("invalid", f"{name}: {value!r} is no {tensor.datatype}: {error}") from error
        return request

    def call(self) -> Any:
        """Begin a call that streams, whose requests are still to be written. :raises RefusedError: it is closed."""
        return self._connected().ModelStreamInfer(metadata=self._metadata)

    def failure_of(self, error: Exception, *, begun: bool) -> AttemptFailure:
        """What a failed call means for an attempt."""
        name, text = "", str(error) or type(error).__name__
        if isinstance(error, self._grpc.AioRpcError):
            told: Any = error
            name = str(told.code().name)
            text = str(told.details() or name)
        if self._secret:
            text = text.replace(self._secret, "***")  # what refuses a key may repeat it
        if name == "DEADLINE_EXCEEDED" or (name == "UNAVAILABLE" and not begun and _UNREACHABLE.search(text)):
            return AttemptFailure(kind="unreachable", message=f"{self._target}: {text}")
        if name == "CANCELLED" or (name in ("UNAVAILABLE", "INTERNAL", "UNKNOWN") and _CUT.search(text)):
            return AttemptFailure(kind="cut", message=f"the call broke off: {text}")
        status = {
            "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "UNIMPLEMENTED": 501, "ALREADY_EXISTS": 409,
            "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400,
            "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503,
        }.get(name, 500)  # fmt: skip
        return failure_of(status, text)

    # --- inside

    def _connected(self) -> Any:
        if self._closed:
            raise RefusedError("unreachable", "the client is closed", retriable=True)
        if self._stub is None:
            if self._secure:
                credentials = importlib.import_module("grpc").ssl_channel_credentials()
                self._channel = self._grpc.secure_channel(self._target, credentials, options=_OPTIONS)
            else:
                self._channel = self._grpc.insecure_channel(self._target, options=_OPTIONS)
            self._stub = self._service.GRPCInferenceServiceStub(self._channel)
        return self._stub

    async def _call(self, name: str, request: Any) -> Any:
        call = getattr(self._connected(), name)
        try:
            return await call(request, metadata=self._metadata, timeout=TIMEOUT_S)
        except self._grpc.AioRpcError as error:
            failure = self.failure_of(error, begun=False)
            raise RefusedError(failure.kind, f"{name}: {failure.message}", retriable=failure.retriable) from error


class GrpcAttempt:
    """A running attempt; cancelling its call reaches the model."""

    def __init__(self, transport: GrpcTransport, owner: Owner, sink: AttemptSink, answer: Answer) -> None:
        self._transport = transport
        self._owner = owner
        self._sink: AttemptSink | None = sink
        self._answer = answer
        self._task: asyncio.Task[None] | None = None
        self._model: Model | None = None
        self._go = asyncio.Event()
        self._go.set()
        #: whether the engine may have got it
        self.asked = False
        #: the engine itself said that it is done with it, or never took it
        self.vacated = False
        owner.live.add(self)

    # --- AttemptHandle

    def cancel(self) -> None:
        if self._sink is None:
            return
        self._leave()
        self.vacated = not self.asked
        if self._task is not None:
            self._task.cancel()

    async def slot_free(self) -> str:
        return "slot-free" if self.vacated else await self._owner.slot_free(self)

    def resume(self) -> None:
        self._go.set()

    # --- sending

    def ask(self, tensors: Mapping[str, Any], model: Model) -> None:
        """Send the model its inputs."""
        if self._sink is not None:
            self._task = asyncio.get_running_loop().create_task(self._run(tensors, model))

    def prepare(self, sending: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do first what is needed to send it; that calls :meth:`ask`, or raises :class:`RefusedError`."""
        self._task = asyncio.get_running_loop().create_task(self._prepare(sending))

    def lost(self) -> None:
        """The client is closed."""
        self._fail(AttemptFailure(kind="cut", message="the client was closed"))
        if self._task is not None:
            self._task.cancel()

    async def _prepare(self, sending: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await sending()
        except RefusedError as error:
            self.vacated = True
            self._fail(error.failure)
        except Exception as error:
            # Nobody waits for this task: whatever it raises, the attempt must not be left without an end.
            self.vacated = True
            self._fail(failed_plugin(error))

    async def _run(self, tensors: Mapping[str, Any], model: Model) -> None:
        transport, call = self._transport, None
        try:
            request = transport.request(tensors, model)
            call = transport.call()
            self.asked = True
            self._owner.sent += 1
            await call.write(request)
            # As Triton's own client does, the end of the requests stays open while the answer comes, and a call whose
            # answer is complete is not cancelled but read to its end.
            while not self._answer.over():
                response = await call.read()
                if response is None:
                    self._answer.fail("garbage", "a response is none of Triton's messages")
                elif not response:
                    self._answer.fail("cut", "the stream ended without its last response")
                else:
                    self._heard(response)
                if not self._go.is_set() and not self._answer.over():  # nobody resumes what has ended
                    await self._go.wait()
            if self._answer.failure is not None:
                self._fail(self._answer.failure)
            if self.vacated:
                await call.done_writing()
                while await call.read():
                    pass
                call = None
        except RefusedError as error:
            self.vacated = True
            self._fail(error.failure)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # gRPC's errors, known only where it is installed; any other is no better an answer.
            failure = transport.failure_of(error, begun=self._answer.start is not None)
            if failure.kind == "unreachable" and self.asked:
                self.vacated = True
                self._owner.sent -= 1
            self._fail(failure)
        finally:
            if call is not None:
                call.cancel()

    def _heard(self, response: Any) -> None:
        """One response."""
        sink, answer = self._sink, self._answer
        if sink is None:
            return
        begun = answer.start is not None
        last = False
        if response.error_message:
            failure = failure_of(0, response.error_message)
            answer.fail(failure.kind, failure.message, retriable=failure.retriable)
        else:
            infer = response.infer_response
            last = _FINAL in infer.parameters and infer.parameters[_FINAL].bool_param
            if infer.outputs:
                try:
                    answer.response(_outputs(infer))
                except (UnicodeDecodeError, struct.error, IndexError) as error:
                    answer.fail("garbage", f"a response cannot be read: {error}")
        if last:
            self.vacated = True
            answer.complete()
        if answer.start is not None and not begun:
            sink.started(answer.start)
        batch = answer.take()
        if batch is not None and self._sink is not None:
            sink.entries(batch)
            if sink.pressure():
                self._go.clear()
        if answer.end is not None and self._sink is not None:
            self._leave()
            sink.ended(answer.end)

    def _fail(self, failure: AttemptFailure) -> None:
        sink = self._sink
        if sink is not None:
            self._leave()
            sink.failed(failure)

    def _leave(self) -> None:
        self._sink = None
        self._owner.live.discard(self)
        self._transport.done(self)


def _outputs(infer: Any) -> dict[str, Any]:
    """The first value of each output that is of use, by name."""
    found: dict[str, Any] = {}
    for number, output in enumerate(infer.outputs):
        raw = infer.raw_output_contents[number]
        if output.datatype == "BYTES":
            (length,) = struct.unpack_from("<I", raw)
            if len(raw) < 4 + length:
                msg = f"{output.name} is shorter than it says"
                raise IndexError(msg)
            found[output.name] = raw[4 : 4 + length].decode()
        elif output.datatype in _NUMBERS:
            (found[output.name],) = struct.unpack_from(_NUMBERS[output.datatype], raw)
    return found


def _health(failure: AttemptFailure) -> EngineHealth:
    state = {
        "unreachable": EngineState.UNREACHABLE,
        "cut": EngineState.UNREACHABLE,
        "refused": EngineState.LOADING,
    }.get(failure.kind, EngineState.FAILED)
    return EngineHealth(state=state, detail=failure.message)
