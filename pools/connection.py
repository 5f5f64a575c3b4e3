"""One connection of the protocol: lines in, messages out, and where it leads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Final

from .protocol import MAX_LINE, FromManager, ProtocolError, ToManager, encode

#: what may wait in one direction before messages that nobody misses are dropped
FULL_BYTES: Final = 262_144
#: longest path that the name of a Unix socket may be
_SOCKET_PATH_BYTES: Final = 100
SOCKET_NAME: Final = "managerd.sock"


class Lines:
    """Lines over a stream.

    Args:
        name: of the other side, for the log.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        self.reader = reader
        self.writer = writer
        self.name = name

    async def line(self) -> bytes:
        """The next line; empty = the other side ended. :raises ProtocolError: it is too long."""
        try:
            line = await self.reader.readline()
        except ValueError as error:
            msg = f"a line of more than {MAX_LINE} bytes"
            raise ProtocolError(msg) from error
        except OSError:
            return b""
        return line if line.endswith(b"\n") else b""

    def send(self, message: ToManager | FromManager) -> None:
        """Send, now or as soon as the other side takes it. :raises ProtocolError: it is too long for a line."""
        if not self.writer.is_closing():
            self.writer.write(encode(message))

    @property
    def full(self) -> bool:
        """The other side does not take what it is sent."""
        return self.writer.transport.get_write_buffer_size() > FULL_BYTES

    def abort(self) -> None:
        """End it now; what waits to be sent is dropped."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Send what waits, for a moment, and end it."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await self.writer.drain()
        self.writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await self.writer.wait_closed()


class SocketPlace:
    """A Unix socket in a directory, whose name may be longer than the system takes for one (Linux).

    Use it as a context; within it, ``path`` is good for ``bind`` and ``connect``.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = -1
        self.path = str(directory / SOCKET_NAME)

    def __enter__(self) -> SocketPlace:
        if len(os.fsencode(self.path)) > _SOCKET_PATH_BYTES:
            self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            self.path = f"/proc/self/fd/{self._descriptor}/{SOCKET_NAME}"
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def peer_uid(connection: socket.socket) -> int | None:
    """The user at the other end of a Unix socket; ``None`` where the system does not say (then its mode has to do)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", told)
    return int(uid)
