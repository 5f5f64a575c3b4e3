"""The ASGI layer around the Falcon application: gate, callers, correlation ids, and streams that hear when their reader
leaves.

Falcon routes, validates and answers; when a resource answers with a stream, its headers go out through Falcon and the
body is driven here (:mod:`~llama_orch.api.streaming`).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from falcon.asgi import App

from ..core.errors import OrchError
from ..core.services.caller import Caller
from .auth import Authentication
from .connection import AsgiConnection, Receive, Send
from .gate import Gate
from .problems import body_of, headers_of, no_route
from .requests import too_large
from .streaming import drive, stopping

_log = logging.getLogger("llama_orch.api")
_CORRELATION = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}").fullmatch


class Edge:
    """The application as a server runs it.

    :param auth: tells who sends a request; nothing of one is read before that is known.
    :param rates: headers that tell a caller with limits where it stands.
    :param new_id: makes a correlation id for requests that bring none.
    :param body_limit: most bytes of a body.
    :param shapes: how errors of a path are written, where not in our own shape.
    """

    def __init__(
        self,
        app: App[Any, Any],
        gate: Gate,
        auth: Authentication,
        *,
        rates: Callable[[Caller], list[tuple[bytes, bytes]]],
        new_id: Callable[[], str],
        body_limit: int,
        shapes: Mapping[str, str],
    ) -> None:
        self._app = app
        self._gate = gate
        self._auth = auth
        self._rates = rates
        self._new_id = new_id
        self._body_limit = body_limit
        self._shapes = shapes

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
                return
            await self._app(scope, receive, send)
            return
        correlation = request_id = b""
        length = 0
        for name, value in scope["headers"]:
            if name == b"x-correlation-id":
                correlation = value if _CORRELATION(value) else b""
            elif name == b"x-request-id":
                request_id = value if _CORRELATION(value) else b""
            elif name == b"content-length":
                length = int(value)  # the server saw to it that it is a number
        if not correlation:
            correlation = request_id or self._new_id().encode()
        scope["llama_orch.correlation"] = correlation.decode()
        echoed = ((b"x-correlation-id", correlation), (b"x-request-id", request_id or correlation))

        begun = False

        async def answer(message: dict[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                if "llama_orch.stream" in scope:
                    message["headers"] = [h for h in message["headers"] if h[0] != b"content-length"]
                caller: Caller | None = scope.get("llama_orch.caller")
                rates = self._rates(caller) if caller is not None and caller.limited else ()
                message["headers"] = [*message["headers"], *echoed, *rates]
                await send(message)
            elif "llama_orch.stream" not in scope:
                await send(message)

        try:
            self._gate.check(scope["headers"])
            if scope["path"].startswith("//"):
                # Falcon takes it for the path with one slash; who filters by path before us does not.
                raise no_route(scope["path"])
            caller = self._auth.caller_of(scope)
            scope["llama_orch.caller"] = await self._auth.verified(scope) if caller is None else caller
            if length > self._body_limit:
                # Falcon would wait for the body's first piece before it looked at anything.
                raise too_large(length, self._body_limit)
        except OrchError as error:
            await self._refuse(error, scope, answer)
            return
        connection = scope.get("llama_orch.connection")
        if connection is None:
            connection = scope["llama_orch.connection"] = AsgiConnection(receive, send)
        try:
            await self._app(scope, receive, answer)
            plan = scope.get("llama_orch.stream")
            if plan is not None:
                await drive(plan, connection, send)
        except asyncio.CancelledError:
            # The client left while its answer was being waited for, so that nobody is there to be answered; or the server
            # stops.
            task = asyncio.current_task()
            if task is None or (begun and not connection.lost):
                raise
            task.uncancel()
            if not connection.lost:
                await self._refuse(stopping(), scope, answer)

    def _shape_of(self, path: str) -> str:
        """How errors of a path are written: as those of the route that it is, or that it stands below."""
        while path:
            if path in self._shapes:
                return self._shapes[path]
            path = path.rpartition("/")[0]
        return "native"

    async def _refuse(self, error: OrchError, scope: dict[str, Any], send: Send) -> None:
        correlation = scope["llama_orch.correlation"]
        _log.warning("refused: %s", error.message, extra={"correlation_id": correlation})
        body = body_of(error, self._shape_of(scope["path"]), correlation)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in headers_of(error).items()]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
