"""What types cannot say about a configuration."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.cli.config import load
from llama_orch.cli.config_check import bind_fault, faults, split_bind

OFFERS = {
    "engines": ["llamacpp", "mock"],
    "launchers": ["llamacpp"],
    "policies": ["default"],
    "stores": ["sqlite", "postgresql"],
}


def found(tmp_path, monkeypatch, plain) -> list[str]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "c.yaml"
    path.write_bytes(msgspec.yaml.encode(plain))
    return [str(fault) for fault in faults(load(path, environ={}), **OFFERS)]


def test_the_defaults_are_sound(tmp_path, monkeypatch):
    assert found(tmp_path, monkeypatch, {}) == []


@pytest.mark.parametrize(
    "plain, expected",
    [
        ({"pools": [{"id": "a"}, {"id": "b"}, {"id": "a"}]}, "c.yaml:4: pools[2].id 'a' is taken by pools[0]"),
        ({"bind": ":80"}, "c.yaml:1: bind got ':80'; say 0.0.0.0:80 for every address of this machine, or name one"),
        ({"auth": {"oidc": {"issuer": "https://id.example"}}}, "auth.oidc.audience is missing: without it tokens for other"),
        ({"auth": {"oidc": {"audience": "llama-orch"}}}, "auth.oidc.issuer is missing"),
        ({"auth": {"oidc": {"issuer": "http://id.example", "audience": "a"}}}, "takes an https:// address"),
        ({"auth": {"oidc": {"issuer": "http://localhost.evil.example", "audience": "a"}}}, "takes an https:// address"),
        ({"auth": {"proxy": {"header": "X-User"}}}, "auth.proxy.peers is missing: whose header is to be believed?"),
        ({"auth": {"proxy": {"peers": ["10.0.0.1"]}}}, "auth.proxy.header is missing"),
        ({"auth": {"proxy": {"header": "X-Api-Key", "peers": ["10.0.0.1"]}}}, "which clients send themselves"),
        ({"auth": {"proxy": {"header": "X-User", "peers": ["everyone"]}}}, "got 'everyone', takes addresses or networks"),
        ({"bind": "nonsense"}, "bind got 'nonsense', takes host:port"),
        ({"pools": [{"id": "a", "engine": "llamacp"}]}, "pools[0].engine got 'llamacp', which is no known engine; did you mean 'llamacpp'?"),
        ({"pools": [{"id": "a", "engine": "tgi"}]}, "which is no known engine; known are llamacpp, mock"),
        ({"pools": [{"id": "a", "model": "llama3"}]}, "there is no file llama3; name a GGUF file"),
        ({"pools": [{"id": "a", "engine": "mock", "model": "none/x"}]}, "pools[0].model there is no file"),
        ({"pools": [{"id": "a", "model": "none.gguf"}]}, "pools[0].model there is no file"),
        ({"pools": [{"id": "a", "model": "./"}]}, "is no file; name the GGUF file in it"),
        ({"pools": [{"id": "a", "provisioning": {"mode": "external"}}]}, "pools[0].provisioning.url takes the engine's address"),
        ({"pools": [{"id": "a", "provisioning": {"url": "http://127.0.0.1:1"}}]}, "is only for mode: external"),
        ({"policies": {"placement": "defualt"}}, "no known placement policy; did you mean 'default'?"),
        ({"journal": {"url": "mysql://h/d"}}, "got 'mysql', which is no known kind of database; known are postgresql, sqlite"),
        ({"budgets": {"keys": [{"timezone": "Mars/Base"}]}}, "budgets.keys[0].timezone there is no time zone 'Mars/Base'"),
        ({"budgets": {"keys": [{"window": "day"}, {"window": "day"}]}}, "budgets.keys[1].window is that of budgets.keys[0] too"),
        ({"sessions": {"ttl_ms": 5, "max_ttl_ms": 4}}, "sessions.ttl_ms is more than sessions.max_ttl_ms allows (4)"),
        ({"sessions": {"turn_limit": 5, "max_turn_limit": 4}}, "sessions.turn_limit is more than sessions.max_turn_limit"),
        ({"models": {"fast": "haik"}}, "models.fast names the model 'haik', which no pool serves; did you mean 'haiku'?"),
    ],
)  # fmt: skip
def test_faults_name_key_place_and_remedy(tmp_path, monkeypatch, plain, expected):
    (told,) = found(tmp_path, monkeypatch, plain)
    assert expected in told


def test_a_whole_configuration_with_external_engines_is_sound(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    plain = {
        "bind": "[::1]:0",
        "models": {"gpt-4o": "m"},
        "journal": {"url": "postgresql+psycopg://u@h/d"},
        "pools": [
            {"id": "a", "model": "m.gguf"},
            {"id": "c", "engine": "mock", "model": "any-name"},
            {"id": "b", "engine": "mock", "model": "x", "provisioning": {"mode": "external", "url": "http://127.0.0.1:1/v"}},
        ],
    }  # fmt: skip
    assert found(tmp_path, monkeypatch, plain) == []


@pytest.mark.parametrize(
    "bind",
    [
        "127.0.0.1:8080",
        "127.9.9.9:1",
        "[::1]:0",
        "localhost:65535",
        "0.0.0.0:1",
        "[::]:1",
        "192.168.0.2:1",
        "box.lan:1",
    ],
)
def test_addresses_may_be_bound_whether_there_are_keys_is_seen_at_the_start(bind):
    assert bind_fault(bind) == ""


@pytest.mark.parametrize("bind", [":8080", "127.0.0.1", "127.0.0.1:65536", "::1:80", ""])
def test_nonsense_may_not(bind):
    assert bind_fault(bind)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused_in_words(text):
    fault = bind_fault(text)
    with contextlib.suppress(ValueError):
        host, port = split_bind(text)
        assert 0 <= port <= 65_535
        assert bool(host) == (fault == "")
        return
    assert "takes host:port" in fault
