"""`gpus`: what the GPUs and the memory are doing."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from .. import exits
from ..command import command
from ..connect import client_of
from ..exits import CliError, UsageError
from ..shell import Shell

_GIB = 2**30
_BAR = 10
_LEAST_S = 0.05
#: at a terminal: to the upper left corner, and nothing below
_HOME, _REST = "\x1b[H", "\x1b[J"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", "-w", action="store_true", help="again and again, until Ctrl-C")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between two looks (default: 1)")
    parser.add_argument("--long", "-l", action="store_true", help="with UUIDs, PCI addresses and processes")


@command("gpus", "show GPUs and memory: use, temperature, power, pools", arguments=_arguments, needs="server")
def gpus(options: argparse.Namespace, shell: Shell) -> int:
    """Asks the server, which knows the GPUs of all hosts and whose engines are on them. When none runs it asks this
    machine's driver itself, and says so. With --watch --json each look is one JSON object on a line.
    """
    if options.every < _LEAST_S:
        raise UsageError(f"--every {options.every:g} is too short", remedy=f"Take at least {_LEAST_S:g} seconds.")
    with contextlib.ExitStack() as undo:
        look = _look(options, shell, undo)
        if not options.watch:
            _show(look(), shell, long=options.long)
            return exits.OK
        for found in _again(look, options.every):
            if shell.as_json:
                shell.json_line(found)
                continue
            if shell.at_terminal:
                shell.stdout.write(_HOME + _REST)
            _show(found, shell, long=options.long)
            shell.stdout.flush()
    return exits.OK


def _look(options: argparse.Namespace, shell: Shell, undo: contextlib.ExitStack) -> Callable[[], dict[str, Any]]:
    """What is asked: the server, or this machine's driver when none runs."""
    try:
        client = client_of(options, shell)
    except CliError as error:
        if error.code != "NO_SERVER":
            raise
        shell.note("No server runs: these are this machine's GPUs, as its driver tells of them now.")
        return _directly(options.every, undo)
    return lambda: dict(client.get("/v1/gpus"))


def _directly(every_s: float, undo: contextlib.ExitStack) -> Callable[[], dict[str, Any]]:
    import msgspec

    from ...core.services.gpus import view_of
    from ...pools.telemetry.sampler import Sampler

    sampler = Sampler("local", period_s=every_s)
    sampler.start()
    undo.callback(sampler.stop)
    sampler.wait_first()

    def look() -> dict[str, Any]:
        sample = sampler.sample()
        return {"hosts": [msgspec.to_builtins(view_of(sample, {}, age_ms=sample.age_ms))]}

    return look


def _again(look: Callable[[], dict[str, Any]], every_s: float) -> Iterator[dict[str, Any]]:
    while True:
        yield look()
        time.sleep(every_s)


def _show(found: dict[str, Any], shell: Shell, *, long: bool) -> None:
    if shell.as_json:
        shell.json(found)
        return
    bars = shell.at_terminal
    for number, host in enumerate(found["hosts"]):
        if number:
            shell.line()
        if bars:
            shell.line(_heading(host))
        rows = [_row(host, gpu, bars=bars, long=long) for gpu in host["gpus"]]
        if not rows and host["trouble"] and not bars:
            rows.append(
                [host["host"], "", "not known", *[""] * 5, host["trouble"]["cause"], *[""] * (3 if long else 0)]
            )
        if host["memory"]:
            rows.append(_memory_row(host, bars=bars, long=long))
        columns = ["HOST", "GPU", "NAME", "MEMORY", "LOAD", "TEMP", "POWER", "POOLS", "TROUBLE"]
        if long:
            columns += ["UUID", "PCI", "PROCESSES"]
        if bars:
            # A column that says nothing takes room from those that do; troubles have lines of their own.
            hidden = {"HOST", "TROUBLE"}
            kept = [n for n, name in enumerate(columns) if name not in hidden and any(row[n] for row in rows)]
            columns, rows = [columns[n] for n in kept], [[row[n] for n in kept] for row in rows]
        shell.table(columns, rows, empty="no GPU")
        for gpu in host["gpus"] if bars else ():
            if gpu["trouble"]:
                shell.line(f"GPU {gpu['index']}: {gpu['trouble']['message']}. {gpu['trouble']['advice']}")
        if host["trouble"] and bars:
            shell.line(f"{host['trouble']['message']}. {host['trouble']['advice']}")


def _heading(host: dict[str, Any]) -> str:
    parts = [host["host"]]
    if host["driver_version"]:
        parts.append(f"driver {host['driver_version']}")
    if host["cuda_version"]:
        parts.append(f"CUDA {host['cuda_version']}")
    if host["age_ms"] is not None:
        parts.append(f"{host['age_ms'] / 1000:.1f} s old")
    return " · ".join(parts)


def _row(host: dict[str, Any], gpu: dict[str, Any], *, bars: bool, long: bool) -> list[str]:
    trouble = gpu["trouble"] or host["trouble"]
    row = [
        host["host"],
        str(gpu["index"]),
        gpu["name"],
        _memory(gpu["used_bytes"], gpu["total_bytes"], gpu["reserved_bytes"], bars=bars),
        _load(gpu["utilization_percent"], bars=bars),
        "" if gpu["temperature_c"] is None else f"{gpu['temperature_c']} °C",
        "" if gpu["power_mw"] is None else f"{gpu['power_mw'] / 1000:.0f} W",
        ", ".join(gpu["pools"]),
        trouble["cause"] if trouble else "",
    ]
    if long:
        processes = gpu["processes"]
        row += [
            gpu["uuid"],
            gpu["pci_bus_id"],
            "not told" if processes is None else ", ".join(map(_process, processes)),
        ]
    return row


def _memory_row(host: dict[str, Any], *, bars: bool, long: bool) -> list[str]:
    memory = host["memory"]
    used = memory["total_bytes"] - memory["available_bytes"]
    limit = "memory, limited by its control group" if memory["limit_bytes"] else "memory"
    row = [host["host"], "cpu", limit, _memory(used, memory["total_bytes"], None, bars=bars)]
    return row + [""] * (8 if long else 5)


def _memory(used: int | None, total: int | None, reserved: int | None, *, bars: bool) -> str:
    if total is None:
        return ""
    if used is None:
        return f"? / {total / _GIB:.1f} GiB"
    taken = used + (reserved or 0)
    said = f"{taken / _GIB:.1f} / {total / _GIB:.1f} GiB"
    return f"{_bar(taken, total)} {said}" if bars else said


def _load(percent: int | None, *, bars: bool) -> str:
    if percent is None:
        return ""
    return f"{_bar(percent, 100)} {percent} %" if bars else f"{percent} %"


def _bar(part: int, whole: int) -> str:
    filled = min(_BAR, round(part / whole * _BAR)) if whole else 0
    return "█" * filled + "░" * (_BAR - filled)


def _process(process: dict[str, Any]) -> str:
    used = process["used_bytes"]
    return f"{process['pid']}" + ("" if used is None else f" ({used / _GIB:.1f} GiB)")
