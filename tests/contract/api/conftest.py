"""Live servers for the tests of routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama_orch.api.auth import Secrets
from llama_orch.api.logs import EventLog

from .live_server import LiveServer, mock_settings


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """Starts servers and ends them."""
    started: list[LiveServer] = []

    def make(log: EventLog | None = None, secrets: Secrets | None = None, **changes: Any) -> LiveServer:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        server = LiveServer(folder, mock_settings(**changes), log, secrets)
        started.append(server)
        return server.start()

    yield make
    for server in started:
        server.stop()


@pytest.fixture
def live(make_server: Callable[..., LiveServer]) -> LiveServer:
    return make_server()


@pytest.fixture
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client
