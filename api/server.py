"""Serves the application: listening sockets, uvicorn with uvloop and httptools, TLS, an orderly stop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from ..core.errors import ConfigError
from ..core.settings import Settings
from .protocol import protocol_with

#: connections that may wait to be accepted
BACKLOG = 2048


def parse_bind(bind: str) -> tuple[str, int]:
    """Host and port of a ``bind`` setting: ``127.0.0.1:8080``, ``localhost:0``, ``[::1]:8080``.

    :raises ConfigError: it is none of these.
    """
    host, colon, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        msg = f"bind: got {bind!r}, expected host:port, such as 127.0.0.1:8080"
        raise ConfigError(msg, field="bind", got=bind, remedy="Write host:port; IPv6 addresses stand in brackets.")
    return host, int(port)


def loopback_socket(bind: str) -> socket.socket:
    """A listening socket that this machine alone can reach.

    :raises ConfigError: the address is not loopback (AUTH-1), does not resolve, or is taken.
    """
    if not all(_is_loopback(address) for *_, address in _resolved(bind)):
        raise unprotected(bind)
    return listening_socket(bind)


def reaches_out(listener: socket.socket) -> bool:
    """Whether other machines can reach it."""
    return not _is_loopback(listener.getsockname())


def _is_loopback(address: Any) -> bool:
    return ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback


def _resolved(bind: str) -> list[Any]:
    """What the system knows of an address. :raises ConfigError: nothing."""
    host, port = parse_bind(bind)
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        msg = f"bind: {host!r} cannot be resolved: {error}"
        raise ConfigError(msg, field="bind", got=bind, remedy="Use 127.0.0.1 or ::1.") from error


def unprotected(bind: str) -> ConfigError:
    """What is said of an address that others reach, where nothing tells callers apart."""
    msg = f"bind: {bind!r} is reachable from outside this machine, and there are no keys that would protect it"
    return ConfigError(
        msg,
        field="bind",
        got=bind,
        remedy=(
            "Make a key while the server listens on 127.0.0.1 (`llama-orch keys create NAME --scope admin`), or set "
            "LLORCH_API_TOKEN, or start with --first-key, which makes one and prints it; or stay on 127.0.0.1 and reach "
            "it through an SSH tunnel."
        ),
    )


def listening_socket(bind: str) -> socket.socket:
    """A listening socket on an address.

    :raises ConfigError: it does not resolve, or is taken.
    """
    found = _resolved(bind)
    if len({_is_loopback(address) for *_, address in found}) > 1:
        msg = f"bind: {bind!r} stands for addresses of this machine alone and for others"
        raise ConfigError(msg, field="bind", got=bind, remedy="Name one address.")
    family, *_, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        msg = f"bind: {bind} cannot be used: {error.strerror or error}"
        raise ConfigError(
            msg,
            field="bind",
            got=bind,
            remedy="Another program may listen there (`llama-orch status`); choose another port, or 0 for any free one.",
        ) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The base URL that a listening socket answers at; one that listens on every address is asked on this machine's own."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))  # noqa: S104 - it is replaced
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def allow_open_files(connections: int) -> None:
    """Raise the process's soft limit of open files, as far as the hard one allows, to what so many connections need.

    A stream takes two: the client's connection and the engine's. The usual soft limit is 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 512
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server(uvicorn.Server):
    """uvicorn's server; signals belong to whoever calls :func:`serve`.

    :param accepting: called once connections are accepted.
    :param tls: how connections are encrypted; ``None`` = not.
    :param handshake_ms: how long a client may take to agree on that; uvicorn would give it a minute. 0 = so long.
    """

    def __init__(
        self, config: uvicorn.Config, accepting: Callable[[], None], tls: ssl.SSLContext | None, handshake_ms: int
    ) -> None:
        super().__init__(config)
        self._accepting = accepting
        self._listening: dict[str, Any] = {"ssl": tls, "backlog": config.backlog}
        if tls is not None and handshake_ms:
            self._listening["ssl_handshake_timeout"] = handshake_ms / 1000

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        loop = asyncio.get_running_loop()
        for sock in sockets or ():
            self.servers.append(await loop.create_server(self._protocol, sock=sock, **self._listening))
        self._accepting()

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        made: asyncio.Protocol = kind(config=self.config, server_state=self.server_state, app_state={})
        return made

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    app: Any,
    settings: Settings,
    *,
    stop: asyncio.Event,
    listener: socket.socket | None = None,
    ready: Callable[[str], None] | None = None,
    grace_s: float = 5.0,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until ``stop`` is set, then let answers finish for at most ``grace_s`` seconds.

    :param app: what :func:`~llama_orch.api.app.create_app` made.
    :param listener: a socket from :func:`listening_socket`, whose callers have to say who they are if others than this
        machine reach it; else one for this machine alone is made from ``settings.bind``.
    :param tls: how connections are encrypted, from :func:`~llama_orch.api.tls.server_context`; ``None`` = not.
    :param ready: called with the base URL once connections are accepted.
    :raises ConfigError: ``settings.bind`` cannot be used.
    """
    allow_open_files(settings.limits.connections)
    owned = listener is None
    sock = loopback_socket(settings.bind) if listener is None else listener
    config = uvicorn.Config(
        app,
        http=protocol_with(settings.limits),
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, settings.limits.keep_alive_ms // 1000),
        timeout_graceful_shutdown=max(1, round(grace_s)),
        backlog=BACKLOG,
    )
    url = url_of(sock, "https" if tls is not None else "http")
    server = _Server(config, lambda: ready(url) if ready is not None else None, tls, settings.limits.header_timeout_ms)

    async def watch() -> None:
        await stop.wait()
        server.should_exit = True

    watcher = asyncio.create_task(watch())
    try:
        await server.serve(sockets=[sock])
    finally:
        watcher.cancel()
        if owned:
            sock.close()
