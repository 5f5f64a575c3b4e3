"""Triton over HTTP: KServe's protocol and its extension for generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from .. import AttemptSink, EngineHealth, EngineState
from ._http import HttpClient, HttpError
from ._slots import EngineGoneError
from ._stream_attempt import Owner, RefusedError, StreamAttempt
from ._triton_frames import GenerateStream, failure_of_body
from ._triton_model import Model

T = TypeVar("T")
TIMEOUT_S: Final = 5.0


class _Server(msgspec.Struct):
    version: str = ""


class _Count(msgspec.Struct):
    count: int = 0


class _Inference(msgspec.Struct):
    success: _Count = msgspec.field(default_factory=_Count)
    fail: _Count = msgspec.field(default_factory=_Count)


class _ModelStats(msgspec.Struct):
    inference_stats: _Inference = msgspec.field(default_factory=_Inference)


class _Stats(msgspec.Struct):
    model_stats: list[_ModelStats] = []


_decode_server = msgspec.json.Decoder(_Server).decode
_decode_model = msgspec.json.Decoder(Model).decode
_decode_stats = msgspec.json.Decoder(_Stats, strict=False).decode
_encode = msgspec.json.Encoder().encode


class HttpAttempt(StreamAttempt):
    """An attempt over HTTP; closing its connection reaches the model."""

    __slots__ = ("_http", "_path")

    def __init__(self, owner: Owner, sink: AttemptSink, frames: GenerateStream, http: HttpClient, path: str) -> None:
        super().__init__(owner, sink, frames)
        self._http = http
        self._path = path

    def ask(self, tensors: Mapping[str, Any], model: Model) -> None:
        """Send the model its inputs."""
        self.send(self._http, self._path, _encode(tensors))


class HttpTransport:
    """Speaks to one model.

    Args:
        url: of the server.
        model: name of the model.
        version: of the model; "" = the one that the server's policy picks.
        headers: sent with every request.

    Raises:
        ValueError: the URL is none.
    """

    def __init__(self, url: str, model: str, version: str, headers: Mapping[str, str]) -> None:
        self._http = HttpClient(url, headers=headers)
        self.host = self._http.host
        self._path = f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")

    async def health(self) -> EngineHealth:
        """Whether the model is ready; the server as a whole is not of interest."""
        try:
            ready = await self._http.request("GET", f"{self._path}/ready", timeout_s=TIMEOUT_S)
            if ready.status == 200:
                return EngineHealth(state=EngineState.READY)
            told = await self._http.request("GET", self._path, timeout_s=TIMEOUT_S)
        except HttpError as error:
            return EngineHealth(state=EngineState.UNREACHABLE, detail=error.message)
        failure = failure_of_body(told.status, told.body) if told.status != 200 else None
        if failure is not None and failure.kind == "invalid":
            return EngineHealth(state=EngineState.FAILED, detail=failure.message)
        detail = failure_of_body(ready.status, ready.body).message
        return EngineHealth(state=EngineState.LOADING, detail=detail)

    async def version(self) -> str:
        """Of the server. :raises RefusedError: it does not say."""
        return (await self._get("/v2", _decode_server)).version

    async def model(self) -> Model:
        """What the server tells of the model. :raises RefusedError: nothing."""
        return await self._get(self._path, _decode_model)

    async def completed(self) -> int | None:
        """Requests that the model has done with, well or not, since the server started; ``None`` = it does not say.

        Raises:
            EngineGoneError: nobody answers.
        """
        try:
            stats = await self._get(f"{self._path}/stats", _decode_stats)
        except RefusedError as error:
            if error.failure.kind == "unreachable":
                raise EngineGoneError(error.failure.message) from error
            return None
        counts = [entry.inference_stats for entry in stats.model_stats]
        return sum(each.success.count + each.fail.count for each in counts)

    def attempt(self, owner: Owner, sink: AttemptSink, *, max_tokens: int, stop: Sequence[str]) -> HttpAttempt:
        """An attempt that is not sent yet."""
        frames = GenerateStream(max_tokens=max_tokens, stop=stop)
        return HttpAttempt(owner, sink, frames, self._http, f"{self._path}/generate_stream")

    async def close(self) -> None:
        """Drop every connection."""
        await self._http.close()

    async def _get(self, path: str, decode: Callable[[bytes], T]) -> T:
        try:
            answer = await self._http.request("GET", path, timeout_s=TIMEOUT_S)
        except HttpError as error:
            kind = "unreachable" if error.kind == "timeout" else error.kind
            raise RefusedError(kind, f"{path}: {error.message}", retriable=True) from error
        if answer.status != 200:
            failure = failure_of_body(answer.status, answer.body)
            raise RefusedError(failure.kind, f"{path}: {failure.message}", retriable=failure.retriable)
        try:
            return decode(answer.body)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RefusedError("garbage", f"{path}: this is no Triton server: {error}", retriable=True) from error
