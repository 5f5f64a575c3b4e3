"""Embeddings and ranking at llama.cpp: a few inputs a request, so that whoever leaves has not asked for much more."""

from __future__ import annotations

import array
import asyncio
import base64
import binascii
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from .. import AttemptEnd, AttemptFailure, AttemptSink, AttemptStart, EmbeddingResult, GenerateJob, RerankResult
from ._http import HttpError, StreamRequest
from ._llama_bodies import RefusedError, embedding_body, require, rerank_body
from ._llama_frames import Int32, failure_of_body

if TYPE_CHECKING:
    from .llamacpp import LlamaCpp

T = TypeVar("T")
#: inputs of one request: llama.cpp takes all of a request's before the next one's, and a broken-off one goes on
INPUTS_PER_REQUEST: Final = 16
#: no answer is longer, in bytes
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Int32 = 0


class _Vector(msgspec.Struct, gc=False):
    embedding: str | list[float]
    index: Int32 = 0


class _Vectors(msgspec.Struct, gc=False):
    data: list[_Vector]
    usage: _Usage


class _Score(msgspec.Struct, gc=False):
    relevance_score: float
    index: Int32 = 0


class _Scores(msgspec.Struct, gc=False):
    results: list[_Score]
    usage: _Usage


_decode_vectors = msgspec.json.Decoder(_Vectors).decode
_decode_scores = msgspec.json.Decoder(_Scores).decode


class VectorAttempt:
    """One running attempt, and the handle of who asked for it."""

    __slots__ = (
        "_at",
        "_began_s",
        "_engine",
        "_job",
        "_prompt_tokens",
        "_request",
        "_scores",
        "_task",
        "_vectors",
        "sink",
        "slot",
        "took_off",
        "vacated",
    )

    def __init__(self, engine: LlamaCpp, job: GenerateJob, sink: AttemptSink) -> None:
        self._engine = engine
        self._job = job
        self._at = 0
        self._prompt_tokens = 0
        self._vectors: list[bytes] = []
        self._scores: list[str] = []
        self._request: StreamRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._began_s = asyncio.get_running_loop().time()
        #: hears of it; ``None`` once there is nothing more to hear
        self.sink: AttemptSink | None = sink
        #: llama.cpp spreads the inputs over its slots
        self.slot = -1
        #: it never says that it began: a look at the slots can come before the inputs
        self.took_off = False
        #: the engine itself said that it is done with it, or never took it
        self.vacated = False
        engine.live.add(self)

    def begin(self) -> None:
        """Ask for the first results; the sink hears nothing from within this call."""
        if self._engine.abilities is None:
            self._task = asyncio.get_running_loop().create_task(self._learn())
            return
        try:
            require(self._job, self._engine.abilities)
        except RefusedError as error:
            refusal = AttemptFailure(kind="invalid", message=str(error), retriable=False)
            asyncio.get_running_loop().call_soon(self._fail, refusal, True)
        else:
            self._send()

    # --- AttemptHandle

    def cancel(self) -> None:
        if self.sink is None:
            return
        self._leave()
        if self._task is not None:
            self._task.cancel()
        if self._request is None:
            self.vacated = True
        else:
            self._request.cancel()

    async def slot_free(self) -> str:
        return "slot-free" if self.vacated else await self._engine.slot_free(self)

    def resume(self) -> None:
        """There is nothing that could be paused."""

    # --- for the answers

    def took(self, status: int, body: bytes) -> None:
        """A whole answer."""
        if self.sink is None:
            return
        if status != 200:
            self._fail(failure_of_body(status, body), True)
            return
        job = self._job
        count = len(job.inputs[self._at : self._at + INPUTS_PER_REQUEST])
        try:
            if job.workload == "embedding":
                vectors = _decode_vectors(body)
                self._vectors += _in_order({v.index: _floats(v.embedding) for v in vectors.data}, count)
                self._prompt_tokens += max(vectors.usage.prompt_tokens, 0)
            else:
                scores = _decode_scores(body)
                self._scores += _in_order({s.index: _decimal(s.relevance_score) for s in scores.results}, count)
                self._prompt_tokens += max(scores.usage.prompt_tokens, 0)
        except (msgspec.MsgspecError, ValueError, binascii.Error) as error:
            self._fail(AttemptFailure(kind="garbage", message=f"the answer cannot be read: {error}"), True)
            return
        self._at += count
        if self._at < len(job.inputs):
            self._send()
            return
        self._end()

    def lost(self, error: HttpError) -> None:
        """There will be no answer."""
        self._fail(AttemptFailure(kind=error.kind, message=error.message), error.kind == "unreachable")

    # --- inside

    async def _learn(self) -> None:
        """How long its vectors are, and whether it makes any, has to be asked first."""
        failure = await self._engine.learn_or_fail()
        if failure is not None:
            self._fail(failure, True)
        elif self.sink is not None:
            self.begin()

    def _send(self) -> None:
        job = self._job
        inputs = job.inputs[self._at : self._at + INPUTS_PER_REQUEST]
        if job.workload == "embedding":
            path, body = "/v1/embeddings", embedding_body(inputs)
        else:
            path, body = "/v1/rerank", rerank_body(job.query, inputs)
        self._request = self._engine.http.stream("POST", path, body, _Answer(self))

    def _end(self) -> None:
        self.vacated = True
        elapsed_us = round((asyncio.get_running_loop().time() - self._began_s) * 1e6)
        tokens = self._prompt_tokens
        result = (
            EmbeddingResult(vectors=self._vectors)
            if self._job.workload == "embedding"
            else RerankResult(scores=self._scores)
        )
        sink = self._leave()
        if sink is not None:
            sink.started(AttemptStart(prompt_tokens=tokens))
            sink.ended(AttemptEnd(finish_reason="stop", result=result, prompt_tokens=tokens, prefill_us=elapsed_us))

    def _fail(self, failure: AttemptFailure, vacated: bool) -> None:
        self.vacated = self.vacated or vacated
        sink = self._leave()
        if sink is not None:
            sink.failed(failure)

    def _leave(self) -> AttemptSink | None:
        sink, self.sink = self.sink, None
        self._engine.live.discard(self)
        return sink


class _Answer:
    """Gathers one whole answer."""

    __slots__ = ("_attempt", "_pieces", "_size", "_status")

    def __init__(self, attempt: VectorAttempt) -> None:
        self._attempt = attempt
        self._status = 0
        self._size = 0
        self._pieces: list[bytes] = []

    def on_head(self, status: int) -> None:
        self._status = status

    def on_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= MAX_ANSWER_BYTES:
            self._pieces.append(data)

    def on_done(self) -> None:
        if self._size > MAX_ANSWER_BYTES:
            self._attempt.lost(HttpError("garbage", f"the answer is longer than {MAX_ANSWER_BYTES} bytes"))
        else:
            self._attempt.took(self._status, b"".join(self._pieces))

    def on_lost(self, error: HttpError) -> None:
        self._attempt.lost(error)


def _in_order(found: Mapping[int, T], count: int) -> list[T]:
    """Results by their number, in the order of the inputs."""
    if sorted(found) != list(range(count)):
        msg = f"it has {len(found)} results for {count} inputs"
        raise ValueError(msg)
    return [found[number] for number in range(count)]


def _floats(embedding: str | list[float]) -> bytes:
    """A vector as little-endian float32, as the server normalised it; older builds tell numbers whatever they are asked."""
    numbers = array.array("f")
    if isinstance(embedding, str):
        numbers.frombytes(base64.b64decode(embedding, validate=True))
        if sys.byteorder == "big":
            numbers.byteswap()
    else:
        numbers.extend(embedding)
    if not numbers or not all(map(math.isfinite, numbers)):
        msg = "an embedding is empty or holds what is no number"
        raise ValueError(msg)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _decimal(score: float) -> str:
    if not math.isfinite(score):
        msg = "a score is no number"
        raise ValueError(msg)
    return repr(score)
