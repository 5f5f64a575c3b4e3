"""A client for load: plain HTTP/1.1 on asyncio, one connection per request, server-sent events as they arrive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

#: what a server that dies or stops makes of a connection
BROKEN = (OSError, EOFError, asyncio.IncompleteReadError)


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class SseFrame:
    """One server-sent event."""

    event: str
    id: str
    data: Any


class Refused(Exception):
    """The stream was answered with an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.body}")
        self.answer = answer


async def _open(
    port: int, method: str, path: str, body: object, headers: Mapping[str, str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int, dict[str, str]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        raw = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(raw)}"]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + raw)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except BaseException:
        writer.close()
        raise
    told = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
    return reader, writer, int(head[0].split()[1]), told


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> Any:
    if headers.get("transfer-encoding") == "chunked":
        raw = b"".join([piece async for piece in chunks(reader)])
    else:
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return raw.decode()


async def call(port: int, method: str, path: str, body: object = None, **headers: str) -> Answer:
    """One request and its whole answer. :raises OSError: see :data:`BROKEN`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    reader, writer, status, told = await _open(port, method, path, body, named)
    try:
        return Answer(status, told, await _body(reader, told))
    finally:
        writer.close()


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The pieces of a chunked body. :raises EOFError: it broke off."""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        data = await reader.readexactly(size + 2)
        if not size:
            return
        yield data[:-2]


async def stream(port: int, task_id: str, after: str = "", query: str = "") -> AsyncIterator[SseFrame]:
    """A task's frames until the server ends or breaks off. :raises Refused: no stream was begun."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
    reader, writer, status, told = await _open(port, "GET", f"/v1/tasks/{task_id}/stream{query}", None, headers)
    try:
        if status != 200:
            raise Refused(Answer(status, told, await _body(reader, told)))
        rest = b""
        async for piece in chunks(reader):
            *whole, rest = (rest + piece).split(b"\n\n")
            for block in whole:
                frame = parse(block)
                if frame is not None:
                    yield frame
    finally:
        writer.close()


def parse(block: bytes) -> SseFrame | None:
    """One event's lines; ``None`` for a comment."""
    event = frame_id = ""
    data: list[str] = []
    for line in block.decode().split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event = value
        elif name == "id":
            frame_id = value
        elif name == "data":
            data.append(value)
    return SseFrame(event, frame_id, json.loads("\n".join(data))) if data else None
