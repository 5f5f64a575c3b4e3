"""Bodies: what a user wrote, addressed by content and stored once per owner."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import Any

import msgspec

from ..errors import CorruptJournalError
from ..ports import BodyPiece, JournalStore
from ..types import ChatMessage, TaskRequest

#: a body is stored in pieces of at most this size, so that a large prompt never makes one huge row
PIECE_BYTES = 262_144

_encode = msgspec.json.Encoder(order="sorted").encode


class RequestBody(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The texts of a request."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    inputs: list[str] | None = None
    stop: list[str] = []
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(RequestBody).decode


def body_of(request: TaskRequest) -> RequestBody:
    """The texts of a request."""
    return RequestBody(
        request.prompt, request.messages, request.inputs, request.stop, request.grammar, request.json_schema
    )


def request_digest(request: TaskRequest) -> str:
    """Digest of everything a request asks for but its id, to tell a repetition from a different request."""
    data = msgspec.to_builtins(request)
    data.pop("task_id", None)
    return hashlib.sha256(_encode(data)).hexdigest()


def content_id(raw: bytes) -> str:
    """The address of a content."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def pieces(owner: str, raw: bytes) -> tuple[str, list[BodyPiece]]:
    """A body's address and its rows."""
    body_id = content_id(raw)
    cuts = range(0, len(raw), PIECE_BYTES) if raw else (0,)
    count = len(cuts)
    return body_id, [BodyPiece(owner, body_id, n, count, raw[at : at + PIECE_BYTES]) for n, at in enumerate(cuts)]


class Bodies:
    """Writes and reads bodies; the latest ones stay in memory, a bounded number of bytes of them."""

    def __init__(self, store: JournalStore, cache_bytes: int = 16_777_216) -> None:
        self._store = store
        self._limit = cache_bytes
        self._cache: OrderedDict[tuple[str, str], tuple[RequestBody, int]] = OrderedDict()
        self._bytes = 0

    def add(self, owner: str, body: RequestBody) -> tuple[str, list[BodyPiece], int]:
        """Address, rows to store and size of a body."""
        raw = _encode(body)
        body_id, rows = pieces(owner, raw)
        key = (owner, body_id)
        if key in self._cache:
            self._cache.move_to_end(key)
        elif len(raw) <= self._limit // 8:
            self._cache[key] = (body, len(raw))
            self._bytes += len(raw)
            while self._bytes > self._limit:
                self._bytes -= self._cache.popitem(last=False)[1][1]
        return body_id, rows, len(raw)

    def cached(self, owner: str, body_id: str) -> RequestBody | None:
        """A body that is in memory."""
        found = self._cache.get((owner, body_id))
        return None if found is None else found[0]

    async def get(self, owner: str, body_id: str) -> RequestBody:
        """A body. :raises CorruptJournalError: it is not in the journal, or does not match its address."""
        found = self.cached(owner, body_id)
        if found is not None:
            return found
        raw = await asyncio.to_thread(self._store.body, owner, body_id)
        if raw is None or content_id(raw) != body_id:
            msg = f"body {body_id} is {'missing' if raw is None else 'damaged'}"
            raise CorruptJournalError(msg)
        return _decode(raw)
