"""The SDK over TLS, against the real server: whom it trusts, what it shows, and that keys go nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from llama_orch.client import AsyncClient, Client, LlamaOrchError, Task, TaskRequest, UnreachableError
from llama_orch.core.auth_settings import TlsSettings

from ..api.certificates import Authority
from ..api.live_server import LiveServer, mock_settings

REQUEST = TaskRequest(model_ref="mock", prompt="[[mock tokens=30]]", seed=1)


class Lab:
    """A server that asks for certificates of one authority."""

    def __init__(self, folder: Path) -> None:
        self.ours, self.theirs = Authority(folder, "ours"), Authority(folder, "theirs")
        self.alice, self.mallory = self.ours.issue("alice"), self.theirs.issue("mallory")
        cert, key = self.ours.issue("server")
        tls = TlsSettings(cert_file=cert, key_file=key, client_ca_file=str(self.ours.ca_file))
        self.server = LiveServer(folder, mock_settings(tls=tls)).start()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.server.stop()


def by_thread(url: str, **options: Any) -> tuple[str, Task]:
    with Client(url, "any", retries=0, **options) as client:
        task = client.submit(REQUEST)
        return "".join(task.text()), task.wait()


def by_loop(url: str, **options: Any) -> tuple[str, Task]:
    async def scene() -> tuple[str, Task]:
        async with AsyncClient(url, "any", retries=0, **options) as client:
            task = await client.submit(REQUEST)
            return "".join([piece async for piece in task.text()]), await task.wait()

    return asyncio.run(scene())


Both = pytest.mark.parametrize("run", [by_thread, by_loop])


@Both
def test_who_trusts_the_server_and_shows_a_certificate_is_served(run: Callable[..., Any], lab: Lab) -> None:
    text, task = run(lab.server.url, ca_file=lab.ours.ca_file, client_cert=lab.alice)
    assert text == task.text
    assert task.usage.completion_tokens == 30


@Both
def test_a_server_of_another_authority_is_not_spoken_to(run: Callable[..., Any], lab: Lab) -> None:
    for trusted in ({}, {"ca_file": lab.theirs.ca_file}):
        with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
            run(lab.server.url, client_cert=lab.alice, **trusted)


@Both
@pytest.mark.parametrize("shown", [None, "mallory"])
def test_without_a_certificate_of_the_authority_there_is_no_answer(
    run: Callable[..., Any], shown: str | None, lab: Lab
) -> None:
    with pytest.raises(UnreachableError):
        run(lab.server.url, ca_file=lab.ours.ca_file, client_cert=lab.mallory if shown else None)


def test_a_redirect_is_not_followed_with_the_key() -> None:
    asked: list[str] = []

    def elsewhere(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return httpx2.Response(307, headers={"Location": "http://elsewhere/v1/pools"})

    with Client("http://server", "key", transport=httpx2.MockTransport(elsewhere)) as client:
        with pytest.raises(LlamaOrchError, match="no redirect is followed"):
            client.pools()
    assert asked == ["http://server/v1/pools"]


def test_proxies_of_the_environment_are_not_asked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    text, _ = by_thread(lab.server.url, ca_file=lab.ours.ca_file, client_cert=lab.alice)
    assert text
