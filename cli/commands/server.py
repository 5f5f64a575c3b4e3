"""The server: start, stop, look at it."""

from __future__ import annotations

import argparse
import signal
import time
from typing import TYPE_CHECKING, Any

from .. import exits
from ..command import command
from ..connect import client_of, loaded_from
from ..exits import CliError
from ..shell import Shell

if TYPE_CHECKING:
    from ..client import Client
    from ..server_file import ServerFile


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bind", metavar="HOST:PORT", help="listen here (default: 127.0.0.1:8080; port 0 = any free one)"
    )
    parser.add_argument(
        "--first-key",
        action="store_true",
        help="at the first start make a key with all scopes and print it, once: for containers",
    )
    parser.add_argument(
        "--until-eof",
        action="store_true",
        help="stop when standard input ends and no task is left: for programs that start a server",
    )


@command("serve", "run the server", arguments=_serve_arguments, needs="config")
def serve(options: argparse.Namespace, shell: Shell) -> int:
    """Prints its URL, its data directory and the line that points OpenAI clients at it; logs to standard error.
    Ctrl-C or SIGTERM stops it in order, a second one at once. Without a configuration it serves the bundled model.
    """
    flags = {"bind": options.bind} if options.bind else {}
    if options.first_key:
        flags["auth.first_key"] = "true"
    loaded = loaded_from(options, shell, **flags)
    from ..daemon import serve as run_daemon
    from ..gpu_build import notice

    told = notice(loaded)
    if told and not options.until_eof:  # else whoever starts it says so
        shell.note(told)
    return run_daemon(loaded, shell, until_eof=options.until_eof)


def _stop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="seconds to wait for its end (default: 30)"
    )
    parser.add_argument("--force", action="store_true", help="end it at once if it is not gone by then")
    parser.add_argument(
        "--keep-engines", action="store_true", help="leave the engines running: the next server goes on with them"
    )


@command("stop", "stop the server", arguments=_stop_arguments, needs="config")
def stop(options: argparse.Namespace, shell: Shell) -> int:
    """Stops the server of the data directory in order: it takes no more tasks, journals its end and stops its engines.
    Tasks that still run go on when a server is started again. Engines that are kept stay with pool-managerd, which ends
    them when no server came back for `manager.linger_ms`.
    """
    from .. import server_file

    data_dir = loaded_from(options, shell).data_dir
    found = server_file.read(data_dir)
    if found is None:
        if shell.as_json:
            shell.json({"stopped": False, "data_dir": str(data_dir)})
        else:
            shell.note(f"No server runs on {data_dir}.")
        return exits.OK
    _signal(found, server_file.STOP_AND_KEEP_ENGINES if options.keep_engines else signal.SIGTERM)
    if not _gone(found, options.timeout):
        if not options.force:
            raise CliError(
                f"the server (process {found.pid}) still runs after {options.timeout:g} s",
                remedy="Wait longer with --timeout, or end it at once with --force; what was accepted is safe.",
                code="STILL_RUNNING",
            )
        _signal(found, signal.SIGTERM)
        if not _gone(found, 5):
            _signal(found, signal.SIGKILL)
            _gone(found, 10)
    if shell.as_json:
        shell.json({"stopped": True, "pid": found.pid, "data_dir": str(data_dir)})
    else:
        shell.note(f"Stopped (process {found.pid}).")
    return exits.OK


def _signal(server: ServerFile, number: signal.Signals) -> None:
    import os

    from ..server_file import is_running

    if is_running(server):
        try:
            os.kill(server.pid, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise CliError(
                f"the server (process {server.pid}) belongs to another user", remedy="Stop it as that user."
            ) from error


def _gone(server: ServerFile, timeout_s: float) -> bool:
    from ..server_file import is_running

    deadline = time.monotonic() + timeout_s
    while is_running(server):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


@command("status", "show whether a server runs, where, and how its pools are", needs="server")
def status(options: argparse.Namespace, shell: Shell) -> int:
    """Exit status 0 when it is ready, 3 when none runs, 4 when it runs and is not ready."""
    from .. import server_file

    client = client_of(options, shell)
    try:
        pools = client.get("/v1/pools")["pools"]
        ready = client.ready()
        queue = client.get("/v1/queue")
    except (KeyError, TypeError) as error:
        raise CliError(
            f"what answers at {client.url} is no llama-orch server", remedy="Check --url and LLORCH_URL."
        ) from error
    local = (
        None
        if options.url or shell.environ.get("LLORCH_URL")
        else server_file.read(loaded_from(options, shell).data_dir)
    )
    waiting = sum(len(group["entries"]) for group in queue["groups"])
    if shell.as_json:
        shell.json(
            {
                "url": client.url,
                "ready": ready,
                "waiting": waiting,
                "pid": local.pid if local else None,
                "data_dir": local.data_dir if local else None,
                "version": local.version if local else None,
                "pools": pools,
            }
        )
        return exits.OK if ready else exits.REFUSED
    shell.line(f"url:      {client.url} ({'ready' if ready else 'not ready'})")
    if local:
        shell.line(f"process:  {local.pid}, version {local.version}")
        shell.line(f"data:     {local.data_dir}")
    shell.line(f"waiting:  {waiting} tasks")
    shell.line()
    pools_table(pools, shell)
    return exits.OK if ready else exits.REFUSED


def pools_table(pools: list[dict[str, Any]], shell: Shell) -> None:
    """The pools as a table, with the cause where one is not ready."""
    rows = []
    for pool in pools:
        state = (
            "draining"
            if pool.get("draining")
            else "ready"
            if pool.get("ready")
            else f"not ready: {pool.get('cause') or '?'}"
        )
        rows.append(
            (
                pool["pool_id"],
                state,
                pool["model_ref"],
                f"{pool['engine']} {pool.get('engine_version', '')}".strip(),
                f"{pool['leases']}/{pool['slots']}",
                pool.get("ctx") or "",
                pool.get("device_mask", ""),
            )
        )
    shell.table(("POOL", "STATE", "MODEL", "ENGINE", "BUSY", "CONTEXT", "DEVICE"), rows, empty="There are no pools.")


@command("capabilities", "show what the server can do: engines, models, limits", needs="server")
def capabilities(options: argparse.Namespace, shell: Shell) -> int:
    """Derived from the live pools; programs read it with --json."""
    found = client_of(options, shell).get("/v1/capabilities")
    if shell.as_json:
        shell.json(found)
        return exits.OK
    shell.line(f"API {found['api_version']}")
    rows = [
        (
            engine["engine"],
            engine.get("engine_version", ""),
            engine.get("ctx_max", ""),
            engine.get("max_tokens_out", ""),
            ", ".join(engine.get("supported_workloads", [])),
            f"{engine.get('slots_free', '')}/{engine.get('concurrency', '')}",
        )
        for engine in found["engines"]
    ]
    shell.table(
        ("ENGINE", "VERSION", "CONTEXT", "MOST OUTPUT", "WORKLOADS", "FREE SLOTS"), rows, empty="No engine is ready."
    )
    models = [
        model if isinstance(model, str) else model.get("id", model.get("model_ref", "?"))
        for model in found.get("models", [])
    ]
    shell.line(f"models: {', '.join(models) or 'none'}")
    return exits.OK


def _env_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shell", choices=("sh", "fish"), default="sh", help="whose syntax (default: sh, for bash and zsh too)"
    )


@command(
    "env", "print the exports that point clients of OpenAI's and Anthropic's APIs at the server",
    arguments=_env_arguments, needs="server",
)  # fmt: skip
def env(options: argparse.Namespace, shell: Shell) -> int:
    """Any OpenAI or Anthropic client that reads its environment then talks to the server, and so does the Python SDK.
    The key is that of LLORCH_API_TOKEN; a server without keys takes any.

    Use it as: eval "$(llama-orch env)"
    """
    import shlex

    from ..client import Client

    try:
        url = client_of(options, shell).url
    except CliError as error:
        if error.code != "NO_SERVER":
            raise
        url = f"http://{loaded_from(options, shell).settings.bind}"
        shell.note(f"No server runs yet; this is where `llama-orch serve` will answer: {url}")
    client = Client(url, ca_file=shell.environ.get("LLORCH_CA_FILE", ""))
    if not shell.environ.get("LLORCH_API_TOKEN") and _asks_for_a_key(client):
        shell.note(
            "The server asks for a key: `llama-orch keys create NAME` makes one; set LLORCH_API_TOKEN to it first."
        )
    variables = client_variables(url, shell.environ.get("LLORCH_API_TOKEN") or "local")
    if shell.as_json:
        shell.json(variables)
        return exits.OK
    for name, value in variables.items():
        shell.line(
            f"set -gx {name} {shlex.quote(value)}" if options.shell == "fish" else f"export {name}={shlex.quote(value)}"
        )
    return exits.OK


def _asks_for_a_key(client: Client) -> bool:
    try:
        client.get("/v1/models")
    except CliError as error:
        return error.details.get("http_status") == 401
    return False


def client_variables(url: str, token: str) -> dict[str, str]:
    """The environment that clients read. They insist on a key; where the server has none any will do."""
    return {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": token,
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": token,
        "LLORCH_URL": url,
    }
