"""uvicorn's HTTP protocol with what it does not have: bounds in time and size on slow or endless requests, JSON errors,
and a connection that streams write to directly (:mod:`~llama_orch.api.connection`)."""

from __future__ import annotations

import asyncio
import contextlib
import http
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..core.settings import LimitSettings
from .connection import Lost
from .problems import RouteError, body_of
from .tls import subject_of

#: pipelined requests that may wait behind one; reading goes on so that a disconnect is heard
PIPELINED = 16
CONTINUE = b"HTTP/1.1 100"
SERVED = ("1.1", "1.0")
#: what of a request is being read
IDLE, HEADERS, BODY = "", "headers", "body"


def _parser_for(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """A parser as uvicorn makes them."""
    parser = httptools.HttpRequestParser(protocol)
    with contextlib.suppress(AttributeError):  # an older httptools has no choice
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class HeadWithBody:
    """A transport that holds an answer's head back until the first piece of its body, so that both leave in one call.

    uvloop sends each write at once: head and body apart are two system calls, and two wake-ups of the client.
    """

    __slots__ = ("_head", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        #: "" = nothing was written yet, ``None`` = the head is out
        self._head: bytes | None = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Hold the head; write everything after it."""
        head = self._head
        if head is None or data.startswith(CONTINUE):
            self._transport.write(data)
        elif not head:
            self._head = data
        else:
            self._head = None
            self._transport.write(head + data)

    def flush(self) -> None:
        """Write the head by itself: the body comes later."""
        head, self._head = self._head, None
        if head:
            self._transport.write(head)

    def close(self) -> None:
        """Close after what was held."""
        self.flush()
        self._transport.close()


class CycleConnection:
    """The connection behind one request under :class:`OrchProtocol`."""

    __slots__ = ("_callback", "_flow", "_head", "_transport", "lost")

    def __init__(self, cycle: RequestResponseCycle, head: HeadWithBody) -> None:
        self._transport = cycle.transport
        self._flow = cycle.flow
        self._head = head
        self._callback: Lost | None = None
        self.lost = False

    def on_lost(self, callback: Lost | None) -> None:
        self._callback = callback
        if self.lost and callback is not None:
            callback()

    def leave(self) -> None:
        """The client left."""
        self.lost = True
        if self._callback is not None:
            self._callback()

    def begin(self) -> None:
        self._head.flush()

    def writable(self) -> bool:
        return not (self.lost or self._flow.write_paused)

    def write_now(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def write(self, data: bytes) -> None:
        if self.lost:
            return
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        if self._flow.write_paused:
            await self._flow.drain()


class OrchProtocol(HttpToolsProtocol):
    """One client connection. Made through :func:`protocol_with`."""

    limits: ClassVar[LimitSettings] = LimitSettings()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._part = IDLE
        self._header_bytes = 0
        #: more bytes came at once than headers may have
        self._much = False
        self._cycles: list[tuple[RequestResponseCycle, CycleConnection]] = []
        #: head of a request that asked for another protocol, without that wish; "" = none is being read
        self._plain = b""
        #: subject of the client's certificate, where TLS asked for one
        self._certificate = subject_of(transport.get_extra_info("peercert"))
        if len(self.connections) > self.limits.connections:
            self._refuse(
                503, "POOL_UNAVAILABLE", "too many connections are open", "Close some, or raise limits.connections."
            )
            return
        self._arm(self.limits.header_timeout_ms)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        for cycle, connection in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                connection.leave()
        self._cycles.clear()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._much = len(data) > self.limits.header_bytes
        self._parse(data)
        if self._part == IDLE:
            if self._timer is not None:
                self._disarm()
        elif self._part == BODY:
            self._disarm()
            self._arm(self.limits.body_timeout_ms)
        else:
            self._header_bytes += len(data)
            if self._header_bytes > self.limits.header_bytes:
                self._too_long()
            elif self._timer is None:
                self._arm(self.limits.header_timeout_ms)

    def _parse(self, data: bytes) -> None:
        """Read a piece as uvicorn does, but that an asked-for upgrade is granted to nobody (RFC 9110, 7.8).

        The parser takes what follows such a head for another protocol's, and then for the next request: a body would be
        lost, or be read as a request that nobody sent. So the head is read again without that wish.
        """
        self._unset_keepalive_if_required()
        while data:
            assert self.parser is not None  # the connection stands
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("Invalid HTTP request received.")
            except httptools.HttpParserUpgrade as asked:
                data, self._plain = self._plain + data[asked.args[0] :], b""
                self.parser = _parser_for(
                    self
                )  # the old one took the connection to be closed, where that was asked for too
                continue
            return

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._part = HEADERS

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. What comes behind the body is none: it would say who asks after that was looked at."""
        if self._part == HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._part = BODY
        self._header_bytes = 0
        assert self.parser is not None  # it is calling
        version = self.parser.get_http_version()
        if version not in SERVED:
            self._refuse(400, "INVALID_PARAMS", f"HTTP/{version} is not served", "Speak HTTP/1.1.")
            msg = "unknown version of HTTP"
            raise ValueError(msg)  # stops the parser
        if self.parser.should_upgrade():
            self._plain = self._without_upgrade(self.parser.get_method(), version)
            return
        if version == "1.0" and any(name == b"transfer-encoding" for name, _ in self.headers):
            self._refuse(400, "INVALID_PARAMS", "HTTP/1.0 knows no Transfer-Encoding", "Send a Content-Length.")
            msg = "where the body ends is not clear"
            raise ValueError(msg)  # stops the parser
        if self._much and sum(len(n) + len(v) for n, v in self.headers) + len(self.url) > self.limits.header_bytes:
            self._too_long()
            msg = "headers too long"
            raise ValueError(msg)  # stops the parser
        if not self.url.startswith(b"/"):
            wrong = self._foreign_target()
            if wrong:
                self._refuse(400, "INVALID_PARAMS", wrong, "Name the path alone, such as GET /v1/models.")
                raise ValueError(wrong)  # stops the parser
        super().on_headers_complete()
        if self.pipeline and len(self.pipeline) < PIPELINED:
            self.flow.resume_reading()

    def _without_upgrade(self, method: bytes, version: str) -> bytes:
        """The head that was read, without the wish for another protocol."""
        if method == b"CONNECT":
            wrong = "nothing is connected through this server"
            self._refuse(400, "INVALID_PARAMS", wrong, "Name the path alone, such as GET /v1/models.")
            raise ValueError(wrong)  # stops the parser
        lines = [b"%b: %b\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version.encode(), b"".join(lines))

    def _foreign_target(self) -> str:
        """What is wrong with a target that is no path: it may name this server as its Host header does, and no user."""
        scheme, _, rest = self.url.partition(b"://")
        authority = rest.partition(b"/")[0].partition(b"?")[0]
        if scheme.lower() not in (b"http", b"https") or not authority:
            return "the request's target is no path"
        if b"@" in authority:
            return "there is a name or a key in the URL: they do not belong there"
        hosts = [value for name, value in self.headers if name == b"host"]
        return "" if hosts == [authority] else "the request's target and its Host header differ"

    def on_message_complete(self) -> None:
        if self._plain:
            return
        super().on_message_complete()
        self._part = IDLE

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        head = HeadWithBody(cycle.transport)
        connection = CycleConnection(cycle, head)
        if cycle.scope["method"] != "HEAD":  # which has no body that the head could wait for
            cycle.transport = head  # type: ignore[assignment]
        vars_of_scope: dict[str, Any] = cycle.scope  # type: ignore[assignment]
        vars_of_scope["llama_orch.connection"] = connection
        vars_of_scope["llama_orch.certificate"] = self._certificate
        if self._cycles:
            self._cycles = [c for c in self._cycles if not c[0].response_complete]
        self._cycles.append((cycle, connection))
        super()._start_asgi_task(cycle, app)

    # --- refusing --------------------------------------------------------------------------------------------

    def _arm(self, timeout_ms: int) -> None:
        if timeout_ms:
            self._timer = self.loop.call_later(timeout_ms / 1000, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        cycle: RequestResponseCycle | None = self.cycle
        answered = self._part == BODY and cycle is not None and cycle.response_complete
        if self._part == IDLE or answered:
            self.transport.close()  # it said nothing, or goes on with what nobody waits for any more
            return
        self._refuse(408, "INVALID_PARAMS", f"the request's {self._part} did not arrive in time", "Send it in one go.")

    def _too_long(self) -> None:
        msg = f"the request's headers have more than {self.limits.header_bytes} bytes"
        self._refuse(431, "PAYLOAD_TOO_LARGE", msg, "Send shorter headers, or raise limits.header_bytes.")

    def send_400_response(self, msg: str) -> None:
        """A request that is no HTTP."""
        self._refuse(400, "INVALID_PARAMS", f"this is not a valid HTTP/1.1 request ({msg})", "Send a valid request.")

    def _refuse(self, status: int, code: str, message: str, remedy: str) -> None:
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or not cycle.response_started or cycle.response_complete:
            body = body_of(RouteError(status, code, message, remedy=remedy, field="request"), "native", "")
            phrase = http.HTTPStatus(status).phrase
            head = (
                f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


def protocol_with(limits: LimitSettings) -> type[OrchProtocol]:
    """The protocol class for a server with these limits."""
    return type("BoundedProtocol", (OrchProtocol,), {"limits": limits})
