"""Keys by the command line, on real servers: from the first one to the last one's end, and what opens nothing (AUTH-1)."""

from __future__ import annotations

import json
import re
import stat
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from .conftest import MOCK_POOL, Home, Server

pytestmark = pytest.mark.slow

KEY = re.compile(r"lo_[A-Za-z0-9_-]{43}")


def status_with(server: Server, key: str | None, path: str = "/v1/keys") -> int:
    """What a request with a key gets."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def started(server: Server) -> Server:
    """It is up; whether tasks are served is asked by a command, which brings the key."""
    server.start(ready=False)
    return server


def test_a_life_of_keys_by_the_command_line(new_server: Any) -> None:
    server = started(new_server({"pools": [MOCK_POOL]}))
    home: Home = server.home
    assert status_with(server, None) == 200, "without keys the machine's user needs none"
    made = home.call("keys", "create", "agent", "--scope", "admin", "--rpm", "60", "--expires", "30d")
    key = made.out.strip()
    assert KEY.fullmatch(key)
    assert "shown this once" in made.err
    assert status_with(server, None) == 401
    assert status_with(server, "any") == 401
    assert status_with(server, key) == 200
    (listed,) = home.json("keys", "list")["keys"]
    assert (listed["name"], listed["state"], listed["requests_per_minute"]) == ("agent", "active", 60)
    assert "active" in home.call("keys", "show", "agent").out
    assert "asks for a key" in home.call("env").err
    assert f"OPENAI_API_KEY={key}" in home.call("env", environ={"LLORCH_API_TOKEN": key}).out
    assert home.call("run", "hi", "--model", "mock").status == 0, "commands on the machine go on"
    assert home.call("keys", "list", environ={"LLORCH_API_TOKEN": key}).status == 0
    wrong = home.call("keys", "list", environ={"LLORCH_API_TOKEN": "wrong"})
    assert wrong.status == 1
    assert "not known, revoked or expired" in wrong.err

    rotated = home.json("keys", "rotate", "agent", "--grace", "1h")["secret"]
    assert status_with(server, key) == status_with(server, rotated) == 200
    changed = home.call("keys", "change", "agent", "--rpm", "0", "--name", "renamed")
    assert "renamed" in changed.out
    assert "no limit" in changed.out
    server.kill()
    started(server)
    assert status_with(server, rotated) == 200, "keys are in the journal"
    assert "Revoked" in home.call("keys", "revoke", "renamed").err
    assert status_with(server, rotated) == status_with(server, key) == status_with(server, None) == 401
    assert home.json("keys", "list")["keys"][0]["state"] == "revoked"
    everything = [path.read_bytes() for path in home.root.rglob("*") if path.is_file()]
    for secret in (key, rotated):
        assert not [text for text in everything if secret.encode() in text]


def test_the_machines_own_key_is_its_users_alone_and_new_at_each_start(new_server: Any) -> None:
    server = started(new_server({"pools": [MOCK_POOL]}))
    path: Path = server.home.data_dir / "server.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = json.loads(path.read_text())["token"]
    assert KEY.fullmatch(first)
    assert first not in server.log
    assert server.stop() == 0
    started(server)
    assert json.loads(path.read_text())["token"] != first
    server.home.call("keys", "create", "one")
    assert status_with(server, first) == 401


def test_a_key_of_the_environment_closes_the_server(new_server: Any) -> None:
    server = new_server({"pools": [MOCK_POOL]})
    server.home.environ["LLORCH_API_TOKEN"] = "a-key-of-the-environment"
    started(server)
    assert status_with(server, None) == 401
    assert status_with(server, "a-key-of-the-environment") == 200
    assert server.home.call("status").status in {0, 4}
    assert "a-key-of-the-environment" not in server.log


def test_a_key_of_a_file_and_what_is_wrong_with_files(new_server: Any) -> None:
    server = new_server({"pools": [MOCK_POOL], "auth": {"token_file": "token"}})
    token = server.home.root / "token"

    def refusal() -> str:
        done = server.home.call("serve", "--bind", "127.0.0.1:0")
        assert done.status == 2
        return str(done.err)

    assert "cannot be read" in refusal()
    token.write_text("short\n")
    token.chmod(0o644)
    assert f"chmod 600 {token}" in refusal()
    token.chmod(0o600)
    assert "has 5 characters" in refusal()
    token.write_text("")
    assert "is empty" in refusal()
    token.write_text("a-key-of-a-file-0123\n")
    server.home.environ["LLORCH_API_TOKEN"] = "a-key-of-the-environment"
    assert "names a key as well" in refusal()
    del server.home.environ["LLORCH_API_TOKEN"]
    started(server)
    assert status_with(server, "a-key-of-a-file-0123") == 200


def test_an_address_that_others_reach_needs_keys(new_server: Any) -> None:
    server = new_server({"pools": [MOCK_POOL]}, "--bind", "0.0.0.0:0")
    refused = server.home.call("serve", "--bind", "0.0.0.0:0")
    assert refused.status == 2
    assert "no keys that would protect it" in refused.err
    assert "--first-key" in refused.err
    assert not (server.home.data_dir / "server.json").exists()
    inside = started(new_server(None, home=server.home))
    assert inside.home.call("keys", "create", "one", "--scope", "admin").status == 0
    assert inside.stop() == 0
    started(server)
    assert server.url.startswith("http://127.0.0.1:")
    assert status_with(server, None) == 401
    assert "travel unencrypted" in server.log


def test_a_first_key_is_made_once_and_shown_once(new_server: Any) -> None:
    server = started(new_server({"pools": [MOCK_POOL]}, "--bind", "0.0.0.0:0", "--first-key"))
    (key,) = KEY.findall(server.out_path.read_text())
    assert key not in server.log
    assert status_with(server, key) == 200
    assert status_with(server, None) == 401
    assert server.stop() == 0
    started(server)
    assert KEY.findall(server.out_path.read_text()) == []
    assert status_with(server, key) == 200
    assert len(server.home.json("keys", "list")["keys"]) == 1


def test_commands_speak_tls_to_their_own_server(new_server: Any, tmp_path: Path) -> None:
    from ..contract.api.certificates import Authority

    cert_file, key_file = Authority(tmp_path, "authority").issue("server")
    server = new_server({"pools": [MOCK_POOL], "tls": {"cert_file": cert_file, "key_file": key_file}})
    started(server)
    assert server.url.startswith("https://")
    assert server.home.call("run", "hi", "--model", "mock").status == 0
    assert server.home.call("keys", "create", "one").status == 0
    assert len(server.home.json("keys", "list")["keys"]) == 1
    by_address = {"LLORCH_URL": server.url}
    assert server.home.call("keys", "list", environ=by_address).status == 0, "it is the server of this data directory"
    away = by_address | {"LLORCH_DATA_DIR": str(tmp_path / "elsewhere")}
    assert server.home.call("keys", "list", environ=away).status == 3, "it trusts nobody that it was not told to"
    ca_file = str(tmp_path / "authority.pem")
    told = server.home.call("keys", "list", environ=away | {"LLORCH_CA_FILE": ca_file})
    assert (told.status, "asks for a key" in told.err or "not known" in told.err) == (1, True)
