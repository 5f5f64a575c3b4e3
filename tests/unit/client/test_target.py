"""Which server a client talks to, and with which key."""

from __future__ import annotations

import json
import ssl

import httpx2
import pytest

from llama_orch.client import LlamaOrchError, UnreachableError
from llama_orch.client.connection import unreachable
from llama_orch.client.target import Server, data_directory, target_of, trust


@pytest.fixture
def here(tmp_path):
    """The environment of a user whose server runs, and what changes its file."""

    def runs(**file: str) -> dict[str, str]:
        (tmp_path / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:1", **file}))
        return {"LLORCH_DATA_DIR": str(tmp_path)}

    return runs


def test_the_named_server_comes_before_the_environment_and_that_before_the_one_that_runs(here):
    environ = here()
    assert target_of(None, None, environ).server.url == "http://127.0.0.1:1"
    environ["LLORCH_URL"] = "https://there/prefix/"
    assert target_of(None, None, environ).server.url == "https://there/prefix"
    assert target_of("http://named", None, environ).server.url == "http://named"


def test_the_key_of_the_servers_file_goes_to_that_server_alone(here):
    environ = here(token="admin")
    assert target_of(None, None, environ).server.token == "admin"
    assert target_of("http://elsewhere", None, environ).server.token == "local"
    assert target_of(None, None, environ | {"LLORCH_URL": "http://elsewhere"}).server.token == "local"
    environ["LLORCH_API_TOKEN"] = "lo_mine"
    assert target_of(None, None, environ).server.token == "lo_mine"
    assert target_of("http://elsewhere", "lo_said", environ).server.token == "lo_said"


def test_the_servers_own_key_is_taken_also_where_its_address_is_named(here):
    environ = here(token="one", ca_file="/its.pem")
    for target in (
        target_of("http://127.0.0.1:1/", None, environ),
        target_of(None, None, environ | {"LLORCH_URL": "http://127.0.0.1:1"}),
    ):
        assert target.server == Server("http://127.0.0.1:1", "one", "/its.pem")
    here(url="http://127.0.0.1:2", token="two")
    assert target.look_again()
    assert target.server == Server("http://127.0.0.1:1", "local"), "a named server is not exchanged for another"
    assert target_of("http://127.0.0.1:2", None, {"LLORCH_DATA_DIR": "/no/such"}).server.token == "local"


def test_a_server_that_was_started_again_is_found_with_its_new_key(here):
    target = target_of(None, None, here(token="one"))
    assert not target.look_again()
    here(url="http://127.0.0.1:2", token="two")
    assert target.look_again()
    assert target.server == Server("http://127.0.0.1:2", "two")


def test_whom_to_trust_comes_from_the_environment_or_the_servers_file_and_keys_are_not_shown(here):
    environ = here(ca_file="/its.pem", token="secret")
    assert target_of(None, None, environ).server.ca_file == "/its.pem"
    assert "secret" not in repr(target_of(None, None, environ).server)
    environ["LLORCH_CA_FILE"] = "/mine.pem"
    assert target_of(None, None, environ).server.ca_file == "/mine.pem"
    assert target_of("https://there", None, environ).server.ca_file == "/mine.pem"


def test_a_line_end_around_a_key_is_none_of_it(here):
    assert target_of("http://there", "lo_said\n", {}).server.token == "lo_said"
    assert target_of("http://there", None, {"LLORCH_API_TOKEN": " lo_mine\r\n"}).server.token == "lo_mine"
    assert target_of("http://there", None, {"LLORCH_API_TOKEN": "\n"}).server.token == "local"
    assert target_of(None, None, here(token="lo_file\n")).server.token == "lo_file"


@pytest.mark.parametrize("key", ["lo_one\nlo_two", "lo_ä", "lo_ two", "lo_\0", "lo_\ud800", "lo_\x7f"])
def test_what_can_be_no_key_is_refused_and_not_repeated(key):
    with pytest.raises(LlamaOrchError) as caught:
        target_of("http://there", key, {})
    assert "lo_" not in caught.value.message + caught.value.remedy
    assert caught.value.remedy


def test_a_password_in_an_address_is_not_repeated():
    password = "pa55w0rd"
    for scheme, host in (("ftp", "there"), ("http", ":0")):
        with pytest.raises(LlamaOrchError) as caught:
            target_of(f"{scheme}://user:{password}@{host}", None, {})
        assert password not in caught.value.message
    error = unreachable(httpx2.ConnectError("refused"), f"http://user:{password}@there:1/v1")
    assert "//***@there:1/v1" in error.message
    assert error.url == "http://***@there:1/v1"


def test_while_none_is_found_the_last_one_stays(here, tmp_path):
    target = target_of(None, None, here())
    (tmp_path / "server.json").unlink()
    target.look_again()
    assert target.server.url == "http://127.0.0.1:1"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"url": 3}'])
def test_without_a_server_it_says_where_it_looked(tmp_path, text):
    (tmp_path / "server.json").write_text(text)
    with pytest.raises(UnreachableError, match=str(tmp_path)) as caught:
        target_of(None, None, {"LLORCH_DATA_DIR": str(tmp_path)})
    assert "llama-orch serve" in caught.value.remedy


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://h", "http://", "http://h:99999", "http://[::1"])
def test_an_address_that_is_none_is_told(url):
    with pytest.raises(LlamaOrchError) as caught:
        target_of(url, None, {})
    assert "http://127.0.0.1:8080" in caught.value.remedy


def test_the_data_directory_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_directory({}).name == "llama-orch"
    assert data_directory({"LLORCH_DATA_DIR": "/x"}).as_posix() == "/x"


def test_https_is_checked_and_a_file_of_authorities_stands_instead_of_the_systems(tmp_path):
    context = trust("https://there", None, None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    with pytest.raises(OSError):
        trust("https://there", tmp_path / "missing.pem", None)
