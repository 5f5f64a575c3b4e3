"""How a resource says what it serves: one declaration gives the route, the validation and the OpenAPI entry.

::

    @resource("/v1/things/{thing_id}", tag="things")
    class Thing(Resource):
        \"\"\"One thing.\"\"\"

        @operation("Get a thing.", errors=(NotFoundError,))
        async def on_get(self, call: Call, thing_id: str) -> ThingInfo: ...

A parameter named ``body`` is decoded from JSON into its type (``raw`` gets its bytes beside it), one named ``query`` from
the query string; every other parameter stands in the path. What is returned is sent as JSON, :class:`Answer` where status or headers are not the
usual ones. A resource is found because it stands in ``api/resources`` or ``api/compat``; nothing lists it.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Container, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import falcon
import msgspec
from falcon.asgi import Request, Response

from ..core.errors import OrchError
from ..core.services.caller import Caller
from ..core.services.container import Services
from ..core.settings import Settings
from .auth import PUBLIC
from .connection import Connection
from .metrics import Metrics
from .requests import decode_query, decoder_for, read_body
from .streaming import StreamPlan

C = TypeVar("C", bound=type)
Responder = Callable[..., Awaitable[Any]]
ErrorShape = Literal["native", "openai", "anthropic"]

JSON = "application/json"
_encode = msgspec.json.Encoder().encode
#: scopes by tag, for reading and for changing; where nothing else is said, ``read`` and ``admin``
_SCOPES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tasks": (("inference",), ("inference",)),
    "sessions": (("inference",), ("inference",)),
    "openai": (("inference", "read"), ("inference",)),
    "capabilities": (("inference", "read"), ("admin",)),
    "anthropic": (("inference",), ("inference",)),
    "journal": (("admin",), ("admin",)),
    "keys": (("admin",), ("admin",)),
}
_READING = frozenset({"get", "head"})


class Answer(msgspec.Struct, gc=False):
    """An answer that is not simply 200 with JSON."""

    #: sent as JSON; ``None`` = no body
    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = {}
    #: sent as it is instead of ``body``, under ``media_type``
    raw: bytes | None = None
    media_type: str = JSON
    #: written after the headers, until it ends
    stream: StreamPlan | None = None


class Call:
    """One request on its way through a resource."""

    __slots__ = ("_request", "caller", "correlation")

    def __init__(self, request: Request) -> None:
        self._request = request
        #: taken from the request or made, and echoed (OBS-2)
        self.correlation: str = request.scope["llama_orch.correlation"]
        #: who sent it (AUTH-1)
        self.caller: Caller = request.scope["llama_orch.caller"]

    def header(self, name: str) -> str | None:
        """A request header's value, ``None`` when it was not sent."""
        return self._request.get_header(name)

    def headers(self, names: Container[bytes]) -> dict[bytes, str]:
        """Those of some headers that were sent, by their names in lower case: one look at all of them."""
        found: list[tuple[bytes, bytes]] = self._request.scope["headers"]
        return {name: value.decode("latin-1") for name, value in found if name in names}

    @property
    def connection(self) -> Connection:
        """The client's connection."""
        found: Connection = self._request.scope["llama_orch.connection"]
        return found


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What is declared of one method of a resource."""

    summary: str
    description: str
    #: status of the usual answer
    status: int
    body: Any
    query: Any
    path: tuple[str, ...]
    answer: Any
    media_type: str
    errors: tuple[type[OrchError], ...]
    #: request headers that it reads, with what they are for
    request_headers: Mapping[str, str]
    #: headers of the answer, with what they say
    answer_headers: Mapping[str, str]
    #: any one of them is enough; ``admin`` always is, and ``public`` asks for none
    scopes: tuple[str, ...]
    #: it leaves an event with its actor in the journal (AUTH-2)
    changes: bool


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What resources are made with."""

    services: Services
    settings: Settings
    #: of this program; also OpenAPI's ``info.version``
    version: str
    #: answers of ``GET /metrics``
    metrics: Metrics
    #: bytes of ``GET /openapi.json``
    document: Callable[[], bytes]
    #: Unix time, nanoseconds
    now_ns: Callable[[], int]


class Resource:
    """What every resource inherits."""

    #: as Falcon routes it: ``{name:path}`` takes slashes too
    route: ClassVar[str] = ""
    #: as it is described
    path: ClassVar[str] = ""
    tag: ClassVar[str] = ""
    #: how errors are written
    shape: ClassVar[ErrorShape] = "native"
    #: by HTTP method, in lower case
    operations: ClassVar[dict[str, Operation]] = {}

    def __init__(self, context: Context) -> None:
        self.context = context
        self.services = context.services
        self.body_limit = context.settings.limits.body_bytes


def resource(path: str, *, tag: str, shape: ErrorShape = "native") -> Callable[[C], C]:
    """Declare which path a class serves.

    :param path: template with ``{names}``; they become arguments of the methods.
    :param tag: the group in which OpenAPI and the reference show it.
    :param shape: how errors are written.
    """

    def declare(cls: C) -> C:
        kind = typing.cast("type[Resource]", cls)
        kind.route, kind.path, kind.tag, kind.shape = path, path.replace(":path}", "}"), tag, shape
        kind.operations = {
            method: _scoped(member.operation, tag, method)
            for name, member in inspect.getmembers(cls)
            if (method := name.removeprefix("on_")) != name and hasattr(member, "operation")
        }
        return cls

    return declare


def _scoped(declared: Operation, tag: str, method: str) -> Operation:
    """The operation with what its tag and method say, where it says nothing itself."""
    reading, changing = _SCOPES.get(tag, (("read",), ("admin",)))
    usual = reading if method in _READING else changing
    return msgspec.structs.replace(
        declared,
        scopes=declared.scopes or usual,
        changes=declared.changes and method not in _READING,
    )


def _answer_type(hint: Any) -> Any:
    """The declared type of the JSON answer; ``None`` where there is none."""
    kinds = [k for k in (typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)) if k is not Answer]
    return kinds[0] if kinds and kinds[0] is not type(None) else None


def operation(
    summary: str,
    *,
    status: int = 200,
    media_type: str = JSON,
    errors: tuple[type[OrchError], ...] = (),
    request_headers: Mapping[str, str] | None = None,
    answer_headers: Mapping[str, str] | None = None,
    scopes: tuple[str, ...] = (),
    changes: bool = True,
) -> Callable[[Responder], Responder]:
    """Declare one method of a resource; see the module's text.

    :param errors: what callers can meet beside what every route may answer.
    :param scopes: of a key that may call it, any one of them; else as its tag and method say.
    :param changes: whether another method than GET changes something, and so leaves an event with its actor.
    """

    def declare(method: Responder) -> Responder:
        hints = typing.get_type_hints(method)
        names = [name for name in inspect.signature(method).parameters if name not in ("self", "call")]
        declared = Operation(
            summary=summary,
            description=inspect.getdoc(method) or "",
            status=status,
            body=hints.get("body"),
            query=hints.get("query"),
            path=tuple(n for n in names if n not in ("body", "query", "raw")),
            answer=_answer_type(hints.get("return")),
            media_type=media_type,
            errors=errors,
            request_headers=request_headers or {},
            answer_headers=answer_headers or {},
            scopes=scopes,
            changes=changes,
        )
        verb = method.__name__.removeprefix("on_")
        decode = decoder_for(declared.body) if declared.body is not None else None
        query = declared.query
        default_status = status
        wants_raw = "raw" in names

        @functools.wraps(method)
        async def responder(self: Resource, req: Request, resp: Response, **params: Any) -> None:
            raw_path: bytes = req.scope.get("raw_path") or b""
            if b"%" in raw_path and raw_path.count(b"/") < self.route.count("/"):
                # An encoded slash is part of a name; who filters by path before us sees no such route either.
                raise falcon.HTTPRouteNotFound
            needed = self.operations[verb].scopes
            if needed != PUBLIC:
                req.scope["llama_orch.caller"].require_route(needed, req.path)
            if query is not None:
                params["query"] = decode_query(req.scope["query_string"], query)
            if decode is not None:
                raw = await read_body(req, self.body_limit)
                params["body"] = decode(raw)
                if wants_raw:
                    params["raw"] = raw
            answer = await method(self, Call(req), **params)
            if type(answer) is not Answer:
                resp.status = default_status
                if answer is not None:
                    resp.data = _encode(answer)
                return
            resp.status = answer.status
            for name, value in answer.headers.items():
                resp.set_header(name, value)
            if answer.stream is not None:
                req.scope["llama_orch.stream"] = answer.stream
                resp.content_type = answer.media_type
            elif answer.raw is not None:
                resp.content_type = answer.media_type
                resp.data = answer.raw
            elif answer.body is not None:
                resp.data = _encode(answer.body)

        vars(responder)["operation"] = declared
        del responder.__wrapped__
        return responder

    return declare
