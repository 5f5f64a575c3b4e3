"""A shell whose streams a test reads, and an HTTP server that answers as a test says."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llama_orch.cli.main import main
from llama_orch.cli.shell import Shell


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Call:
    """One call of the command line and what came of it."""

    status: int
    out: str
    err: str


@dataclass
class Caller:
    """Calls the command line in this process."""

    environ: dict[str, str]

    def __call__(self, *arguments: str, stdin: str = "", terminal: bool = False) -> Call:
        kind = Terminal if terminal else io.StringIO
        shell = Shell(stdin=kind(stdin), stdout=kind(), stderr=kind(), environ=self.environ)
        status = main(list(arguments), shell)
        assert isinstance(shell.stdout, io.StringIO)
        assert isinstance(shell.stderr, io.StringIO)
        return Call(status, shell.stdout.getvalue(), shell.stderr.getvalue())


@pytest.fixture
def call(tmp_path, monkeypatch) -> Caller:
    """The command line with a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    return Caller({"LLORCH_DATA_DIR": str(tmp_path / "data")})


@dataclass
class Said:
    """A request that the server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """What the server says: JSON, or raw chunks after which it may cut the connection."""

    status: int = 200
    body: Any = None
    chunks: list[bytes] | None = None


@dataclass
class FakeServer:
    """Answers each ``(method, path without query)`` with its answers in turn; the last one stays."""

    url: str = ""
    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self.answers[method, path] = list(answers)

    def asked(self, method: str, path: str) -> list[Said]:
        return [said for said in self.said if said.method == method and said.path.split("?")[0] == path]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            raw = self.rfile.read(length)
            body = json.loads(raw) if raw else None
            fake.said.append(Said(self.command, self.path, dict(self.headers), body))
            turns = fake.answers.get((self.command, self.path.split("?")[0]))
            if not turns:
                answer = Answer(404, {"code": "NOT_FOUND", "message": f"no {self.path}", "remedy": "Check the id."})
            else:
                answer = turns.pop(0) if len(turns) > 1 else turns[0]
            self.send_response(answer.status)
            if answer.chunks is not None:
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for chunk in answer.chunks:
                    self.wfile.write(chunk)
                    self.wfile.flush()
                return
            text = b"" if answer.body is None else json.dumps(answer.body).encode()
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def frame() -> Callable[..., bytes]:
    """Bytes of one SSE frame."""

    def make(event: str, data: dict[str, Any], id: str = "") -> bytes:
        head = f"id: {id}\n" if id else ""
        return f"{head}event: {event}\ndata: {json.dumps(data)}\n\n".encode()

    return make
