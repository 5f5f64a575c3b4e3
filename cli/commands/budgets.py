"""Budgets: what keys and sessions may spend, what they did, and what is left."""

from __future__ import annotations

import argparse
import re
import time
from typing import Any
from urllib.parse import quote

from .. import exits
from ..command import command
from ..connect import client_of
from ..exits import UsageError
from ..shell import Shell

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NAMES = (("tokens", "tokens"), ("decode_ms", "decode time"), ("cost", "cost"))


@command("budgets list", "list budgets: caps, spent, reserved, left", needs="server")
def listing(options: argparse.Namespace, shell: Shell) -> int:
    """One line for each cap, or for what is only counted. Reserved is what running tasks hold; what is left is neither spent
    nor reserved.
    """
    found = client_of(options, shell).get("/v1/budgets")["budgets"]
    if shell.as_json:
        shell.json({"budgets": found})
    else:
        _table(found, shell)
    return exits.OK


def _subject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject", metavar="SUBJECT", help="a key's id (local: while there are no keys), or a session's id"
    )


@command("budgets show", "show the budgets of a key or session", arguments=_subject, needs="server")
def show(options: argparse.Namespace, shell: Shell) -> int:
    """One for each window that it has."""
    found = client_of(options, shell).get(_path(options.subject))["budgets"]
    if shell.as_json:
        shell.json({"budgets": found})
    else:
        _table(found, shell)
    return exits.OK


def _set_arguments(parser: argparse.ArgumentParser) -> None:
    _subject(parser)
    parser.add_argument("--window", choices=("none", "day", "month"), default="none", help="(default: none, for good)")
    parser.add_argument("--timezone", default="UTC", metavar="NAME", help="where days and months begin (default: UTC)")
    parser.add_argument("--tokens", type=int, metavar="N", help="cap on tokens of prompts and answers")
    parser.add_argument("--decode-ms", type=int, metavar="MS", help="cap on the time of decoding")
    parser.add_argument("--cost", metavar="DECIMAL", help="cap on money, in the currency of the price list")


@command("budgets set", "set a budget", arguments=_set_arguments, needs="server")
def put(options: argparse.Namespace, shell: Shell) -> int:
    """Opens the budget of that window, or changes its caps: a cap that is not named goes. What was spent stays.

    llama-orch budgets set local --window day --tokens 1000000 --cost 2.50
    """
    for name, got in (("--tokens", options.tokens), ("--decode-ms", options.decode_ms)):
        if got is not None and got < 0:
            raise UsageError(f"{name} {got}: a cap is not negative", remedy="Leave it out to have no cap.")
    caps = {"tokens": options.tokens, "decode_ms": options.decode_ms, "cost": options.cost}
    body = {"window": options.window, "timezone": options.timezone}
    body |= {name: value for name, value in caps.items() if value is not None}
    told = client_of(options, shell).put(_path(options.subject), body)
    if shell.as_json:
        shell.json(told)
    else:
        _table([told], shell)
    return exits.OK


def _remove_arguments(parser: argparse.ArgumentParser) -> None:
    _subject(parser)
    parser.add_argument("--window", choices=("none", "day", "month"), help="only the one of this window")


@command("budgets remove", "remove budgets", arguments=_remove_arguments, needs="server")
def remove(options: argparse.Namespace, shell: Shell) -> int:
    """A key goes back to the configured defaults (`budgets.keys`); what was spent is forgotten."""
    query = f"?window={options.window}" if options.window else ""
    client_of(options, shell).delete(_path(options.subject) + query)
    if shell.as_json:
        shell.json({"removed": True})
    else:
        which = "the budgets" if options.window is None else f"the budget with the window {options.window!r}"
        shell.note(f"Removed {which} of {options.subject}.")
    return exits.OK


# --- words ---------------------------------------------------------------------------------------------------------------


def _path(subject: str) -> str:
    scope = "session" if _UUID.fullmatch(subject) else "key"
    return f"/v1/budgets/{scope}/{quote(subject, safe='')}"


def _table(found: list[dict[str, Any]], shell: Shell) -> None:
    rows = []
    for budget in found:
        window = budget["window"] if budget["window"] == "none" else f"{budget['window']} ({budget['timezone']})"
        capped = [pair for pair in _NAMES if budget["caps"][pair[0]] is not None] or list(_NAMES)
        for name, words in capped:
            rows.append([
                budget["scope"],
                budget["subject"],
                window,
                words,
                _quantity(name, budget["caps"][name]),
                _quantity(name, budget["spent"][name]),
                _quantity(name, budget["reserved"][name]),
                _quantity(name, budget["remaining"][name]),
                _until(budget["window_end_ms"]),
            ])  # fmt: skip
    columns = ["SCOPE", "SUBJECT", "WINDOW", "WHAT", "CAP", "SPENT", "RESERVED", "LEFT", "BEGINS ANEW"]
    shell.table(columns, rows, empty="no budget is set")


def _quantity(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f} ms" if name == "decode_ms" else str(value)


def _until(end_ms: int) -> str:
    if not end_ms:
        return "never"
    left_s = max(0, end_ms / 1000 - time.time())
    return f"in {left_s / 3600:.1f} h" if left_s < 172_800 else f"in {left_s / 86_400:.0f} days"
