"""Pools: how they stand, what is wrong with them, and what a person can do with them."""

from __future__ import annotations

import argparse
import time
from typing import Any
from urllib.parse import quote

from .. import exits
from ..command import command
from ..connect import client_of, loaded_from
from ..exits import CliError
from ..shell import Shell

_MIB = 1_048_576


@command("pools", "list the pools: state, device, slots, memory, cause and advice", needs="server")
def pools(options: argparse.Namespace, shell: Shell) -> int:
    """A pool is an engine with one model on one set of devices. What is wrong with one stands below the list, with what
    to do about it. `llama-orch explain MODEL` says in words why a model is where it is.
    """
    client = client_of(options, shell)
    found = [client.get(_path(pool["pool_id"], "health")) for pool in client.get("/v1/pools")["pools"]]
    if shell.as_json:
        shell.json({"pools": found})
        return exits.OK
    columns = ["POOL", "STATE", "MODEL", "DEVICE", "SLOTS", "MEMORY", "SINCE", "CAUSE"]
    shell.table(columns, [_row(pool) for pool in found], empty="no pool is configured")
    for pool in found:
        for line in _troubles(pool):
            shell.line(line)
    return exits.OK


def _pool_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", help="the pool's id")


@command("pools show", "show one pool", arguments=_pool_argument, needs="server")
def show(options: argparse.Namespace, shell: Shell) -> int:
    """All that its health says."""
    pool = client_of(options, shell).get(_path(options.pool, "health"))
    if shell.as_json:
        shell.json(pool)
        return exits.OK
    shell.line(f"{pool['pool_id']}: {pool['state']}")
    for name, value in (
        ("model", _model(pool)),
        ("engine", f"{pool['engine']} {pool['engine_version']}".strip()),
        ("host", pool["host"]),
        ("devices", ", ".join(pool["devices"])),
        ("slots", f"{pool['active_leases']} of {pool['slots']} taken" if pool["slots"] else ""),
        ("context", f"{pool['ctx']} tokens a slot" if pool["ctx"] else ""),
        ("memory", "; ".join(_memory(pool))),
        ("decodes", f"{pool['decode_mtok_s'] / 1000:.1f} tokens/s" if pool["decode_mtok_s"] else ""),
        ("loaded in", f"{pool['load_ms'] / 1000:.1f} s" if pool["load_ms"] else ""),
        ("restarts", str(pool["restarts"])),
    ):
        if value:
            shell.line(f"  {name + ':':<11} {value}")
    for line in _troubles(pool):
        shell.line(line)
    return exits.OK


def _drain_arguments(parser: argparse.ArgumentParser) -> None:
    _pool_argument(parser)
    parser.add_argument(
        "--deadline",
        type=float,
        metavar="S",
        help="seconds that running tasks may take; what runs longer is given up for another attempt (default: no end)",
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="for whoever reads the journal")
    parser.add_argument("--wait", action="store_true", help="return once nothing runs on it any more")


@command("pools drain", "take a pool out of service", arguments=_drain_arguments, needs="server")
def drain(options: argparse.Namespace, shell: Shell) -> int:
    """It takes no new tasks, lets running ones end, and is unloaded then, until `llama-orch pools undrain`. No task is lost:
    what waits for it, and what was given up, goes on elsewhere or later.
    """
    client = client_of(options, shell)
    body: dict[str, Any] = {"reason": options.reason}
    if options.deadline is not None:
        body["deadline_ms"] = round(options.deadline * 1000)
    answer = client.post(_path(options.pool, "drain"), body)
    while options.wait:
        health = client.get(_path(options.pool, "health"))
        if not health["active_leases"] and not health["ready"]:
            answer = {**answer, "active_leases": 0}
            break
        client.pause(0.2)
    if shell.as_json:
        shell.json(answer)
    else:
        shell.note(f"{options.pool} takes no new tasks; {answer['active_leases']} run on it.")
    return exits.OK


@command("pools undrain", "put a pool back into service", arguments=_pool_argument, needs="server")
def undrain(options: argparse.Namespace, shell: Shell) -> int:
    """It is loaded again if it has to be, and takes tasks. One that failed is tried at once: say it when you mended the cause."""
    answer = client_of(options, shell).post(_path(options.pool, "undrain"))
    if shell.as_json:
        shell.json(answer)
    else:
        shell.note(f"{options.pool} takes tasks again.")
    return exits.OK


def _reload_arguments(parser: argparse.ArgumentParser) -> None:
    _pool_argument(parser)
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a reference or a name (default: the one it has, anew)"
    )
    parser.add_argument(
        "--handover",
        choices=("auto", "new-first", "drain"),
        default="auto",
        help="prove the new model beside the old one, or end the old one first (default: as memory allows)",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        metavar="S",
        help="seconds that tasks on the old model may still take (default: no end)",
    )
    parser.add_argument("--wait", action="store_true", help="return once it is done, with status 1 if it failed")


@command("pools reload", "change a pool's model, or start it anew", arguments=_reload_arguments, needs="server")
def reload(options: argparse.Namespace, shell: Shell) -> int:
    """The new model has to decode before the old one goes, where memory allows; should it not come up, the pool serves what
    it served before. The pool keeps its names.

    Example: llama-orch pools reload chat hf:org/repo/newer.gguf --wait
    """
    client = client_of(options, shell)
    model = options.model or client.get(_path(options.pool, "health"))["model_source"]
    body: dict[str, Any] = {"new_model_ref": model, "handover": options.handover}
    if options.deadline is not None:
        body["deadline_ms"] = round(options.deadline * 1000)
    answer = client.post(_path(options.pool, "reload"), body)
    failed: dict[str, Any] | None = None
    while options.wait:
        state = client.get(_path(options.pool, "health"))["reload"]
        if state is None or state["trouble"]:
            failed = state
            break
        client.pause(0.2)
    if failed is not None:
        raise CliError(
            f"{options.pool} keeps its model: {failed['trouble']}",
            remedy=failed["advice"],
            code="RELOAD_FAILED",
            pool_id=options.pool,
        )
    if shell.as_json:
        shell.json(answer)
    else:
        done = "serves" if options.wait else f"is being changed ({answer['handover']}) to"
        shell.note(f"{options.pool} {done} {model}.")
    return exits.OK


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    _pool_argument(parser)
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--lines", "-n", type=int, default=50, metavar="N", help="so many of the last (default: 50)")


@command("pools logs", "show what a pool's engine says", arguments=_logs_arguments, needs="config")
def logs(options: argparse.Namespace, shell: Shell) -> int:
    """Reads the engine's log in the data directory of this machine; no server has to run."""
    from ...pools.logs import follow, last_lines, newest_log

    folder = loaded_from(options, shell).data_dir / "engines"
    if "/" in options.pool or options.pool.startswith("."):
        raise CliError(f"{options.pool!r} is no pool's id", remedy="`llama-orch pools` lists the pools.")
    newest = newest_log(folder, options.pool)
    if not options.follow and not newest.exists():
        raise CliError(
            f"there is no log of a pool {options.pool!r} in {folder}",
            remedy="`llama-orch pools` lists the pools; external engines have their logs elsewhere.",
        )
    if not options.follow:
        lines = last_lines(newest, options.lines)
        if shell.as_json:
            shell.json({"pool_id": options.pool, "log": str(newest), "lines": lines})
        else:
            for line in lines:
                shell.line(line)
        return exits.OK

    def wait() -> bool:
        shell.stdout.flush()
        time.sleep(0.2)
        return True

    for line in follow(newest, options.lines, wait=wait):
        if shell.as_json:
            shell.json_line({"pool_id": options.pool, "line": line})
        else:
            shell.line(line)
    return exits.OK


# --- words ---------------------------------------------------------------------------------------------------------------


def _path(pool_id: str, what: str) -> str:
    return f"/v1/pools/{quote(pool_id, safe='')}/{what}"


def _row(pool: dict[str, Any]) -> list[object]:
    error = pool["last_error"]
    return [
        pool["pool_id"],
        pool["state"],
        _model(pool),
        ", ".join(pool["devices"]) or "-",
        f"{pool['active_leases']}/{pool['slots']}" if pool["slots"] else "-",
        "; ".join(_memory(pool)) or "-",
        _ago(time.time() * 1000 - pool["since_ms"]),
        error["cause"] if error else "",
    ]


def _model(pool: dict[str, Any]) -> str:
    name, source = pool["model_ref"], pool["model_source"]
    return str(name) if source == name else f"{name} ({source})"


def _memory(pool: dict[str, Any]) -> list[str]:
    """Predicted and, once it was measured, observed memory."""
    told = []
    for device, memory in pool["memory"].items():
        where = "" if len(pool["memory"]) == 1 else f"{device}: "
        predicted, observed = memory["predicted_bytes"], memory["observed_bytes"]
        if predicted or observed:
            seen = f", {_mib(observed)} seen" if observed else ""
            told.append(f"{where}{_mib(predicted)} predicted{seen}")
    return told


def _mib(count: int) -> str:
    return f"{count / _MIB / 1024:.1f} GiB" if count >= 1024 * _MIB else f"{round(count / _MIB)} MiB"


def _troubles(pool: dict[str, Any]) -> list[str]:
    """What is wrong, and what to do about it."""
    lines = []
    error = pool["last_error"]
    if error:
        again = f" (tried again in {error['retry_ms'] / 1000:.0f} s)" if error["retry_ms"] else ""
        lines.append(f"{pool['pool_id']}: {error['cause']}: {error['detail'] or 'no detail'}{again}")
        if error["advice"]:
            lines.append(f"  {error['advice']}")
    reloading = pool["reload"]
    if reloading and reloading["trouble"]:
        lines.append(f"{pool['pool_id']}: its last reload failed: {reloading['trouble']}")
        if reloading["advice"]:
            lines.append(f"  {reloading['advice']}")
    elif reloading:
        lines.append(f"{pool['pool_id']}: is being changed to {reloading['to']} ({reloading['handover']})")
    if pool["drain"] and pool["drain"]["cause"] == "operator":
        lines.append(f"{pool['pool_id']}: was drained; `llama-orch pools undrain {pool['pool_id']}` puts it back")
    return lines


def _ago(ms: float) -> str:
    seconds = max(0, round(ms / 1000))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
