"""A server of archives that can misbehave, stand-ins for `llama-server`, a catalog."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llama_orch.pools.provisioning import EngineCatalog

#: answers as upstream's server does
SERVER = b"""#!/bin/sh
case "$1" in
  --version) echo "version: 4711 (abc1234)" >&2; echo "built with cc for x86_64" >&2 ;;
  --help) echo "-m, --model FNAME  model"; echo "--metrics  --slots  --no-webui  --fit [on|off]" ;;
  *) exit 9 ;;
esac
"""


class FileServer:
    """Serves files from memory; ``faults`` are used up one a request.

    Faults: ``cut:N`` ends the connection behind N bytes, ``status:N`` answers so, ``whole`` ignores ranges, ``gap`` begins
    elsewhere than asked, ``to:URL`` redirects.
    """

    def __init__(self):
        self.files = {}
        self.faults = []
        self.ranges = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, format, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request):
        fault = self.faults.pop(0) if self.faults else ""
        kind, _, value = fault.partition(":")
        wanted = request.headers.get("Range", "")
        self.ranges.append(wanted)
        content = self.files.get(request.path.partition("?")[0])
        if content is None or kind == "status":
            request.send_error(int(value) if kind == "status" else 404)
            return
        if kind == "to":
            request.send_response(302)
            request.send_header("Location", value)
            request.end_headers()
            return
        begin = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and kind != "whole" else 0
        if begin >= len(content) and wanted:
            request.send_error(416)
            return
        if begin and kind == "gap":
            begin = min(begin + 1, len(content) - 1)
        request.send_response(206 if begin else 200)
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - begin))
        request.end_headers()
        end = begin + int(value) if kind == "cut" else len(content)
        request.wfile.write(content[begin:end])
        request.close_connection = True

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def files():
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def catalog(tmp_path):
    return EngineCatalog(tmp_path / "data" / "engine-catalog")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def tar_of(members, mode="w:gz"):
    """An archive of ``{name: bytes}``; a name that ends with ``*`` is executable."""
    made = io.BytesIO()
    opened: Any = tarfile.open
    with opened(fileobj=made, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.rstrip("*"))
            info.size, info.mode = len(content), 0o755 if name.endswith("*") else 0o644
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def zip_of(members):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return made.getvalue()


def tree_of(root: Path):
    """Everything below a directory, for a look at what was left."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*")) if root.exists() else []
