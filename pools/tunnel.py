"""Engines of another host: connections to them go through the TLS port of that host's pool-managerd.

Engines listen on their host's loopback alone. Here, on this host's loopback, a port of its own stands for each of
them; a connection to it becomes one over TLS that begins with :class:`~.protocol.Tunnel` and, once that was answered
by :class:`~.protocol.Open`, leads on as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from .connection import Lines
from .protocol import Open, ProtocolError, Tunnel, from_manager

_PIECE: Final = 65_536
#: how long a host, or an engine, may take to open a connection
_OPEN_S: Final = 10.0
_KEY_CHARACTERS: Final = 32


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a host shows. :raises OSError: a file cannot be read. :raises ssl.SSLError: it holds something else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context


def client_context(authority: str) -> ssl.SSLContext:
    """Who is believed: a certificate, or who signed it; "" = whom the system believes."""
    context = ssl.create_default_context(cafile=authority or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def read_key(path: Path) -> str:
    """The key in a file. :raises ValueError: it is none worth the name, or everybody can read it."""
    if path.stat().st_mode & 0o077:
        msg = f"{path} can be read by others than its owner; chmod 600 {path}"
        raise ValueError(msg)
    key = path.read_text("utf-8").strip()
    if len(key) < _KEY_CHARACTERS:
        msg = f"{path} holds a key of {len(key)} characters; take {_KEY_CHARACTERS} random ones or more"
        raise ValueError(msg)
    return key


async def relay(lines: Lines, url: str) -> None:
    """On the engine's host: lead a connection on to the engine. :raises OSError: nobody answers there."""
    place = urlsplit(url)
    async with asyncio.timeout(_OPEN_S):
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
    lines.send(Open())
    await _both(lines.reader, lines.writer, reader, writer)


class Forwarder:
    """A port on loopback that stands for one engine of another host.

    Args:
        dial: opens a connection to the host; it is said with what it has to begin.
    """

    def __init__(self, dial: Callable[[], Awaitable[tuple[Lines, Tunnel]]]) -> None:
        self._dial = dial
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """Begin; the URL that stands for the engine's."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """End, with all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._lead_on(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _lead_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_OPEN_S):
                far, hello = await self._dial()
                far.send(hello)
                answer = from_manager(await far.line())
            if isinstance(answer, Open):
                await _both(far.reader, far.writer, reader, writer)
            else:
                far.abort()
        except (OSError, TimeoutError, ProtocolError):
            pass  # the connection that stands for it breaks off, as if the engine had
        finally:
            writer.transport.abort()


async def _both(
    one: asyncio.StreamReader, to_one: asyncio.StreamWriter, other: asyncio.StreamReader, to_other: asyncio.StreamWriter
) -> None:
    """Pass bytes on both ways until either side ends: a client that leaves ends its request, as without a tunnel."""
    ways = {asyncio.ensure_future(_pass(one, to_other)), asyncio.ensure_future(_pass(other, to_one))}
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for writer in (to_one, to_other):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await writer.drain()
            writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
