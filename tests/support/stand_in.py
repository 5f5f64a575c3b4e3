"""A server over HTTP that says the mock's made-up words, and breaks as it is told; dialects say how it words them.

``[[mock tokens=100 rate=500]]`` in a prompt rules what is said, as it does with the mock.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from llama_orch.plugins.engines._mock_script import Said, Speech, knobs_of

#: tokens of a text before a fault strikes
AFTER = 3


class StruckError(Exception):
    """A fault ended the stream."""


class Reply:
    """Writes one answer, as the fault has it."""

    def __init__(self, writer: asyncio.StreamWriter, *, split: bool) -> None:
        self._writer = writer
        self._split = split

    async def raw(self, data: bytes) -> None:
        """Some bytes; or one by one."""
        for piece in [data[n : n + 1] for n in range(len(data))] if self._split else [data]:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0)

    async def whole(self, status: int, value: object, media_type: str = "application/json") -> None:
        """A complete answer: JSON, or a text as it is."""
        data = b"" if value is None else value.encode() if isinstance(value, str) else json.dumps(value).encode()
        head = f"HTTP/1.1 {status} Said\r\nContent-Type: {media_type}\r\nContent-Length: {len(data)}\r\n\r\n"
        await self.raw(head.encode() + data)

    async def begin(self, status: int = 200) -> None:
        """The head of a stream."""
        head = f"HTTP/1.1 {status} Said\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await self.raw(head.encode())

    async def chunk(self, data: bytes) -> None:
        """A piece of a stream."""
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        """The stream's proper end."""
        await self.raw(b"0\r\n\r\n")

    def reset(self) -> None:
        """The connection breaks."""
        self._writer.transport.abort()


class StandIn:
    """What it was asked, and how it will break.

    Args:
        fault: of those that the contract of engines names; "" = none.
    """

    def __init__(self, *, fault: str = "") -> None:
        self.fault = fault
        self.ctx = 4096
        #: requests with a body, as ``(path, body)``
        self.asked: list[tuple[str, Any]] = []
        #: heads of all requests
        self.heads: list[str] = []
        #: streams that go on, and streams that are over
        self.busy = 0
        self.completed = 0
        #: set whenever a client leaves a stream before its end
        self.left = asyncio.Event()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def serving(self, **options: Any) -> AsyncIterator[Self]:
        """Listen on a free port of loopback; options are those of ``asyncio.start_server``."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, **options)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.die()

    def die(self) -> None:
        """Nobody answers any more, and every connection is reset."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    # --- for dialects

    async def answer(self, reply: Reply, method: str, path: str, body: Any) -> None:
        """Answer one request."""
        raise NotImplementedError

    async def error(self, reply: Reply, status: int, message: str) -> None:
        """An error in place of an answer."""
        raise NotImplementedError

    def error_frame(self, message: str) -> bytes:
        """An error inside a stream."""
        raise NotImplementedError

    # --- for what dialects answer

    async def takes(self, reply: Reply) -> bool:
        """Whether a request is taken; else it was answered."""
        match self.fault:
            case "refused" | "loading":
                await self.error(reply, 503, "busy")
            case "server-error":
                await self.error(reply, 500, "it failed")
            case "cut-early":
                reply.reset()
            case _:
                return True
        return False

    async def words(self, reply: Reply, speech: Speech, rate: float) -> AsyncIterator[Said]:
        """What is said, at its pace, until the fault strikes. :raises StruckError: it did, as the body now shows."""
        while (said := speech.next()) is not None:
            if rate:
                await asyncio.sleep(said.tokens / rate)
            if self.fault == "slow":
                await asyncio.sleep(0.002)
            yield said
            if speech.counted >= AFTER:
                await self._strike(reply)
        if self.fault not in ("", "slow", "split"):
            await self._strike(reply)

    async def _strike(self, reply: Reply) -> None:
        match self.fault:
            case "" | "slow" | "split":
                return
            case "cut":
                reply.reset()
            case "dies":
                self.die()
            case "silent":
                await asyncio.Event().wait()
            case "garbage":
                await reply.chunk(b'data: {"text": <<<\n\n')
            case "bad-utf8":
                await reply.chunk(self.text_frame("@").replace(b"@", b"\xff\xc3"))
            case "error-frame":
                await reply.chunk(self.error_frame("it failed"))
                await reply.end()
            case "unfinished":
                await reply.end()
        raise StruckError

    def text_frame(self, text: str) -> bytes:
        """A frame that says this."""
        raise NotImplementedError

    # --- connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        first = b""
        try:
            while True:
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.heads.append(head)
                lengths = [line[15:] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
                raw = await reader.readexactly(int(lengths[0]) if lengths else 0)
                method, path, _ = head.split(" ", 2)
                body = json.loads(raw) if raw else None
                if raw:
                    self.asked.append((path, body))
                reply = Reply(writer, split=self.fault == "split")
                answer = asyncio.create_task(self.answer(reply, method, path, body))
                gone = asyncio.create_task(reader.read(1))
                await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    answer.cancel()
                    self.left.set()
                    break
                answer.result()
                gone.cancel()
                results = await asyncio.gather(gone, return_exceptions=True)
                first = results[0] if isinstance(results[0], bytes) else b""
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


def speech_of(prompt: str, *, seed: int, limit: int, room: int, stop: list[str]) -> tuple[Speech, float]:
    """What is said to a prompt, and how fast. :raises KnobError: the prompt has a knob that is none."""
    knobs = knobs_of(prompt, {})
    return Speech(knobs, prompt, seed=seed, limit=limit, room=room, stop=stop), knobs.rate
