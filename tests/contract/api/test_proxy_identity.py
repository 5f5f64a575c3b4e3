"""Who asks, as a proxy in front says it: believed from its own addresses, and only where that is switched on (attack 45)."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from llama_orch.core.settings import Settings

from .keyed_server import BOOTSTRAP, PROMPT, SECRETS, code_of
from .live_server import LiveServer

Make = Callable[..., LiveServer]


def auth_with(peers: list[str], header: str = "X-Auth-User") -> object:
    return type(Settings().auth)(proxy=type(Settings().auth.proxy)(header=header, peers=peers))


def ask(server: LiveServer, path: str = "/v1/tasks", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(server.url + path, headers=named, trust_env=False)


@pytest.mark.parametrize("peers", [["127.0.0.1"], ["127.0.0.0/8", "10.1.0.0/16"]])
def test_a_trusted_proxy_names_the_caller(make_server: Make, peers: list[str]) -> None:
    server = make_server(auth=auth_with(peers))
    made = httpx.post(f"{server.url}/v1/tasks", json=PROMPT, headers={"X-Auth-User": "alice"}, trust_env=False)
    task_id = made.json()["task_id"]
    assert ask(server, f"/v1/tasks/{task_id}", X_Auth_User="alice").json()["owner"].startswith("proxy:")
    assert ask(server, f"/v1/tasks/{task_id}", X_Auth_User="bob").status_code == 404
    assert ask(server, "/v1/keys", X_Auth_User="alice").status_code == 403, "its scopes are configured"
    assert "alice" not in ask(server, f"/v1/tasks/{task_id}", X_Auth_User="alice").text


def test_the_keys_that_clients_must_send_do_not_matter_behind_it(make_server: Make) -> None:
    server = make_server(auth=auth_with(["127.0.0.1"]))
    assert ask(server, X_Auth_User="alice", Authorization="Bearer sk-any").status_code == 200


def test_somebody_else_is_not_believed(make_server: Make) -> None:
    server = make_server(auth=auth_with(["192.0.2.1", "10.0.0.0/8"]), secrets=SECRETS)
    answer = ask(server, X_Auth_User="alice")
    assert (answer.status_code, code_of(answer.content)) == (401, "MISSING_TOKEN")
    assert ask(server, X_Auth_User="alice", X_Forwarded_For="192.0.2.1").status_code == 401
    assert ask(server, X_Auth_User="alice", Authorization=f"Bearer {BOOTSTRAP}").status_code == 200
    own = ask(server, "/v1/capabilities", X_Auth_User="alice", Authorization=f"Bearer {BOOTSTRAP}")
    assert own.status_code == 200


def test_without_the_header_the_proxy_is_nobody(make_server: Make) -> None:
    server = make_server(auth=auth_with(["127.0.0.1"]))
    assert ask(server).status_code == 401, "the server is not open because its proxy is trusted"
    assert ask(server, X_Auth_Users="alice").status_code == 401


def test_two_names_or_an_empty_one_are_refused(make_server: Make) -> None:
    server = make_server(auth=auth_with(["127.0.0.1"]))
    for headers in ([("X-Auth-User", "a"), ("x-auth-user", "b")], [("X-Auth-User", "")]):
        answer = httpx.get(f"{server.url}/v1/tasks", headers=headers, trust_env=False)
        assert (answer.status_code, code_of(answer.content)) == (400, "INVALID_PARAMS")


def test_the_header_means_nothing_where_it_is_not_switched_on(make_server: Make) -> None:
    server = make_server(secrets=SECRETS)
    assert ask(server, X_Auth_User="alice").status_code == 401
