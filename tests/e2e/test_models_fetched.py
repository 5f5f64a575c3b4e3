"""A model that is named by an address: fetched when a task asks for it, held while it is loaded, kept offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.haiku import model_path

from ..support.model_server import serving
from .conftest import Home, Server, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.real_llama]


def test_a_task_for_an_address_fetches_loads_and_answers(home: Home) -> None:
    with serving() as files:
        files.publish("org/haiku-GGUF", {"haiku-Q8_0.gguf": Path(model_path()).read_bytes()})
        home.environ["HF_ENDPOINT"] = files.url
        home.configure(
            {
                "bind": "127.0.0.1:0",
                "models": {"poet": "hf:org/haiku-GGUF:Q8_0"},
                "pools": [],
                "model_pools": {"devices": "cpu", "provisioning": {"threads": 1}},
            }
        )
        server = Server(home).start(ready=False)
        try:
            done = home.call("run", "-m", "poet", "--max-tokens", "8", "Write a haiku about rain")
            assert done.status == 0, done.err + server.log
            assert done.out.strip()
            (model,) = home.json("models", "list")["models"]
            assert (model["name"], model["state"], model["verification"]) == ("poet", "loaded", "verified")
            assert home.call("models", "rm", "poet").status == 1
        finally:
            server.stop()
    wait_until(lambda: home.json("models", "list")["models"][0]["state"] == "ready", "the engine to be gone")
    server = Server(home).start(ready=False)  # nobody serves the address any more
    try:
        done = home.call("run", "-m", "poet", "--max-tokens", "8", "Write a haiku about snow")
        assert done.status == 0, done.err + server.log
    finally:
        server.stop()
