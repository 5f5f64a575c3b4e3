"""Embeddings and ranks: answers in one piece, read as if they were streams; pure."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from .. import AttemptEnd, AttemptFailure, AttemptStart, EmbeddingResult, EntryBatch, GenerateJob, RerankResult
from ._openai_wire import Usage, decode_ranks, decode_vectors, failure_of, wire_error

#: longer answers are refused, in bytes
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024


def embedding_body(job: GenerateJob, model: str) -> dict[str, Any]:
    """The request of ``/embeddings``."""
    body: dict[str, Any] = {"model": model, "input": list(job.inputs), "encoding_format": "float"}
    if job.dimensions:
        body["dimensions"] = job.dimensions
    return body


def rerank_body(job: GenerateJob, model: str) -> dict[str, Any]:
    """The request of ``/rerank``."""
    return {"model": model, "query": job.query, "documents": list(job.inputs), "top_n": len(job.inputs)}


class WholeAnswer:
    """An answer in one piece. Used as a stream is: bytes go in, and at their end there is an end or a failure.

    Args:
        workload: "embedding" or "rerank".
        count: texts that were sent.
    """

    def __init__(self, workload: str, count: int) -> None:
        self._workload = workload
        self._count = count
        self._pieces: list[bytes] = []
        self._size = 0
        self.start: AttemptStart | None = None
        self.end: AttemptEnd | None = None
        self.failure: AttemptFailure | None = None

    def feed(self, data: bytes) -> EntryBatch | None:
        """Take the next bytes; there are no entries."""
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            self._fail(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        elif self.failure is None:
            self._pieces.append(data)
        return None

    def finish(self) -> EntryBatch | None:
        """The body is complete."""
        if self.failure is not None:
            return None
        body = b"".join(self._pieces)
        self._pieces.clear()
        try:
            told = msgspec.json.decode(body)
            if isinstance(told, Mapping) and told.get("error") is not None:
                error = wire_error(told["error"], otherwise="the server reported an error")
                self.failure = failure_of(error.status or 500, error)
                return None
            if self._workload == "embedding":
                self._embedded(body)
            else:
                self._ranked(body)
        except (msgspec.MsgspecError, ValueError, OverflowError, binascii.Error, RecursionError) as error:
            self._fail(f"the answer cannot be read: {error}")
        return None

    def _embedded(self, body: bytes) -> None:
        answer = decode_vectors(body)
        vectors: list[bytes | None] = [None] * self._count
        for place, item in enumerate(answer.data):
            at = place if item.index is None else item.index
            if not 0 <= at < self._count or vectors[at] is not None:
                msg = f"a vector of index {at} came, and {self._count} texts were sent"
                raise ValueError(msg)
            vectors[at] = _packed(item.embedding)
        found = [vector for vector in vectors if vector is not None]
        if len(found) != self._count or len({len(vector) for vector in found}) > 1 or not all(found):
            msg = f"{len(found)} vectors came for {self._count} texts, or not all of one length"
            raise ValueError(msg)
        self._ended(EmbeddingResult(vectors=found), answer.usage)

    def _ranked(self, body: bytes) -> None:
        answer = decode_ranks(body)
        scores = [""] * self._count
        for item in answer.results:
            score = item.relevance_score if item.relevance_score is not None else item.score
            if not 0 <= item.index < self._count or score is None or not math.isfinite(score):
                msg = f"a score of index {item.index} came that is none"
                raise ValueError(msg)
            scores[item.index] = repr(float(score))
        if not all(scores):
            msg = f"{len(answer.results)} scores came for {self._count} texts"
            raise ValueError(msg)
        self._ended(RerankResult(scores=scores), answer.usage)

    def _ended(self, result: EmbeddingResult | RerankResult, usage: Usage | None) -> None:
        counted = usage or Usage()
        # Some servers of ranks count only the total.
        prompt_tokens = max(counted.prompt_tokens or counted.total_tokens or 0, 0)
        self.start = AttemptStart(prompt_tokens=prompt_tokens)
        self.end = AttemptEnd(finish_reason="stop", result=result, prompt_tokens=prompt_tokens)

    def _fail(self, message: str) -> None:
        self.failure = AttemptFailure(kind="garbage", message=message)


def _packed(vector: Sequence[float] | str) -> bytes:
    """Little-endian float32, the form that Base64 of servers has already."""
    if isinstance(vector, str):
        raw = base64.b64decode(vector, validate=True)
        if len(raw) % 4:
            msg = "a vector is no whole number of float32"
            raise ValueError(msg)
        vector = struct.unpack(f"<{len(raw) // 4}f", raw)
    if not all(map(math.isfinite, vector)):
        msg = "a vector holds what is no number"
        raise ValueError(msg)
    return struct.pack(f"<{len(vector)}f", *vector)
