"""The mock behind llama.cpp's native wire format, as a process of its own.

Run as ``python -m llama_orch.plugins.engines._mock_server --port P --script '{"rate": 50}'``. The faults of the
script meet whoever speaks to it on the wire; ``die`` kills the process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import httptools
import msgspec

from ._chat_template import ChatTemplate, TemplateError
from ._mock_chat import RefusedError, plain_texts
from ._mock_machine import DEFAULT_CTX, DEFAULT_SLOTS, Machine, Request
from ._mock_script import KnobError
from ._mock_wire import Answer, ChatAnswer, CompletionAnswer, ResultAnswer, chat_request, completion_request
from ._mock_words import detokenize, tokenize
from .mock import CHAT_TEMPLATE, VERSION

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Busy",
}
#: what has to be served, what must not be missing, and what it is called
_VECTORS: Final = {
    "/v1/embeddings": ("embedding", "input", "embeddings"),
    "/v1/rerank": ("rerank", "query", "reranking"),
}
_POSTS: Final = frozenset(
    ("/completion", "/v1/chat/completions", "/tokenize", "/detokenize", "/apply-template", *_VECTORS)
)
_encode = msgspec.json.Encoder().encode


class MockServer:
    """An HTTP server around a machine.

    Args:
        machine: what answers.
        model: name of the model it claims to serve.
        loading_s: how long it answers 503 after its start.
        serves: ``text``, ``embedding`` or ``rerank``, as llama.cpp is started for one of them.
        split: each byte of an answer is a write of its own.
        die: ends the process as abruptly as can be; without it the server stops.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        model: str = "mock",
        loading_s: float = 0.0,
        serves: str = "text",
        split: bool = False,
        die: Callable[[], None] | None = None,
    ) -> None:
        self.machine = machine
        self.model = model
        self.serves = serves
        self.split = split
        self.die = die or self.stop
        self.template = ChatTemplate(CHAT_TEMPLATE)
        self.connections: set[Connection] = set()
        self._loading_s = loading_s
        self._ready_at = 0.0
        self._server: asyncio.Server | None = None

    @property
    def loading(self) -> bool:
        """Whether it still pretends to load."""
        return asyncio.get_running_loop().time() < self._ready_at

    async def start(self, port: int = 0) -> int:
        """Listen on loopback; answers the port."""
        loop = asyncio.get_running_loop()
        self._ready_at = loop.time() + self._loading_s
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Close the port and every connection, at once."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, server: MockServer) -> None:
        self._server = server
        self._path = ""
        self._body: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self.on_body = self._body.append  # the parser takes it when it is made
        self._parser: Any = httptools.HttpRequestParser(self)

    def abort(self) -> None:
        """Reset the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        if self._answer is not None:
            self._answer.left()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def on_url(self, url: bytes) -> None:
        self._path = url.decode("latin-1").partition("?")[0]
        self._body.clear()

    def on_message_complete(self) -> None:
        self._handle(self._parser.get_method().decode(), self._path, b"".join(self._body))

    def pause_writing(self) -> None:
        if self._answer is not None:
            self._answer.full = True

    def resume_writing(self) -> None:
        if self._answer is not None:
            self._answer.drained()

    # --- routes

    def _handle(self, method: str, path: str, body: bytes) -> None:
        server, machine = self._server, self._server.machine
        if server.loading:
            self._error(503, "unavailable_error", "Loading model")
        elif (method, path) == ("GET", "/health"):
            self.reply(200, {"status": "ok"})
        elif (method, path) == ("GET", "/slots"):
            self.reply(
                200,
                [
                    {"id": n, "n_ctx": machine.ctx, "is_processing": run is not None}
                    for n, run in enumerate(machine.slots)
                ],
            )
        elif (method, path) == ("GET", "/props"):
            self.reply(
                200,
                {
                    "total_slots": len(machine.slots),
                    "model_alias": server.model,
                    "model_path": "",
                    "build_info": VERSION,
                    "chat_template": CHAT_TEMPLATE,
                    "chat_template_caps": {
                        "supports_tools": True,
                        "supports_tool_calls": True,
                        "supports_preserve_reasoning": bool(machine.script.get("thoughts")),
                    },
                    "bos_token": "<s>",
                    "eos_token": "</s>",
                },
            )
        elif (method, path) == ("GET", "/v1/models"):
            meta = {"n_vocab": 31_000, "n_ctx": machine.ctx, "n_params": 1, "size": 1}
            self.reply(200, {"data": [{"id": server.model, "meta": meta}]})
        elif (method, path) == ("GET", "/metrics"):
            self._send(200, f"llamacpp:tokens_predicted_total {machine.tokens_said}\n".encode(), "text/plain")
        elif method == "POST" and (path in _POSTS or path.startswith("/slots/")):
            try:
                self._post(path, json.loads(body))
            except (ValueError, KeyError, TypeError) as error:
                self._error(400, "invalid_request_error", f"{type(error).__name__}: {error}")
        else:
            self._error(404, "not_found_error", "File Not Found")

    def _post(self, path: str, asked: Mapping[str, Any]) -> None:
        server = self._server
        if path == "/tokenize":
            self.reply(200, {"tokens": tokenize(asked["content"], add_special=bool(asked.get("add_special")))})
        elif path == "/detokenize":
            try:
                self.reply(200, {"content": detokenize(asked["tokens"])})
            except KeyError as error:
                self._error(500, "server_error", f"there is no token {error}")
        elif path.startswith("/slots/"):
            forgotten = server.machine.forget(int(path.rpartition("/")[2]))
            self.reply(200 if forgotten else 400, {"error": {"code": 400, "message": "busy"}} if not forgotten else {})
        elif path in _VECTORS:
            self._vectors(path, asked)
        elif path == "/completion":
            self._begin(CompletionAnswer(self, server.machine.ctx, asked), completion_request(asked))
        else:
            try:
                messages = plain_texts(asked["messages"])
                variables = asked.get("chat_template_kwargs")
                prompt = server.template.render(messages, asked.get("tools") or (), variables)
            except RefusedError as error:
                self._error(500, "server_error", f"image input is not supported: {error}")
            except TemplateError as error:
                self._error(500, "server_error", str(error))
            else:
                if path == "/apply-template":
                    self.reply(200, {"prompt": prompt})
                else:
                    self._begin(ChatAnswer(self, server.machine.ctx, asked), chat_request(asked, prompt))

    def _vectors(self, path: str, asked: Mapping[str, Any]) -> None:
        server = self._server
        serves, field, what = _VECTORS[path]
        if server.serves != serves:
            self._error(501, "not_supported_error", f"This server does not support {what}")
        elif field not in asked:
            self._error(400, "invalid_request_error", f'"{field}" must be provided')
        else:
            query = asked.get("query")
            inputs = asked["documents"] if serves == "rerank" else asked["input"]
            request = Request(prompt=query or "", inputs=(inputs,) if isinstance(inputs, str) else tuple(inputs))
            self._begin(ResultAnswer(self, server.machine.ctx, query), request)

    def _begin(self, answer: Answer, request: Request) -> None:
        self._answer = answer
        answer.run = self._server.machine.submit(request, answer)

    # --- writing

    def reply(self, status: int, value: Any) -> None:
        """A whole JSON answer."""
        self._send(status, _encode(value), "application/json")

    def _error(self, status: int, kind: str, message: str, **more: Any) -> None:
        self.reply(status, {"error": {"code": status, "message": message, "type": kind, **more}})

    def refuse(self, status: int, kind: str, message: str, **more: Any) -> None:
        """An error in place of a stream."""
        self._answer = None
        self._error(status, kind, message, **more)

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.write(head.encode() + body)

    def write(self, data: bytes) -> None:
        """Raw bytes."""
        if self._transport is None:
            return
        if self._server.split:
            for at in range(len(data)):
                self._transport.write(data[at : at + 1])
        else:
            self._transport.write(data)

    def die(self) -> None:
        """The server is gone."""
        self._server.die()

    def over(self) -> None:
        """The stream is complete; the next request may come."""
        self._answer = None


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="llama_orch.plugins.engines._mock_server")
    parser.add_argument("--port", type=int, required=True, help="0 = any free one; the first line says which")
    parser.add_argument("--script", default="{}", help="default knobs as a JSON object")
    parser.add_argument("--slots", type=int, default=DEFAULT_SLOTS)
    parser.add_argument("--ctx", type=int, default=DEFAULT_CTX, help="tokens per slot")
    parser.add_argument("--model", default="mock")
    parser.add_argument("--serves", choices=("text", "embedding", "rerank"), default="text")
    parser.add_argument("--loading-ms", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        machine = Machine(slots=args.slots, ctx=args.ctx, script=msgspec.json.decode(args.script, type=dict[str, Any]))
    except (KnobError, msgspec.MsgspecError) as error:
        print(f"error: invalid: --script: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(_serve(machine, args))
    except OSError as error:
        print(f"error: port-taken: {args.port}: {error}", file=sys.stderr)
        return 3
    return 0


async def _serve(machine: Machine, args: argparse.Namespace) -> None:
    server = MockServer(
        machine,
        model=args.model,
        loading_s=args.loading_ms / 1000,
        serves=args.serves,
        die=lambda: os.kill(os.getpid(), signal.SIGKILL),
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    port = await server.start(args.port)
    print(f"listening on http://127.0.0.1:{port}", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await stopped.wait()
    server.stop()


if __name__ == "__main__":
    sys.exit(main())
