"""Which server a command talks to: the one that is named, the one that is up, or one started for the call."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from . import exits
from .exits import AskAgainError, CliError
from .shell import Shell

if TYPE_CHECKING:
    import subprocess

    from .client import Client
    from .config import Loaded
    from .server_file import ServerFile

_START_TIMEOUT_S = 120.0
#: how long a server that was told to end may take before it is left to itself
_END_TIMEOUT_S = 10.0
_MOST_SERVERS = 20
_LARGEST_LOG_BYTES = 1_048_576
_LOOK_AGAIN_S = 0.02
#: causes of a pool that is on its way
_STARTING = frozenset({"", "starting", "loading", "not ready"})
T = TypeVar("T")

#: what a server for one call says, in its data directory
SERVER_LOG = "temporary-server.log"


def loaded_from(options: argparse.Namespace, shell: Shell, **flags: str) -> Loaded:
    """The configuration that a command's options name."""
    from .config import load

    if options.data_dir:
        flags["data_dir"] = options.data_dir
    return load(options.config, environ=shell.environ, flags=flags, assignments=options.assignments)


def client_of(options: argparse.Namespace, shell: Shell) -> Client:
    """A client for the server that is named or up. :raises CliError: none is up."""
    from . import server_file

    named = options.url or shell.environ.get("LLORCH_URL")
    if named:
        return _client_at(named.rstrip("/"), options, shell)
    data_dir = loaded_from(options, shell).data_dir
    found = server_file.read(data_dir)
    if found is None:
        raise CliError(
            f"no server runs on {data_dir}",
            remedy="`llama-orch serve` starts one; --url or LLORCH_URL names one elsewhere.",
            status=exits.UNREACHABLE,
            code="NO_SERVER",
        )
    return _client_for(found, shell, data_dir)


class Servers:
    """The server that is named or up, else one that lives as long as the ``with`` block.

    A server that another call started for itself may end between finding and asking it; then the next one is found, or
    an own one started.
    """

    def __init__(self, options: argparse.Namespace, shell: Shell) -> None:
        self._options, self._shell = options, shell
        self._held = contextlib.ExitStack()
        self._client: Client | None = None

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_error: object) -> None:
        self._held.close()

    def ask(self, action: Callable[[Client], T]) -> T:
        """What ``action`` answers; it is called again when its server went away and that does no harm (:class:`AskAgainError`).

        :raises CliError: no server can be had, or the action's own.
        """
        left = _MOST_SERVERS
        while True:
            left -= 1
            try:
                if self._client is None:
                    self._client = self._find()
                return action(self._client)
            except AskAgainError as error:
                if not left or not self._gone(str(error.details["url"])):
                    raise
                self._held.close()
                self._client = None

    def _find(self) -> Client:
        options, shell = self._options, self._shell
        if options.url or shell.environ.get("LLORCH_URL"):
            return client_of(options, shell)
        from . import server_file

        loaded = loaded_from(options, shell)
        found = server_file.read(loaded.data_dir)
        if found is None:
            return self._start(loaded)
        client = _client_for(found, shell, loaded.data_dir)
        if found.temporary:
            client.relocate = lambda: _url_now(loaded.data_dir) or self._start(loaded).url
        _await_pools(client, shell)
        shell.clear_status()
        return client

    def _start(self, loaded: Loaded) -> Client:
        """A server of one's own, until this block ends."""
        from .gpu_build import notice

        told = notice(loaded)
        if told:
            self._shell.note(told)
        self._shell.status("starting a server for this call …")
        client = self._held.enter_context(own_server(loaded, self._shell, arguments=_arguments(self._options)))
        self._shell.clear_status()
        return client

    def _gone(self, url: str) -> bool:
        """Whether the server at ``url`` ended, or does so in a moment; a named one is not ours to replace."""
        from . import server_file

        if self._options.url or self._shell.environ.get("LLORCH_URL"):
            return False
        data_dir = loaded_from(self._options, self._shell).data_dir
        deadline = time.monotonic() + _END_TIMEOUT_S
        while (found := server_file.read(data_dir)) is not None and found.url == url:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_AGAIN_S)
        return True


@contextlib.contextmanager
def own_server(loaded: Loaded, shell: Shell, arguments: list[str]) -> Iterator[Client]:
    """Start a server as a child, on a free port; it stops when the block ends, also when this process is killed.

    Should another server take the data directory first, that one is used.

    :raises CliError: the child did not come up; its own words say why.
    """
    import subprocess

    from .config import make_data_directory

    make_data_directory(loaded.data_dir)
    log = loaded.data_dir / SERVER_LOG
    with _open_log(log) as log_file:
        said_before = log_file.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "llama_orch.cli.main", "serve", "--bind", "127.0.0.1:0", "--until-eof", *arguments],
            stdin=subprocess.PIPE,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env={**shell.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        yield _wait_ready(child, loaded, shell, lambda: _last_words(log, said_before))
    finally:
        assert child.stdin is not None, "it was asked for"
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            shell.note("The server goes on, since others use it; it ends when their tasks have ended.")


def _wait_ready(child: subprocess.Popen[bytes], loaded: Loaded, shell: Shell, last_words: Callable[[], str]) -> Client:
    """A client for the server on the data directory: the child, or one that was quicker."""
    from . import server_file

    deadline = time.monotonic() + _START_TIMEOUT_S
    while (found := server_file.read(loaded.data_dir)) is None:
        if child.poll() is not None:
            raise CliError(
                "the server for this call did not start",
                remedy=f"It said: {last_words()}",
                status=child.returncode if child.returncode in exits.MEANINGS and child.returncode else exits.FAILED,
            )
        if time.monotonic() > deadline:
            raise CliError(
                f"the server for this call was not up after {_START_TIMEOUT_S:g} s",
                remedy=f"Its log is {loaded.data_dir / SERVER_LOG}; its last words: {last_words()}",
                status=exits.REFUSED,
            )
        time.sleep(_LOOK_AGAIN_S)
    client = _client_for(found, shell, loaded.data_dir)
    _await_pools(client, shell)
    return client


def _await_pools(client: Client, shell: Shell) -> None:
    """Wait while no pool is ready and one still starts.

    :raises CliError: none will be, with the cause and the advice of the first; or it takes too long.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            client.get("/readyz")
            return
        except CliError as error:
            told = error.details
            if error.status != exits.REFUSED or not isinstance(told.get("pools"), dict):
                raise
        causes: dict[str, str] = told["pools"]  # type: ignore[assignment]
        if "unloaded" in causes.values() and told.get("journal") == "ok":
            return  # a task that asks for it loads it
        if not any(cause in _STARTING for cause in causes.values()) and told.get("journal") == "ok":
            raise _no_pool(client, causes)
        if time.monotonic() > deadline:
            raise CliError(
                f"no pool was ready after {_START_TIMEOUT_S:g} s ({_listed(causes)})",
                remedy="`llama-orch status` shows how they get on; large models take their time.",
                status=exits.REFUSED,
                code="POOL_UNREADY",
            )
        shell.status(f"waiting for a pool ({_listed(causes)}) …")
        time.sleep(_LOOK_AGAIN_S)


def _no_pool(client: Client, causes: dict[str, str]) -> CliError:
    if not causes:
        return CliError(
            "the server has no pool",
            remedy="Add one to its configuration.",
            status=exits.REFUSED,
            code="POOL_UNAVAILABLE",
        )
    pool_id = min(causes)
    last = (client.get(f"/v1/pools/{pool_id}/health") or {}).get("last_error") or {}
    why = f"{last.get('cause', causes[pool_id])}: {last.get('detail', '')}".rstrip(": ")
    return CliError(
        f"no pool is ready; {pool_id} is not because of {why}",
        remedy=last.get("advice") or "`llama-orch status` shows all pools; the server's log says more.",
        status=exits.REFUSED,
        code="POOL_UNREADY",
        pool_id=pool_id,
    )


def _listed(causes: dict[str, str]) -> str:
    return ", ".join(f"{pool}: {cause}" for pool, cause in sorted(causes.items()))


def _last_words(log: Path, start: int, lines: int = 4) -> str:
    try:
        said = log.read_bytes()[start:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        said = []
    errors = [n for n, line in enumerate(said) if line.startswith("llama-orch: ")]
    return "\n  ".join(said[errors[-1] :] if errors else said[-lines:]) or "nothing"


def _arguments(options: argparse.Namespace) -> list[str]:
    """What the child needs to load the same configuration."""
    given: list[str] = []
    if options.config:
        given += ["--config", options.config]
    if options.data_dir:
        given += ["--data-dir", options.data_dir]
    for assignment in options.assignments:
        given += ["--set", assignment]
    return given


def _url_now(data_dir: Path) -> str:
    from . import server_file

    found = server_file.read(data_dir)
    return found.url if found else ""


def _client_for(found: ServerFile, shell: Shell, data_dir: Path) -> Client:
    """A client for a server of this machine: with the key of the environment, else the one that it wrote for commands."""
    from .client import Client

    client = Client(
        found.url,
        token=shell.environ.get("LLORCH_API_TOKEN") or found.token or "local",
        ca_file=shell.environ.get("LLORCH_CA_FILE") or found.ca_file,
        relocate=lambda: _url_now(data_dir),
    )
    if not shell.environ.get("LLORCH_API_TOKEN"):
        client.renew = lambda: _token_now(data_dir)
    return client


def _client_at(url: str, options: argparse.Namespace, shell: Shell) -> Client:
    """A client for the server at an address: of the key that is named, or of this machine's own where it is that server."""
    from ..core.errors import ConfigError
    from . import server_file
    from .client import Client

    ca_file = shell.environ.get("LLORCH_CA_FILE", "")
    token = shell.environ.get("LLORCH_API_TOKEN")
    if token:
        return Client(url, token=token, ca_file=ca_file)
    try:
        data_dir = loaded_from(options, shell).data_dir
    except (CliError, ConfigError):
        return Client(url, ca_file=ca_file)  # a configuration that is none is no reason not to ask a server elsewhere

    def own() -> ServerFile | None:
        found = server_file.read(data_dir)
        return found if found is not None and found.url == url else None

    def renewed() -> str:
        found = own()
        return found.token if found is not None else ""

    found = own()
    if found is None:
        return Client(url, ca_file=ca_file)
    return Client(url, token=found.token or "local", ca_file=ca_file or found.ca_file, renew=renewed)


def _token_now(data_dir: Path) -> str:
    from . import server_file

    found = server_file.read(data_dir)
    return found.token if found else ""


def _open_log(path: Path) -> IO[bytes]:
    """The log to append to, readable by its owner alone; a long one begins anew."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    if file.tell() > _LARGEST_LOG_BYTES:
        file.truncate(0)
        file.seek(0)
    return file
