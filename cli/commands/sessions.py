"""Sessions: turns that belong together, and what engines keep of them."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from .. import exits
from ..command import command
from ..connect import client_of
from ..exits import UsageError
from ..shell import Shell

_MIB = 1_048_576


@command("sessions list", "list open sessions: turns, idle time, KV cache", needs="server")
def listing(options: argparse.Namespace, shell: Shell) -> int:
    """A session is opened by its first task, or by `llama-orch sessions create`."""
    found = client_of(options, shell).get("/v1/sessions")["sessions"]
    if shell.as_json:
        shell.json({"sessions": found})
        return exits.OK
    rows = [
        [
            one["session_id"],
            f"{one['turns']}/{one['turn_limit']}",
            _seconds(one["ttl_ms_remaining"]),
            one["pool_id"] or "-",
            _kv(one),
            one["owner"],
        ]
        for one in found
    ]
    shell.table(["SESSION", "TURNS", "EXPIRES IN", "POOL", "KV CACHE", "OWNER"], rows, empty="no session is open")
    return exits.OK


def _session(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="SESSION", help="the session's id")


@command("sessions show", "show one session", arguments=_session, needs="server")
def show(options: argparse.Namespace, shell: Shell) -> int:
    """Turns, idle time, what an engine keeps of it, what its budgets still allow."""
    return _tell(client_of(options, shell).get(_path(options.session)), shell)


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--id", metavar="UUID", help="(default: a new one)")
    parser.add_argument("--ttl-ms", type=int, metavar="MS", help="idle time after which it expires")
    parser.add_argument("--turns", type=int, metavar="N", help="tasks that it may have")
    parser.add_argument("--tokens", type=int, metavar="N", help="cap on its tokens")
    parser.add_argument("--decode-ms", type=int, metavar="MS", help="cap on its time of decoding")
    parser.add_argument("--cost", metavar="DECIMAL", help="cap on its money, in the currency of the price list")


@command("sessions create", "open a session and print its id", arguments=_create_arguments, needs="server")
def create(options: argparse.Namespace, shell: Shell) -> int:
    """Within the server's bounds (`sessions.max_ttl_ms`, `sessions.max_turn_limit`), with a budget of its own if you like.

    llama-orch sessions create --turns 20 --tokens 50000
    """
    for name, got in (("--ttl-ms", options.ttl_ms), ("--turns", options.turns)):
        if got is not None and got < 1:
            raise UsageError(f"{name} {got} is too small", remedy="It is at least 1.")
    caps = {"tokens": options.tokens, "decode_ms": options.decode_ms, "cost": options.cost}
    caps = {name: value for name, value in caps.items() if value is not None}
    given = {"session_id": options.id, "ttl_ms": options.ttl_ms, "turn_limit": options.turns}
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if caps:
        body["budgets"] = [caps]
    made = client_of(options, shell).post("/v1/sessions", body)
    if shell.as_json:
        shell.json(made)
    else:
        shell.line(made["session_id"])
    return exits.OK


@command("sessions rm", "close a session and free its KV cache", arguments=_session, needs="server")
def remove(options: argparse.Namespace, shell: Shell) -> int:
    """At once, or when its last task ends; its tasks go on. It is no error when it is gone."""
    client_of(options, shell).delete(_path(options.session))
    if shell.as_json:
        shell.json({"session_id": options.session, "closed": True})
    else:
        shell.note(f"Session {options.session} is closed.")
    return exits.OK


# --- words ---------------------------------------------------------------------------------------------------------------


def _path(session_id: str) -> str:
    return f"/v1/sessions/{quote(session_id, safe='')}"


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.0f} s"


def _kv(session: dict[str, Any]) -> str:
    if not session["kv_warmth"]:
        return "cold"
    size = f", {session['kv_bytes'] / _MIB:.0f} MiB" if session["kv_bytes"] else ""
    return f"{session['kv_tokens']} tokens{size}"


def _tell(session: dict[str, Any], shell: Shell) -> int:
    if shell.as_json:
        shell.json(session)
        return exits.OK
    shell.line(session["session_id"])
    left = session["time_budget_remaining_ms"]
    for name, value in (
        ("owner", session["owner"]),
        ("turns", f"{session['turns']} of {session['turn_limit']}"),
        ("tasks", f"{session['active_tasks']} wait or run" if session["active_tasks"] else ""),
        ("expires in", f"{_seconds(session['ttl_ms_remaining'])} without a task"),
        ("pool", session["pool_id"]),
        ("KV cache", _kv(session)),
        ("tokens left", _number(session["tokens_budget_remaining"])),
        ("time left", f"{left} ms" if left is not None else ""),
        ("money left", session["cost_budget_remaining"] or ""),
    ):
        if value:
            shell.line(f"  {name + ':':<13} {value}")
    return exits.OK


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
