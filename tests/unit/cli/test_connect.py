"""Which server a call talks to."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from llama_orch.cli import exits, server_file
from llama_orch.cli.connect import Servers, client_of
from llama_orch.cli.exits import AskAgainError, CliError
from llama_orch.cli.server_file import ServerFile, process_start
from llama_orch.cli.shell import Shell


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def options(data_dir):
    return argparse.Namespace(url=None, config=None, data_dir=str(data_dir), assignments=[])


@pytest.fixture
def shell():
    return Shell(stdin=io.StringIO(), stdout=io.StringIO(), stderr=io.StringIO(), environ={})


@pytest.fixture
def ready(server):
    for path in ("/readyz", "/one/readyz", "/two/readyz"):
        server.on("GET", path, SimpleNamespace(status=200, body={}, chunks=None))
    return server


def runs(data_dir, pid: int, url: str, *, temporary: bool = False) -> None:
    """Write down that a process serves at a URL."""
    server_file.write(data_dir, ServerFile(pid, process_start(pid), url, "1", str(data_dir), temporary))


def gone(client) -> AskAgainError:
    return AskAgainError("gone", status=exits.UNREACHABLE, url=client.url)


def test_a_named_server_wins_over_the_variable_and_both_over_the_running_one(options, shell, data_dir):
    runs(data_dir, os.getpid(), "http://127.0.0.1:1")
    assert client_of(options, shell).url == "http://127.0.0.1:1"
    shell.environ = {"LLORCH_URL": "http://127.0.0.1:2/"}
    assert client_of(options, shell).url == "http://127.0.0.1:2"
    options.url = "http://127.0.0.1:3"
    assert client_of(options, shell).url == "http://127.0.0.1:3"


def test_the_machines_own_server_takes_its_own_key_also_when_it_is_named(options, shell, data_dir):
    pid, url = os.getpid(), "http://127.0.0.1:1"
    server_file.write(data_dir, ServerFile(pid, process_start(pid), url, "1", str(data_dir), token="its-own-key"))
    shell.environ = {"LLORCH_URL": f"{url}/"}
    client = client_of(options, shell)
    assert (client.token, client.renew()) == ("its-own-key", "its-own-key")
    shell.environ["LLORCH_API_TOKEN"] = "of-the-caller"
    assert client_of(options, shell).token == "of-the-caller"
    options.url = "http://127.0.0.1:2"
    shell.environ = {}
    elsewhere = client_of(options, shell)
    assert (elsewhere.token, elsewhere.renew()) == ("local", ""), "no other server gets it"
    options.config = "/no/such.yaml"
    assert client_of(options, shell).url == "http://127.0.0.1:2"


def test_a_call_moves_on_when_its_server_ended(options, shell, data_dir, ready):
    first = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    runs(data_dir, first.pid, f"{ready.url}/one", temporary=True)
    asked: list[str] = []

    def action(client) -> str:
        asked.append(client.url)
        if len(asked) == 1:
            first.kill()
            first.communicate()
            runs(data_dir, os.getpid(), f"{ready.url}/two")
            raise gone(client)
        return "answered"

    with Servers(options, shell) as servers:
        assert servers.ask(action) == "answered"
    assert asked == [f"{ready.url}/one", f"{ready.url}/two"]


def test_a_named_server_is_never_exchanged_for_another(options, shell, data_dir, ready):
    runs(data_dir, os.getpid(), ready.url)
    options.url = "http://127.0.0.1:9"
    asked: list[str] = []

    def action(client) -> None:
        asked.append(client.url)
        raise gone(client)

    with Servers(options, shell) as servers, pytest.raises(CliError):
        servers.ask(action)
    assert asked == ["http://127.0.0.1:9"]


def test_what_is_no_loss_of_the_server_is_not_asked_again(options, shell, data_dir, ready):
    runs(data_dir, os.getpid(), ready.url)
    asked: list[str] = []

    def action(client) -> None:
        asked.append(client.url)
        raise CliError("refused", status=exits.REFUSED)

    with Servers(options, shell) as servers, pytest.raises(CliError, match="refused"):
        servers.ask(action)
    assert len(asked) == 1


def test_pools_that_start_are_waited_for_and_one_that_failed_is_told_with_its_advice(options, shell, data_dir, server):
    def readyz(status, **pools):
        return SimpleNamespace(status=status, body={"ready": False, "journal": "ok", "pools": pools}, chunks=None)

    runs(data_dir, os.getpid(), server.url)
    server.on("GET", "/readyz", readyz(503, a="starting"), readyz(503, a="loading"), readyz(200))
    with Servers(options, shell) as servers:
        assert servers.ask(lambda client: client.url) == server.url
    assert len(server.asked("GET", "/readyz")) == 3

    server.on("GET", "/readyz", readyz(503, a="out-of-memory"))
    health = {"last_error": {"cause": "out-of-memory", "detail": "8 GiB wanted", "advice": "Lower ctx."}}
    server.on("GET", "/v1/pools/a/health", SimpleNamespace(status=200, body=health, chunks=None))
    with Servers(options, shell) as servers, pytest.raises(CliError) as caught:
        servers.ask(lambda client: client.url)
    assert caught.value.message == "no pool is ready; a is not because of out-of-memory: 8 GiB wanted"
    assert (caught.value.remedy, caught.value.status) == ("Lower ctx.", exits.REFUSED)
