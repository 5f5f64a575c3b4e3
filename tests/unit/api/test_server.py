"""Where the server binds, and where it refuses to (AUTH-1)."""

from __future__ import annotations

import resource
import socket

import pytest

from llama_orch.api.server import allow_open_files, listening_socket, loopback_socket, parse_bind, reaches_out, url_of
from llama_orch.core.errors import ConfigError


@pytest.mark.parametrize(
    "bind, parsed",
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:8080", ("::1", 8080)),
        ("box:65535", ("box", 65535)),
    ],
)
def test_binds_are_host_and_port(bind: str, parsed: tuple[str, int]) -> None:
    assert parse_bind(bind) == parsed


@pytest.mark.parametrize(
    "bind", ["", "8080", ":8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "a:65536", "a:-1", "a:٣"]
)
def test_other_texts_are_refused_with_an_example(bind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bind(bind)
    assert caught.value.field == "bind"
    assert "127.0.0.1:8080" in caught.value.message


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "10.0.0.1:0"])
def test_an_address_that_others_can_reach_refuses_to_start(bind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loopback_socket(bind)
    assert caught.value.field == "bind"
    assert "reachable from outside" in caught.value.message
    assert "127.0.0.1" in caught.value.what_to_do


def test_a_name_that_does_not_resolve_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be resolved"):
        loopback_socket("nowhere.invalid:0")


def test_a_taken_port_is_refused_with_advice() -> None:
    with loopback_socket("127.0.0.1:0") as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            loopback_socket(f"127.0.0.1:{port}")
    assert "cannot be used" in caught.value.message
    assert "llama-orch status" in caught.value.what_to_do


def test_sockets_send_small_writes_at_once() -> None:
    with loopback_socket("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_limit_of_open_files_is_raised_for_connections_and_never_lowered() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        low = min(before[0], 300)
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, before[1]))
        allow_open_files(10)
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised == (min(532, before[1]), before[1])
        allow_open_files(1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_urls_have_brackets_around_ipv6() -> None:
    with loopback_socket("127.0.0.1:0") as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if socket.has_ipv6:
        with loopback_socket("[::1]:0") as listener:
            assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


@pytest.mark.parametrize("bind, host", [("0.0.0.0:0", "127.0.0.1"), ("127.0.0.1:0", "127.0.0.1")])
def test_an_address_for_everybody_is_told_as_one_that_this_machine_can_ask(bind: str, host: str) -> None:
    with listening_socket(bind) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://{host}:{port}"
        assert url_of(listener, "https") == f"https://{host}:{port}"
        assert reaches_out(listener) == (bind != "127.0.0.1:0")
