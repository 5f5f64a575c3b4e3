"""An HTTP server for files, with ranges and ETags; it speaks the hub's API and a registry's, and fails as it is told.

Faults of a path are used up one per GET:

    ("cut", n)       n bytes of the body come, then the connection ends
    ("stall", n)     n bytes come, then nothing until the client goes
    ("status", n)    that status, with Retry-After: 0
    ("says", n)      announces n bytes, whatever comes
    ("chunked", n)   announces no length, and appends n bytes
    ("no-range", 0)  sends all of it whatever was asked for
    ("shifted", n)   sends a part that begins n bytes later than asked for
    ("flip", n)      one bit of the byte n is another one
    ("drop-etag", 0) says nothing about what the content is called
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from .model_files import sha256


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class ModelServer:
    """What it has, what it was asked, and how it will fail."""

    port: int = 0
    scheme: str = "http"
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    #: path -> where it leads
    redirects: dict[str, str] = field(default_factory=dict)
    #: "org/name" -> {file: content}
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    #: "org/name" -> its commits' own names, e.g. {"main": "…"}
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    #: repositories that ask for this token
    tokens: dict[str, str] = field(default_factory=dict)
    #: answers of the hub's API that are not made from the repositories
    infos: dict[str, object] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    #: set when a stalled body has begun
    stalled: threading.Event = field(default_factory=threading.Event)
    #: set to let stalled ones go
    leave: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def gets(self, path: str = "") -> list[Asked]:
        """The GETs, of a path where one is given."""
        return [one for one in self.asked if one.method == "GET" and (not path or one.path.split("?")[0] == path)]

    def bytes_asked(self) -> list[Asked]:
        """The GETs of contents: neither the hub's API nor manifests."""
        return [one for one in self.gets() if not one.path.startswith("/api/") and "/manifests/" not in one.path]

    def publish(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Put a revision into a repository; returns its commit."""
        commit = hashlib.sha1(json.dumps({n: sha256(c) for n, c in files.items()}, sort_keys=True).encode()).hexdigest()
        self.repositories[repository] = files
        self.branches.setdefault(repository, {})[branch] = commit
        for name, content in files.items():
            path = f"/{repository}/resolve/{commit}/{name}"
            if is_lfs(name):
                self.files[f"/cdn/{sha256(content)}"] = content
                self.redirects[path] = f"{self.scheme}://localhost:{self.port}/cdn/{sha256(content)}?sig=s3cr3t"
            else:
                self.files[path] = content
        return commit

    def push_image(self, name: str, tag: str, layers: list[tuple[str, str, bytes]]) -> str:
        """Put a manifest into the registry: ``(media type, title, content)`` per layer; returns its digest."""
        listed = []
        for media_type, title, content in layers:
            digest = f"sha256:{sha256(content)}"
            self.files[f"/v2/{name}/blobs/{digest}"] = content
            listed.append(
                {"mediaType": media_type, "digest": digest, "size": len(content)}
                | ({"annotations": {"org.opencontainers.image.title": title}} if title else {})
            )
        manifest = json.dumps({"schemaVersion": 2, "layers": listed}).encode()
        digest = f"sha256:{sha256(manifest)}"
        self.files[f"/v2/{name}/manifests/{tag}"] = self.files[f"/v2/{name}/manifests/{digest}"] = manifest
        return digest


def is_lfs(name: str) -> bool:
    """Files that the hub keeps in its large store."""
    return name.endswith((".gguf", ".safetensors"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ModelServer

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        state = self.state
        self.close_connection = True
        state.asked.append(Asked(self.command, self.path, dict(self.headers)))
        path = unquote(urlsplit(self.path).path)
        queue = state.faults.get(path, []) if self.command == "GET" else []
        kind, number = queue.pop(0) if queue else ("", 0)
        if kind == "status":
            self._answer(number, b"", {"Retry-After": "0"})
        elif path.startswith("/api/models/"):
            self._hub(path)
        elif path.startswith("/v2/") and self._registry_refuses():
            host = self.headers["Host"]
            self._answer(
                401, b"", {"WWW-Authenticate": f'Bearer realm="http://{host}/token",service="here",scope="pull"'}
            )
        elif path == "/token":
            self._answer(200, json.dumps({"token": "anonymous-token"}).encode(), {})
        elif path in state.redirects:
            self._answer(302, b"", {"Location": state.redirects[path]})
        elif path in state.files:
            self._file(path, state.files[path], kind, number)
        else:
            self._answer(404, b"", {})

    def _registry_refuses(self) -> bool:
        return "/v2/" in self.state.tokens and self.headers.get("Authorization") != "Bearer anonymous-token"

    def _hub(self, path: str) -> None:
        state = self.state
        found = re.match(r"^/api/models/([^/]+/[^/]+)(?:/revision/(.+))?$", path)
        name, revision = (found[1], found[2] or "main") if found else ("", "")
        if name in state.infos:
            self._answer(200, json.dumps(state.infos[name]).encode(), {"Content-Type": "application/json"})
            return
        if name not in state.repositories:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        if name in state.tokens and self.headers.get("Authorization") != f"Bearer {state.tokens[name]}":
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        commits = state.branches[name]
        commit = commits.get(revision, revision if revision in commits.values() else "")
        if not commit:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for file, content in state.repositories[name].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            lfs = {"lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 130}} if is_lfs(file) else {}
            siblings.append({"rfilename": file, "size": len(content), "blobId": blob} | lfs)
        info = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
        self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, path: str, content: bytes, kind: str, number: int) -> None:
        headers: dict[str, str] = {"Accept-Ranges": "bytes"}
        etag = self.state.etags.get(path, f'"{sha256(content)[:20]}"')
        if etag and kind != "drop-etag":
            headers["ETag"] = etag
        status, start = 200, 0
        asked = re.match(r"^bytes=(\d+)-$", self.headers.get("Range", ""))
        if asked and kind != "no-range" and self.headers.get("If-Range", etag) == etag:
            status, start = 206, int(asked[1]) + (number if kind == "shifted" else 0)
            if start >= len(content):
                self._answer(416, b"", {})
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if kind == "flip":
            at = number - start
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if kind == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(number if kind == "says" else len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "chunked":
            body += b"x" * number
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            return
        self.wfile.write(body[:number] if kind in {"cut", "stall"} else body)
        if kind == "stall":
            self.wfile.flush()
            self.state.stalled.set()
            self.state.leave.wait(60)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of what is tested."""


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[ModelServer]:
    """A server on a free port of this machine."""
    state = ModelServer(scheme="https" if context else "http")
    handler = type("Handler", (_Handler,), {"state": state})
    http = _Server(("127.0.0.1", 0), handler)
    if context is not None:
        http.socket = context.wrap_socket(http.socket, server_side=True)
    state.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.leave.set()
        http.shutdown()
        thread.join()
        http.server_close()
