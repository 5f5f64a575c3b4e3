"""Which Host and Origin may speak to a loopback server (AUTH-1)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llama_orch.api.gate import Gate
from llama_orch.core.errors import ForbiddenError

from .fakes import Answer, FakeServices

GATE = Gate(["box.lan", "box.lan:81", "[fe80::1]"], ["https://ui.example"])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.9.8.7:1",
        "localhost",
        "LocalHost:8080",
        "api.localhost:8080",
        "localhost.",
        "[::1]",
        "[::1]:8080",
        "box.lan",
        "box.lan:80",
        "BOX.lan:81",
        "[fe80::1]:80",
    ],
)
def test_loopback_and_configured_hosts_pass(host: str) -> None:
    GATE.check([(b"host", host.encode())])
    GATE.check([(b"host", host.encode())])  # and again, from memory


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "notlocalhost",
        "10.0.0.1",
        "0.0.0.0",
        "[::]",
        "[::ffff:10.0.0.1]",
        "169.254.169.254",
        "2130706433",
        "box.lan.evil.example",
        "evil.example@127.0.0.1",
        "\xff",
    ],
)
def test_other_hosts_are_refused_by_name_with_the_setting(host: str) -> None:
    with pytest.raises(ForbiddenError) as caught:
        GATE.check([(b"host", host.encode("latin-1"))])
    assert caught.value.field == "Host"
    assert "allowed_hosts" in caught.value.what_to_do


def test_no_host_and_two_hosts_are_refused() -> None:
    for headers in ([], [(b"host", b"127.0.0.1"), (b"host", b"evil.example")], [(b"host", b"127.0.0.1")] * 2):
        with pytest.raises(ForbiddenError):
            GATE.check(headers)


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8080", "HTTPS://ui.example", "https://ui.example/"])
def test_own_and_configured_origins_pass(origin: str) -> None:
    GATE.check([(b"host", b"127.0.0.1:8080"), (b"origin", origin.encode())])


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:9",
        "http://ui.example",
        "https://ui.example.evil",
        "https://ui.example:444",
    ],
)
def test_other_origins_are_refused_by_name_with_the_setting(origin: str) -> None:
    with pytest.raises(ForbiddenError) as caught:
        GATE.check([(b"host", b"127.0.0.1:8080"), (b"origin", origin.encode())])
    assert caught.value.field == "Origin"
    assert "allowed_origins" in caught.value.what_to_do


@pytest.mark.parametrize("path", ["/health", "/v1/tasks", "/v1/chat/completions", "/nowhere"])
def test_every_route_is_behind_the_gate(ask: Callable[..., Answer], services: FakeServices, path: str) -> None:
    answer = ask("POST", path, host="evil.example", body=b"{}")
    said = answer.json()
    assert answer.status == 403
    assert (said.get("error") or said)["code"] == "FORBIDDEN"
    assert ("error" in said) == (path == "/v1/chat/completions")
    assert services.asked == []


def test_no_answer_allows_other_origins_to_read(ask: Callable[..., Answer]) -> None:
    for method in ("GET", "OPTIONS"):
        answer = ask(method, "/health", headers={"Origin": "https://ui.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_any_bearer_is_accepted(ask: Callable[..., Answer], services: FakeServices) -> None:
    answer = ask("GET", "/v1/tasks", headers={"Authorization": "Bearer whatever"})
    assert answer.status == 200


@pytest.mark.parametrize("host", ["192.168.1.5:8080", "10.0.0.1", "[2001:db8::1]:443"])
def test_where_others_reach_the_server_an_address_is_no_name_that_can_be_rebound(host: str) -> None:
    Gate(addresses=True).check([(b"host", host.encode())])
    with pytest.raises(ForbiddenError):
        Gate().check([(b"host", host.encode())])


@pytest.mark.parametrize("host", ["evil.example", "192.168.1.5.evil.example", "1.2.3.4.5", "0x7f000001.example", ""])
def test_names_have_to_be_configured_there_too(host: str) -> None:
    with pytest.raises(ForbiddenError):
        Gate(addresses=True).check([(b"host", host.encode())])
