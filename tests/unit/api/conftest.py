"""An application over scripted services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llama_orch.api.app import create_app
from llama_orch.core.settings import LimitSettings, Settings

from .fakes import Answer, AsgiClient, FakeServices


@pytest.fixture
def services() -> FakeServices:
    return FakeServices()


@pytest.fixture
def ask(services: FakeServices) -> Callable[..., Answer]:
    """Sends one request and waits for the answer."""
    settings = Settings(
        limits=LimitSettings(body_bytes=4096), allowed_hosts=["box.lan"], allowed_origins=["https://ui.example"]
    )
    app = create_app(
        services, settings, version="1.2.3", now_ns=lambda: 1_700_000_000_000_000_000, new_id=lambda: "made"
    )

    def request(method: str, path: str, *, leave_after: int | None = None, **rest: Any) -> Answer:
        return asyncio.run(AsgiClient(app, leave_after).request(method, path, **rest))

    return request
