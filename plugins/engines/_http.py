"""HTTP/1.1 towards engines: keep-alive connections, small JSON exchanges, and streams that are pushed.

A stream costs no task and no queue: what one read brought goes to its handler in one call, from the protocol's
``data_received``. Body chunks are collected by ``list.append`` itself, which the C parser calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import httptools
import msgspec

#: a kept connection that has been idle for longer is not used again (llama.cpp closes after 5 s)
IDLE_LIMIT_S: Final = 4.0
MAX_IDLE_CONNECTIONS: Final = 64
MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024
CONNECT_TIMEOUT_S: Final = 5.0


class HttpError(Exception):
    """A request to an engine failed below HTTP's meaning.

    ``kind`` is ``unreachable`` (no connection), ``cut`` (it broke off), ``garbage`` (no HTTP, or too much of it) or
    ``timeout``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class HttpResponse(msgspec.Struct, frozen=True, gc=False):
    """A complete answer."""

    status: int
    body: bytes


class StreamHandler(Protocol):
    """Where a streamed answer goes; called on the event loop, in order, never from within ``stream()``."""

    def on_head(self, status: int) -> None:
        """Status line and headers are there."""

    def on_data(self, data: bytes) -> None:
        """All body bytes that one read brought."""

    def on_done(self) -> None:
        """The body ended as HTTP says it must."""

    def on_lost(self, error: HttpError) -> None:
        """It did not, and nothing more will come."""


class HttpClient:
    """Speaks to one origin.

    Args:
        url: ``http://host:port`` or ``https://…``, with an optional path prefix.
        headers: sent with every request.
        ca_file: certificates that an https server's has to be signed by; "" = those that the system trusts.

    Raises:
        ValueError: the URL is none, or a header cannot be sent.
        OSError: the file of certificates cannot be read.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, ca_file: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"url: {url!r} is no http:// or https:// address"
            raise ValueError(msg)
        self.host: str = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context(cafile=ca_file or None) if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        extra = "".join(f"{_token(k)}: {_token(v)}\r\n" for k, v in (headers or {}).items())
        #: what a server that refuses may repeat of a request, and nobody else shall see
        key = next((v for k, v in (headers or {}).items() if k.lower() == "authorization"), "")
        self.secret = key.removeprefix("Bearer ").encode("latin-1")
        self._head = f" HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n{extra}"
        self._idle: list[_Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[_Connection] = set()
        self._closed = False

    def stream(self, method: str, path: str, body: bytes, handler: StreamHandler) -> StreamRequest:
        """Send a request whose answer is pushed to a handler."""
        head = f"{method} {self._prefix}{path}{self._head}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        request = StreamRequest(self, head.encode("latin-1") + b"\r\n" + body, handler)
        if self._closed:
            loop = asyncio.get_running_loop()
            loop.call_soon(request.lost, HttpError("unreachable", "the client is closed"))
            return request
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable(now):
                connection.send(request, reused=True)
                return request
            connection.close()
        self.connect(request)
        return request

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        timeout_s: float,
        max_bytes: int = MAX_RESPONSE_BYTES,
    ) -> HttpResponse:
        """Send a request and wait for its whole answer.

        Raises:
            HttpError: there was no complete answer in time.
        """
        collector = _Collector(max_bytes)
        request = self.stream(method, path, body, collector)
        try:
            async with asyncio.timeout(timeout_s):
                return await collector.future
        except TimeoutError:
            msg = f"{method} {path}: no answer within {timeout_s:g} s"
            raise HttpError("timeout", msg) from None
        finally:
            request.cancel()

    async def close(self) -> None:
        """Drop every connection; running streams hear ``on_lost``."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self._open):
            connection.close()
        self._idle.clear()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- for requests and connections

    def connect(self, request: StreamRequest) -> None:
        """Open a connection for a request."""
        task = asyncio.get_running_loop().create_task(self._connect(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, request: StreamRequest) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self.host, self.port, ssl=self._ssl
                )
        except (OSError, TimeoutError, UnicodeError) as error:  # the last of a name that is none
            what = str(error) or f"no connection within {CONNECT_TIMEOUT_S:g} s"
            request.lost(HttpError("unreachable", f"{self.host}:{self.port}: {what}"))
            return
        except asyncio.CancelledError:
            request.lost(HttpError("unreachable", "the client was closed"))
            raise
        if request.over:
            self.release(connection)
        else:
            connection.send(request, reused=False)

    def opened(self, connection: _Connection) -> None:
        """A connection is up."""
        self._open.add(connection)

    def gone(self, connection: _Connection) -> None:
        """A connection is down."""
        self._open.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def release(self, connection: _Connection) -> None:
        """A connection may be used again."""
        if self._closed or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            connection.close()
        else:
            self._idle.append(connection)


class StreamRequest:
    """A request on its way; its handler hears nothing after :meth:`cancel`."""

    __slots__ = ("_client", "_connection", "_handler", "_paused", "over", "payload")

    def __init__(self, client: HttpClient, payload: bytes, handler: StreamHandler) -> None:
        self._client = client
        self._handler: StreamHandler | None = handler
        self._connection: _Connection | None = None
        self._paused = False
        self.payload = payload
        #: finished, failed or cancelled
        self.over = False

    def cancel(self) -> None:
        """Break off at once: the connection is reset, nothing more is said."""
        if self.over:
            return
        self.over = True
        self._handler = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def pause(self) -> None:
        """Stop reading; the engine feels it when the socket's buffers are full."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if self._connection is not None:
                self._connection.resume()

    # --- for connections

    def bound(self, connection: _Connection) -> StreamHandler:
        """The request went out on this connection."""
        assert self._handler is not None
        self._connection = connection
        if self._paused:
            connection.pause()
        return self._handler

    def finished(self) -> None:
        """The answer is complete."""
        handler, self._handler, self._connection = self._handler, None, None
        if not self.over and handler is not None:
            self.over = True
            handler.on_done()

    def lost(self, error: HttpError) -> None:
        """There will be no (complete) answer."""
        handler, self._handler, self._connection = self._handler, None, None
        if not self.over and handler is not None:
            self.over = True
            handler.on_lost(error)

    def again(self) -> None:
        """A kept connection turned out to be dead before the server said anything: use a new one."""
        self._connection = None
        if not self.over:
            self._client.connect(self)


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._request: StreamRequest | None = None
        self._handler: StreamHandler | None = None
        self._reused = False
        self._silent = True
        self._complete = False
        self._status = 0
        self._keep = False
        self._idle_since = 0.0
        self._chunks: list[bytes] = []
        # The parser takes this bound method as its callback, so that a chunk costs no Python frame.
        self.on_body = self._chunks.append
        self._parser: Any = httptools.HttpResponseParser(self)

    def usable(self, now: float) -> bool:
        """Whether a request may be sent on it."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and now - self._idle_since < IDLE_LIMIT_S

    def send(self, request: StreamRequest, *, reused: bool) -> None:
        """Send a request; its answer goes to its handler."""
        assert self._transport is not None and self._request is None
        self._request = request
        self._reused = reused
        self._silent = True
        self._complete = False
        self._handler = request.bound(self)
        self._transport.write(request.payload)

    def close(self) -> None:
        """Reset the connection."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._idle_since = asyncio.get_running_loop().time()
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        request = self._request
        if request is None:
            self.close()  # bytes that nobody asked for
            return
        self._silent = False
        broken: str | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            broken = str(error) or type(error).__name__
        if self._chunks:
            chunks = self._chunks
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            if self._client.secret and self._status != 200:
                body = body.replace(self._client.secret, b"***")
            if not request.over:
                self._handler.on_data(body)  # type: ignore[union-attr]
        if broken is not None:
            self._request = self._handler = None
            request.lost(HttpError("garbage", f"no HTTP: {broken}"))
            self.close()
        elif self._complete:
            self._request = self._handler = None
            keep = self._keep and not request.over
            request.finished()
            if keep:
                self.resume()  # a reader who asked for a pause with the last bytes has no say in the next answer
                self._idle_since = asyncio.get_running_loop().time()
                self._client.release(self)
            else:
                self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.gone(self)
        request, self._request, self._handler = self._request, None, None
        self._transport = None
        if request is None or request.over:
            return
        if self._reused and self._silent:
            request.again()
        else:
            request.lost(HttpError("cut", f"the connection broke off{f': {exc}' if exc else ''}"))

    # --- httptools callbacks

    def on_headers_complete(self) -> None:
        self._status = status = self._parser.get_status_code()
        if status >= 200 and self._request is not None and not self._request.over:
            self._handler.on_head(status)  # type: ignore[union-attr]

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._complete = True
            # Asked here, since the parser forgets what the headers said once the message is over.
            self._keep = self._parser.should_keep_alive()


class _Collector:
    """Gathers a whole answer."""

    def __init__(self, max_bytes: int) -> None:
        self.future: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()
        self._max = max_bytes
        self._status = 0
        self._pieces: list[bytes] = []
        self._size = 0

    def on_head(self, status: int) -> None:
        self._status = status

    def on_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._max:
            self.on_lost(HttpError("garbage", f"the answer is longer than {self._max} bytes"))
        else:
            self._pieces.append(data)

    def on_done(self) -> None:
        if not self.future.done():
            self.future.set_result(HttpResponse(self._status, b"".join(self._pieces)))

    def on_lost(self, error: HttpError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _token(text: str) -> str:
    if "\r" in text or "\n" in text:
        msg = "a header cannot hold line ends"
        raise ValueError(msg)
    return text
