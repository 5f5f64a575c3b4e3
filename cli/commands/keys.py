"""API keys: make, list, change, rotate, revoke."""

from __future__ import annotations

import argparse
import re
import time
from typing import Any
from urllib.parse import quote

from .. import exits
from ..command import command
from ..connect import client_of
from ..exits import CliError, UsageError
from ..shell import Shell

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str) -> int:
    """Milliseconds of ``90s``, ``15m``, ``12h``, ``30d``. :raises ArgumentTypeError: it is none of these."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write it as 90s, 15m, 12h or 30d")
    return int(found[1]) * _UNITS_MS[found[2]]


def budget(text: str) -> dict[str, Any]:
    """A cap such as ``tokens=1000000/day``. :raises ArgumentTypeError: it is none."""
    found = re.fullmatch(
        r"(?:(tokens|decode_ms)=(\d{1,15})|cost=(\d{1,12}(?:\.\d{1,12})?))(?:/(none|day|month))?", text
    )
    if not found:
        msg = f"{text!r} is no budget; write tokens=N, decode_ms=N or cost=N, with /day or /month if it begins anew"
        raise argparse.ArgumentTypeError(msg)
    what, number, cost, window = found.groups()
    return {"window": window or "none", **({what: int(number)} if what else {"cost": cost})}


def _limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scope",
        action="append",
        choices=("inference", "read", "admin"),
        dest="scopes",
        help="what it is for; may be repeated (default: inference and read)",
    )
    parser.add_argument("--model", action="append", dest="models", metavar="PATTERN", help="only for these models")
    parser.add_argument("--route", action="append", dest="routes", metavar="PATTERN", help="only for these paths")
    parser.add_argument("--batch-only", action="store_true", default=None, help="only for tasks of priority batch")
    parser.add_argument("--rpm", type=int, metavar="N", help="requests per minute")
    parser.add_argument("--tpm", type=int, metavar="N", help="tokens of prompts and answers per minute")
    parser.add_argument("--expires", type=duration_ms, metavar="TIME", help="after 90s, 15m, 12h or 30d")


def _body(options: argparse.Namespace) -> dict[str, Any]:
    given = {
        "scopes": options.scopes,
        "models": options.models,
        "routes": options.routes,
        "batch_only": options.batch_only,
        "requests_per_minute": options.rpm,
        "tokens_per_minute": options.tpm,
        "ttl_ms": options.expires,
    }
    return {name: value for name, value in given.items() if value is not None}


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="what to call it")
    _limits(parser)
    parser.add_argument(
        "--budget",
        action="append",
        type=budget,
        dest="budgets",
        metavar="WHAT=N[/WINDOW]",
        help="what it may spend: tokens=1000000/day, cost=25/month, decode_ms=60000; may be repeated",
    )


@command("keys create", "make a key and print it, once", arguments=_create_arguments, needs="server")
def create(options: argparse.Namespace, shell: Shell) -> int:
    """The key goes to standard output, alone; what is said of it to standard error. Only its hash is kept, so store it now.
    From the first key on, every caller has to bring one; commands on the server's machine need none.

    export OPENAI_API_KEY=$(llama-orch keys create agent --rpm 60 --expires 30d)
    """
    if options.expires == 0:
        raise UsageError(
            "a key that expires at once is of no use", remedy="Leave --expires out for one that never does."
        )
    body = {"name": options.name, **_body(options)}
    if options.budgets:
        # Several caps of one window are one budget.
        windows: dict[str, dict[str, Any]] = {}
        for cap in options.budgets:
            windows.setdefault(cap["window"], {}).update(cap)
        body["budgets"] = list(windows.values())
    made = client_of(options, shell).post("/v1/keys", body)
    return _tell_secret(made, shell)


def _tell_secret(made: dict[str, Any], shell: Shell) -> int:
    if shell.as_json:
        shell.json(made)
        return exits.OK
    key = made["key"]
    shell.line(made["secret"])
    shell.note(f"{key['key_id']} ({key['name']}) is for {', '.join(key['scopes'])}. It is shown this once.")
    return exits.OK


@command("keys list", "list keys", needs="server")
def listing(options: argparse.Namespace, shell: Shell) -> int:
    """All that there ever were; what logs and the journal call each stands under IDENTITY."""
    keys = client_of(options, shell).get("/v1/keys")["keys"]
    if shell.as_json:
        shell.json({"keys": keys})
        return exits.OK
    rows = [
        (
            key["key_id"],
            key["name"],
            key["state"],
            key["identity"],
            ", ".join(key["scopes"]),
            key["requests_per_minute"] or "",
            key["tokens_per_minute"] or "",
            _moment(key["expires_ms"]) or "never",
        )
        for key in keys
    ]
    shell.table(
        ("KEY", "NAME", "STATE", "IDENTITY", "SCOPES", "RPM", "TPM", "EXPIRES"), rows, empty="There are no keys."
    )
    return exits.OK


def _key_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="its id, or its name")


@command("keys show", "show what a key may do", arguments=_key_argument, needs="server")
def show(options: argparse.Namespace, shell: Shell) -> int:
    """Everything but the key, which nobody keeps."""
    client = client_of(options, shell)
    key = client.get(f"/v1/keys/{_id_of(client, options.key)}")
    return _tell(key, shell)


def _change_arguments(parser: argparse.ArgumentParser) -> None:
    _key_argument(parser)
    parser.add_argument("--name", help="what to call it from now on")
    _limits(parser)


@command("keys change", "change what a key may do", arguments=_change_arguments, needs="server")
def change(options: argparse.Namespace, shell: Shell) -> int:
    """What is not named stays. An empty pattern lifts a restriction, 0 a limit, and `--expires 0s` the expiry."""
    body = _body(options) | ({"name": options.name} if options.name else {})
    for name in ("models", "routes"):
        if body.get(name) == [""]:
            body[name] = []
    if not body:
        raise UsageError("nothing is to be changed", remedy="`llama-orch keys change --help` lists what can be.")
    client = client_of(options, shell)
    return _tell(client.patch(f"/v1/keys/{_id_of(client, options.key)}", body), shell)


def _rotate_arguments(parser: argparse.ArgumentParser) -> None:
    _key_argument(parser)
    parser.add_argument("--grace", type=duration_ms, metavar="TIME", help="how long the old secret is accepted as well")


@command("keys rotate", "give a key a new secret and print it, once", arguments=_rotate_arguments, needs="server")
def rotate(options: argparse.Namespace, shell: Shell) -> int:
    """It stays the same key: its tasks, sessions, budgets and limits stay with it."""
    client = client_of(options, shell)
    body = {"grace_ms": options.grace or 0}
    return _tell_secret(client.post(f"/v1/keys/{_id_of(client, options.key)}/rotate", body), shell)


@command("keys revoke", "end a key for ever", arguments=_key_argument, needs="server")
def revoke(options: argparse.Namespace, shell: Shell) -> int:
    """It is refused from now on. Tasks that were accepted go on. The last key's end does not open the server again."""
    client = client_of(options, shell)
    key = client.delete(f"/v1/keys/{_id_of(client, options.key)}")
    if shell.as_json:
        shell.json(key)
    else:
        shell.note(f"Revoked {key['key_id']} ({key['name']}).")
    return exits.OK


def _id_of(client: Any, named: str) -> str:
    """The id of a key that is named by it, or by its name. :raises CliError: there is none."""
    keys = client.get("/v1/keys")["keys"]
    for key in keys:
        if key["key_id"] == named:
            return quote(named, safe="")
    same = [key for key in keys if key["name"] == named]
    found = next((key for key in same if key["state"] == "active"), same[-1] if same else None)
    if found is None:
        raise CliError(f"there is no key {named!r}", remedy="`llama-orch keys list` shows them.", code="NOT_FOUND")
    return str(found["key_id"])


def _tell(key: dict[str, Any], shell: Shell) -> int:
    if shell.as_json:
        shell.json(key)
        return exits.OK
    lines = (
        ("key", f"{key['key_id']} ({key['name']}), {key['state']}, {key['identity']}"),
        ("scopes", ", ".join(key["scopes"]) + (", batch tasks only" if key["batch_only"] else "")),
        ("models", ", ".join(key["models"]) or "all"),
        ("routes", ", ".join(key["routes"]) or "all that its scopes allow"),
        ("requests per minute", key["requests_per_minute"] or "no limit"),
        ("tokens per minute", key["tokens_per_minute"] or "no limit"),
        ("made", f"{_moment(key['created_ms'])} by {key['created_by']}"),
        ("expires", _moment(key["expires_ms"]) or "never"),
    )
    for name, value in lines:
        shell.line(f"{name + ':':<21}{value}")
    if key["previous_until_ms"]:
        shell.line(f"{'old secret until:':<21}{_moment(key['previous_until_ms'])}")
    return exits.OK


def _moment(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) if ms else ""
