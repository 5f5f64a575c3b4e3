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
from ._mock_machine import DEFAULT_CTX, DEFAULT_SLOTS, Machine, Request, Run
from ._mock_script import KnobError, Said, tokenize
from .mock import CHAT_TEMPLATE, VERSION

_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error", 503: "Busy"}
_encode = msgspec.json.Encoder().encode


class MockServer:
    """An HTTP server around a machine.

    Args:
        machine: what answers.
        model: name of the model it claims to serve.
        loading_s: how long it answers 503 after its start.
        die: ends the process as abruptly as can be; without it the server stops.
    """

    def __init__(
        self, machine: Machine, *, model: str = "mock", loading_s: float = 0.0, die: Callable[[], None] | None = None
    ) -> None:
        self.machine = machine
        self.model = model
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
        self._answer: _Answer | None = None
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
                    "bos_token": "<s>",
                    "eos_token": "</s>",
                },
            )
        elif (method, path) == ("GET", "/v1/models"):
            meta = {"n_vocab": 31_000, "n_ctx": machine.ctx, "n_params": 1, "size": 1}
            self.reply(200, {"data": [{"id": server.model, "meta": meta}]})
        elif (method, path) == ("GET", "/metrics"):
            self._send(200, f"llamacpp:tokens_predicted_total {machine.tokens_said}\n".encode(), "text/plain")
        elif (method, path) in {("POST", "/completion"), ("POST", "/tokenize"), ("POST", "/apply-template")}:
            try:
                asked = json.loads(body)
            except ValueError as error:
                self._error(400, "invalid_request_error", str(error))
                return
            self._post(path, asked)
        else:
            self._error(404, "not_found_error", "File Not Found")

    def _post(self, path: str, asked: Mapping[str, Any]) -> None:
        if path == "/tokenize":
            self.reply(200, {"tokens": tokenize(asked["content"], add_special=bool(asked.get("add_special")))})
        elif path == "/apply-template":
            try:
                self.reply(200, {"prompt": self._server.template.render(asked["messages"])})
            except TemplateError as error:
                self._error(500, "server_error", str(error))
        else:
            prompt = asked["prompt"]
            if not isinstance(prompt, str):
                prompt = "".join(f" {token}" for token in prompt)
            stop = asked.get("stop") or ()
            limit = int(asked.get("n_predict", -1))
            self._answer = _Answer(self, self._server, logprobs=bool(asked.get("n_probs")))
            self._answer.run = self._server.machine.submit(
                Request(
                    prompt=prompt,
                    slot=int(asked.get("id_slot", -1)),
                    seed=int(asked.get("seed", 0)),
                    max_tokens=max(limit, 0),
                    stop=(stop,) if isinstance(stop, str) else tuple(stop),
                    cache_prompt=bool(asked.get("cache_prompt", True)),
                ),
                self._answer,
            )

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
        if self._transport is not None:
            self._transport.write(data)

    def over(self) -> None:
        """The stream is complete; the next request may come."""
        self._answer = None


class _Answer:
    """One run, told as llama.cpp's stream."""

    def __init__(self, connection: Connection, server: MockServer, *, logprobs: bool) -> None:
        self._connection = connection
        self._server = server
        self._logprobs = logprobs
        self._counted = 0
        self._prompt_tokens = 0
        self.full = False
        self.run: Run | None = None

    def left(self) -> None:
        """The client is gone."""
        if self.run is not None:
            self.run.cancel()

    def drained(self) -> None:
        """The client reads again."""
        self.full = False
        if self.run is not None:
            self.run.resume()

    # --- Outlet

    def started(self, prompt_tokens: int, cached_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        progress = {"total": prompt_tokens, "cache": cached_tokens, "processed": cached_tokens, "time_ms": 0}
        self._connection.write(head + self._chunk(self._frame("", [0], prompt_progress=progress)))

    def said(self, frames: list[Said]) -> None:
        out: list[bytes] = []
        for frame in frames:
            self._counted += frame.tokens
            if frame.id < 0 and not frame.text:
                continue  # nothing but a part of a character: the last frame's count tells
            more: dict[str, Any] = {}
            if self._logprobs:
                more["completion_probabilities"] = [{"id": frame.id, "token": frame.text, "logprob": -0.5}]
            out.append(self._chunk(self._frame(frame.text, [] if frame.id < 0 else [frame.id], **more)))
        self._connection.write(b"".join(out))

    def ended(self, run: Run) -> None:
        assert run.speech is not None
        last = {
            "content": "",
            "tokens": [],
            "id_slot": run.slot,
            "stop": True,
            "tokens_predicted": self._counted,
            "tokens_evaluated": self._prompt_tokens,
            "truncated": False,
            "stop_type": run.speech.stop_type,
            "stopping_word": run.speech.stop_word,
            "timings": {
                "cache_n": run.cached_tokens,
                "prompt_ms": run.knobs.prefill_ms,
                "predicted_n": self._counted,
                "predicted_ms": run.decode_ms,
            },
        }
        self._connection.write(self._chunk(_encode(last)) + b"0\r\n\r\n")
        self._connection.over()

    def broke(self, kind: str, message: str) -> None:
        connection = self._connection
        if kind == "refuse":
            connection.refuse(503, "unavailable_error", message)
        elif kind == "500":
            connection.refuse(500, "server_error", message)
        elif kind == "invalid":
            connection.refuse(400, "invalid_request_error", message)
        elif kind == "context":
            connection.refuse(
                400,
                "exceed_context_size_error",
                message,
                n_prompt_tokens=self._prompt_tokens,
                n_ctx=self._server.machine.ctx,
            )
        elif kind == "garbage":
            connection.write(self._chunk(b'{"content": <<<') + b"0\r\n\r\n")
            connection.over()
        elif kind == "utf8":
            connection.write(self._chunk(self._frame("@", [3]).replace(b"@", b"\xff\xc3")) + b"0\r\n\r\n")
            connection.over()
        elif kind == "error":
            error = {"error": {"code": 500, "message": message, "type": "server_error"}}
            connection.write(self._chunk(_encode(error)) + b"0\r\n\r\n")
            connection.over()
        elif kind == "unfinished":
            connection.write(b"0\r\n\r\n")
            connection.over()
        elif kind == "cut":
            connection.abort()
        else:  # die, gone
            self._server.die()

    def blocked(self) -> bool:
        return self.full

    def _frame(self, text: str, ids: list[int], **more: Any) -> bytes:
        return _encode(
            {
                "index": 0,
                "content": text,
                "tokens": ids,
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": self._counted,
                "tokens_evaluated": self._prompt_tokens,
                **more,
            }
        )

    @staticmethod
    def _chunk(payload: bytes) -> bytes:
        frame = b"data: " + payload + b"\n\n"
        return b"%x\r\n%b\r\n" % (len(frame), frame)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="llama_orch.plugins.engines._mock_server")
    parser.add_argument("--port", type=int, required=True, help="0 = any free one; the first line says which")
    parser.add_argument("--script", default="{}", help="default knobs as a JSON object")
    parser.add_argument("--slots", type=int, default=DEFAULT_SLOTS)
    parser.add_argument("--ctx", type=int, default=DEFAULT_CTX, help="tokens per slot")
    parser.add_argument("--model", default="mock")
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
