"""Bodies: what a user wrote, addressed by content and stored once per owner."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from ..engine_ports import EmbeddingResult, RerankResult
from ..errors import CorruptJournalError, JournalError, JournalUnavailableError
from ..ports import BodyPiece, JournalStore
from ..types import ChatMessage, TaskRequest

#: a body is stored in pieces of at most this size, so that a large prompt never makes one huge row
PIECE_BYTES = 65_536

_SHORTEST_PREFIX = 256
_PREFIXES = 6

_encode = msgspec.json.Encoder(order="sorted").encode
#: keys stay in the order in which they were sent: a template that shows a tool, and a grammar that is made of a schema, say
#: other words for another order
_encode_as_sent = msgspec.json.Encoder().encode


class RequestBody(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The texts of a request."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    inputs: list[str] | None = None
    stop: list[str] = []
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    prompt_ids: list[int] | None = None
    query: str | None = None
    dimensions: int = 0
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str = ""
    chat_template_kwargs: dict[str, Any] | None = None
    logit_bias: dict[str, float] | None = None
    #: what of the caller's request a compatible API has to show again later, and no engine needs
    shown: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(RequestBody).decode


def body_of(request: TaskRequest, shown: dict[str, Any] | None = None) -> RequestBody:
    """The texts of a request, and whatever else of it has no bound."""
    return RequestBody(
        request.prompt,
        request.messages,
        request.inputs,
        request.stop,
        request.grammar,
        request.json_schema,
        request.prompt_ids,
        request.query,
        request.dimensions or 0,
        request.tools,
        request.tool_choice,
        request.parallel_tool_calls,
        request.reasoning_effort or "",
        request.chat_template_kwargs,
        request.logit_bias,
        shown,
    )


def request_digest(request: TaskRequest) -> str:
    """Digest of everything a request asks for but its id, to tell a repetition from a different request."""
    data = msgspec.to_builtins(request)
    data.pop("task_id", None)
    return hashlib.sha256(_encode(data)).hexdigest()


def prefixes(body: RequestBody) -> list[str]:
    """Short digests of the beginnings of what was written, longest first: prompts that begin alike share some.

    Beginnings of 256 bytes, 1 KiB, 4 KiB and so on, as far as the text goes. What every prompt of one agent has in
    common counts as well as a conversation that goes on.
    """
    longest = _SHORTEST_PREFIX * 4 ** (_PREFIXES - 1)
    raw = (body.prompt or "")[:longest].encode(errors="surrogatepass")
    for message in body.messages or ():
        if len(raw) >= longest:
            break
        raw += _encode([message.role, message.content]) + b"\0"
    found: list[str] = []
    digest, done, size = hashlib.sha256(), 0, _SHORTEST_PREFIX
    while size <= len(raw) and len(found) < _PREFIXES:
        digest.update(raw[done:size])
        found.append(digest.hexdigest()[:12])
        done, size = size, size * 4
    return found[::-1]


def content_id(raw: bytes) -> str:
    """The address of a content."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def encode_result(result: EmbeddingResult | RerankResult) -> bytes:
    """What an embedding or a rerank task brought, as a body."""
    return _encode(result)


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

    async def add(self, owner: str, body: RequestBody, require_ok: Callable[[], None]) -> tuple[str, list[BodyPiece]]:
        """Address of a body, and the rows that go into the frame that names it.

        A small body is one row of that frame. A large one is hashed beside the loop and written ahead, piece by
        piece, so that no commit and no turn of the loop is long; its rows are in the store already.

        :param require_ok: asked before each piece; raises when nothing new may be accepted.
        :raises JournalUnavailableError: the store did not take it; nothing was accepted.
        """
        raw = _encode_as_sent(body)
        body_id, rows = await self.write_ahead(owner, raw, require_ok)
        self._remember((owner, body_id), body, len(raw))
        return body_id, rows

    async def write_ahead(self, owner: str, raw: bytes, require_ok: Callable[[], None]) -> tuple[str, list[BodyPiece]]:
        """The same for bytes, such as a rendered prompt."""
        if len(raw) <= PIECE_BYTES:
            return pieces(owner, raw)
        body_id, ahead = await asyncio.to_thread(pieces, owner, raw)
        for piece in ahead:
            require_ok()
            await self._keep(piece)
        return body_id, []

    async def _keep(self, piece: BodyPiece) -> None:
        try:
            if self._store.commits_inline:
                self._store.keep([piece])
                await asyncio.sleep(0)
            else:
                await asyncio.to_thread(self._store.keep, [piece])
        except JournalError as error:
            msg = f"the prompt cannot be written: {error.message}"
            raise JournalUnavailableError(msg, retry_after_ms=1000) from error

    def _remember(self, key: tuple[str, str], body: RequestBody, size: int) -> None:
        if key in self._cache:
            self._cache.move_to_end(key)
        elif size <= self._limit // 8:
            self._cache[key] = (body, size)
            self._bytes += size
            while self._bytes > self._limit:
                self._bytes -= self._cache.popitem(last=False)[1][1]

    def cached(self, owner: str, body_id: str) -> RequestBody | None:
        """A body that is in memory."""
        found = self._cache.get((owner, body_id))
        return None if found is None else found[0]

    async def get(self, owner: str, body_id: str) -> RequestBody:
        """A body. :raises CorruptJournalError: it is not in the journal, or does not match its address."""
        found = self.cached(owner, body_id)
        return found if found is not None else _decode(await self.raw(owner, body_id))

    async def raw(self, owner: str, body_id: str) -> bytes:
        """A body's bytes, such as a rendered prompt or :func:`encode_result` made. :raises CorruptJournalError: as above."""
        raw = await asyncio.to_thread(self._store.body, owner, body_id)
        if raw is None or content_id(raw) != body_id:
            msg = f"body {body_id} is {'missing' if raw is None else 'damaged'}"
            raise CorruptJournalError(msg)
        return raw
