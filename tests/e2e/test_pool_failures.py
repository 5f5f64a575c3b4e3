"""What can be wrong with a pool, on real llama.cpp: its cause and advice in `pools`, in health, and in a client's error."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from ..engines.tiny_gguf import write_model
from .conftest import Home, Server, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.real_llama]

#: what engines on a machine with GPUs say, told by a program that says it and ends: pool -> (its words, cause, advice)
WORDS = {
    "oom": (
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 21870.00 MiB on device 0: cudaMalloc failed: out of memory",
        "vram-oom",
        "name more GPUs",
    ),
    "library": (
        "llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file",
        "missing-library",
        "Install it",
    ),
    "driver": (
        "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected",
        "driver-gone",
        "nvidia-smi",
    ),
}
#: pool -> (cause, what its detail says, what its advice says)
EXPECTED = {
    "corrupt": ("bad-model", "", "fetch"),
    "truncated": ("bad-model", "", "fetch"),
    "unknown": ("wrong-architecture", "nonesuch", "newer engine"),
    "taken": ("port-taken", "127.0.0.1:", "provisioning.port to 0"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with a pool for each thing that can be wrong, and one that serves."""
    folder = tmp_path_factory.mktemp("broken")
    whole = write_model(folder / "whole.gguf")
    (folder / "corrupt.gguf").write_bytes(b"GGUF" + bytes(range(64)))
    (folder / "truncated.gguf").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    _unknown(folder / "unknown.gguf", whole)
    with socket.create_server(("127.0.0.1", 0)) as blocker, _served(WORDS) as programs:
        for name in ("taken", "good", *WORDS):
            (folder / f"{name}.gguf").write_bytes(whole.read_bytes())
        more = {
            "taken": {"provisioning": {"port": blocker.getsockname()[1]}},
            "good": {"slots": 1, "provisioning": {"threads": 1}},
            **{name: {"provisioning": {"mode": "binary", **program}} for name, program in programs.items()},
        }
        home = Home(tmp_path_factory.mktemp("home"))
        home.configure(
            {
                "pools": [
                    {"id": name, "model": str(folder / f"{name}.gguf"), "aliases": [f"m-{name}"], **more.get(name, {})}
                    for name in [*EXPECTED, *WORDS, "good"]
                ]
            }
        )
        made = Server(home)
        try:
            made.start()
            for name, (cause, _, _) in EXPECTED.items():
                wait_until(lambda name=name, cause=cause: _error(made, name).get("cause") == cause, f"{name}: {cause}")
            for name, (_, cause, _) in WORDS.items():
                wait_until(lambda name=name, cause=cause: cause in _causes(made, name), f"{name}: {cause}")
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def _served(words: dict[str, tuple[str, str, str]]) -> Iterator[dict[str, dict[str, str]]]:
    """Programs that say these words and end, behind a local HTTP server; where each is, and its digest."""
    programs = {
        name: f"#!/bin/sh\ncase \"$1\" in --version|--help) echo 'version: 1'; exit 0;; esac\necho '{said}' >&2\nexit 1\n"
        for name, (said, _, _) in words.items()
    }

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            raw = programs[self.path.strip("/").partition("/")[0]].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None: ...

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield {
            name: {
                "url": f"http://127.0.0.1:{listener.server_address[1]}/{name}/llama-server",
                "sha256": hashlib.sha256(program.encode()).hexdigest(),
            }
            for name, program in programs.items()
        }
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def _causes(server: Server, pool: str) -> set[str]:
    error = _error(server, pool)
    return {error.get("cause", ""), error.get("last_cause", "")}


def _unknown(path: Path, whole: Path) -> None:
    """A model of an architecture that nobody knows, whole otherwise."""
    raw = whole.read_bytes()
    key = gguf.Keys.General.ARCHITECTURE.encode()
    at = raw.index(key) + len(key) + 4
    length = int.from_bytes(raw[at : at + 8], "little")
    name = b"nonesuch"
    # The head grows; what follows it is aligned anew with a key of its own that nobody reads.
    grown = raw[:at] + len(name).to_bytes(8, "little") + name + raw[at + 8 + length :]
    path.write_bytes(grown)


def _error(server: Server, pool: str) -> dict[str, Any]:
    return server.get(f"/v1/pools/{pool}/health")["last_error"] or {}


def _refused(server: Server, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    return refused.value.code, json.load(refused.value)


@pytest.mark.parametrize("name", EXPECTED)
def test_health_tells_cause_detail_and_advice(server, name):
    cause, detail, advice = EXPECTED[name]
    error = _error(server, name)
    assert error["cause"] == cause
    assert detail in error["detail"]
    assert advice in error["advice"]
    assert error["retry_ms"] >= 0


@pytest.mark.parametrize("name", EXPECTED)
def test_pools_shows_cause_and_advice(server, name):
    cause, _, advice = EXPECTED[name]
    lines = server.home.call("pools").out.splitlines()
    (at,) = [n for n, line in enumerate(lines) if line.startswith(f"{name}: ")]
    assert cause in lines[at]
    assert advice in lines[at + 1]
    (row,) = [line for line in lines if line.startswith(f"{name}\t")]
    assert row.split("\t")[1] == "failed"
    assert row.split("\t")[-1] == cause


@pytest.mark.parametrize("name", EXPECTED)
def test_a_client_is_refused_at_once_with_cause_and_advice(server, name):
    cause, detail, advice = EXPECTED[name]
    status, body = _refused(server, "/v1/tasks", {"model_ref": f"m-{name}", "prompt": "hi"})
    assert (status, body["code"], body["pool_id"], body["cause"]) == (503, "POOL_UNREADY", name, cause)
    assert detail in body["message"]
    assert advice in body["remedy"]
    chat = {"model": f"m-{name}", "messages": [{"role": "user", "content": "hi"}]}
    status, body = _refused(server, "/v1/chat/completions", chat)
    assert (status, body["error"]["code"]) == (503, "POOL_UNREADY")
    assert cause in body["error"]["message"]
    assert advice in json.dumps(body["error"])


@pytest.mark.parametrize("name", WORDS)
def test_what_hardware_does_is_told_everywhere_too(server, name):
    words, cause, advice = WORDS[name]
    settled = "missing-library" if cause == "missing-library" else "circuit-open"
    wait_until(lambda: _error(server, name).get("cause") == settled, f"{name}: {settled}")
    error = _error(server, name)
    assert words in error["detail"]
    assert advice in error["advice"]
    assert cause in _causes(server, name)
    assert cause in server.home.call("pools").out
    status, body = _refused(server, "/v1/tasks", {"model_ref": f"m-{name}", "prompt": "hi"})
    assert (status, body["code"]) == (503, "POOL_UNREADY")
    assert cause in {body["cause"], body.get("last_cause")}
    assert words in body["message"]
    assert advice in body["remedy"]


def test_the_other_pools_are_not_concerned(server):
    chat = {"model": "m-good", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    assert server.post("/v1/chat/completions", chat)["choices"]
    assert server.get("/v1/pools/good/health")["last_error"] is None


def test_logs_of_a_pool_are_shown(server):
    done = server.home.call("pools", "logs", "unknown")
    assert done.status == 0, done.err
    assert "nonesuch" in done.out
    refused = server.home.call("pools", "logs", "no-such-pool")
    assert refused.status != 0
    assert "`llama-orch pools` lists the pools" in refused.err


def test_one_pool_is_shown_in_words(server):
    done = server.home.call("pools", "show", "good")
    assert done.status == 0
    assert done.out.startswith("good: ready\n")
    assert "predicted" in done.out
    assert server.home.json("pools", "show", "good")["memory"]["cpu"]["observed_bytes"] > 0


@pytest.mark.parametrize("name, command", [("truncated", ["reload", "--wait"]), ("corrupt", ["undrain"])])
def test_what_was_mended_is_tried_at_once(server, name, command):
    """Comes last: it mends pools that the others need broken."""
    path = Path(server.get(f"/v1/pools/{name}/health")["model_source"])
    path.write_bytes((path.parent / "whole.gguf").read_bytes())
    done = server.home.call("pools", command[0], name, *command[1:])
    assert done.status == 0, done.err
    wait_until(lambda: server.get(f"/v1/pools/{name}/health")["ready"], f"{name} is ready")
    chat = {"model": f"m-{name}", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    assert server.post("/v1/chat/completions", chat)["choices"]
