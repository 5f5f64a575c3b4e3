"""Builds the application: resources, error answers, and the layer around them."""

from __future__ import annotations

import difflib
import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import falcon
import falcon.asgi
from falcon.asgi import Request, Response

from llama_orch import __version__  # pyright knows no relative name for the root of the folders

from ..core.errors import InvalidParamsError, OrchError
from ..core.services.caller import Caller
from ..core.settings import Settings
from .asgi import Edge
from .auth import PUBLIC, Authentication, Secrets, rate_headers
from .discovery import resource_types
from .gate import Gate, is_loopback
from .metrics import Metrics
from .oidc import OidcProvider, fetcher
from .openapi import document, to_json
from .operations import Context
from .problems import RouteError, body_of, headers_of, internal, no_route, told
from .server import parse_bind

_log = logging.getLogger("llama_orch.api")


def new_correlation_id() -> str:
    """A correlation id for a request that brings none: 16 hexadecimal digits."""
    return os.urandom(8).hex()


def create_app(
    services: Any,
    settings: Settings,
    *,
    version: str = __version__,
    metrics: Metrics | None = None,
    secrets: Secrets | None = None,
    now_ns: Callable[[], int] = time.time_ns,
    new_id: Callable[[], str] = new_correlation_id,
) -> Edge:
    """The ASGI application over a server's services.

    :param services: :class:`~llama_orch.core.services.container.Services`, or what looks like it.
    :param metrics: what ``/metrics`` shows; made, and subscribed to the journal, when not given.
    :param secrets: digests of the keys that stand in no journal.
    :raises ConfigError: an identity provider is configured, and what verifies its tokens is not installed.
    """
    if metrics is None:
        metrics = Metrics(services)
        metrics.subscribe()
    kinds = resource_types()

    @cache
    def described() -> bytes:
        return to_json(document(version))

    context = Context(
        services=services, settings=settings, version=version, metrics=metrics, document=described, now_ns=now_ns
    )
    app: falcon.asgi.App[Any, Any] = falcon.asgi.App()
    app.req_options.strip_url_path_trailing_slash = False
    paths = [kind.path for kind in kinds]
    shapes = {kind.route: kind.shape for kind in kinds if kind.shape != "native"}
    for kind in kinds:
        app.add_route(kind.route, kind(context))

    async def answer(req: Request, resp: Response, error: OrchError) -> None:
        correlation: str = req.scope["llama_orch.correlation"]
        resp.status = error.status
        for name, value in headers_of(error).items():
            resp.set_header(name, value)
        shape = shapes.get(req.uri_template or "", "native")
        if shape == "anthropic":
            resp.set_header("request-id", correlation)
        if req.method == "HEAD":
            return
        resp.content_type = "application/json"
        resp.data = body_of(error, shape, correlation)

    async def known(req: Request, resp: Response, error: OrchError, params: dict[str, Any]) -> None:
        error = told(error)
        if error.status >= 500:
            _log.warning(
                "%s: %s", error.code, error.message, extra={"correlation_id": req.scope["llama_orch.correlation"]}
            )
        await answer(req, resp, error)

    async def of_falcon(req: Request, resp: Response, error: falcon.HTTPError, params: dict[str, Any]) -> None:
        allowed = _allowed(error)
        if allowed:
            resp.set_header("Allow", allowed)
        await answer(req, resp, translate(error, req, paths))

    async def defect(req: Request, resp: Response, error: Exception, params: dict[str, Any]) -> None:
        correlation: str = req.scope["llama_orch.correlation"]
        _log.error("%s %s failed", req.method, req.path, exc_info=error, extra={"correlation_id": correlation})
        await answer(req, resp, internal(correlation))

    app.add_error_handler(Exception, defect)
    app.add_error_handler(falcon.HTTPError, of_falcon)
    app.add_error_handler(OrchError, known)
    oidc = settings.auth.oidc
    auth = Authentication(
        services.keys,
        settings,
        secrets=secrets or Secrets(),
        provider=OidcProvider(oidc, fetcher(oidc.ca_file), now_ns) if oidc.issuer else None,
        public=frozenset(kind.path for kind in kinds for op in kind.operations.values() if op.scopes == PUBLIC),
    )

    def rates(caller: Caller) -> list[tuple[bytes, bytes]]:
        return rate_headers(services.limits.meters(caller))

    bound, _ = parse_bind(settings.bind)
    gate = Gate([*settings.allowed_hosts, bound], settings.allowed_origins, addresses=not is_loopback(bound))
    return Edge(app, gate, auth, rates=rates, new_id=new_id, body_limit=settings.limits.body_bytes, shapes=shapes)


def _allowed(error: falcon.HTTPError) -> str:
    """The methods that a route serves, when the error is that another one was used."""
    headers = error.headers or {}
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return next((str(value) for name, value in pairs if name == "Allow"), "")


def translate(error: falcon.HTTPError, req: Request, paths: list[str]) -> OrchError:
    """One of our errors for one of Falcon's."""
    status = error.status_code
    if status == 404:
        near = difflib.get_close_matches(req.path, [p for p in paths if "{" not in p], n=1)
        return no_route(req.path, near[0] if near else "")
    if status == 405:
        allowed = _allowed(error)
        msg = f"{req.method} is not served here, only {allowed}"
        return RouteError(405, "INVALID_PARAMS", msg, field="method", got=req.method, remedy=f"Use one of: {allowed}.")
    if 400 <= status < 500:
        msg = f"the request cannot be read: {error.description or error.title or 'malformed'}"
        return InvalidParamsError(msg, field="request")
    return RouteError(
        status, "INTERNAL", error.title or "the server cannot do this", field="request", remedy="Send another request."
    )
