"""What can be wrong with a pool, on real llama.cpp: its cause and advice in `pools`, in health, and in a client's error."""

from __future__ import annotations

import json
import socket
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
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        for name in ("taken", "good"):
            (folder / f"{name}.gguf").write_bytes(whole.read_bytes())
        more = {
            "taken": {"provisioning": {"port": blocker.getsockname()[1]}},
            "good": {"slots": 1, "provisioning": {"threads": 1}},
        }
        home = Home(tmp_path_factory.mktemp("home"))
        home.configure(
            {
                "pools": [
                    {"id": name, "model": str(folder / f"{name}.gguf"), "aliases": [f"m-{name}"], **more.get(name, {})}
                    for name in [*EXPECTED, "good"]
                ]
            }
        )
        made = Server(home)
        try:
            made.start()
            for name, (cause, _, _) in EXPECTED.items():
                wait_until(lambda name=name, cause=cause: _error(made, name).get("cause") == cause, f"{name}: {cause}")
            yield made
        finally:
            made.close()


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


def test_what_was_mended_is_tried_at_once_by_a_reload(server):
    """Comes last: it mends a pool that the others need broken."""
    path = Path(server.get("/v1/pools/truncated/health")["model_source"])
    path.write_bytes((path.parent / "whole.gguf").read_bytes())
    done = server.home.call("pools", "reload", "truncated", "--wait")
    assert done.status == 0, done.err
    assert server.get("/v1/pools/truncated/health")["ready"]
    chat = {"model": "m-truncated", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    assert server.post("/v1/chat/completions", chat)["choices"]
