"""How a command is declared and found: one module below `cli/commands/`, nothing lists them by hand.

A module declares its commands with :func:`command`; ``journal verify`` (a name of two words) becomes a
subcommand of ``journal``, whose help is the module's docstring. Modules are imported to build the parser, also
for ``--help``: heavy imports belong inside the functions.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .shell import Shell

Execute = Callable[[argparse.Namespace, Shell], int]
Needs = Literal["nothing", "config", "server"]


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the command line."""

    #: one word, or two for a subcommand
    name: str
    #: one line
    summary: str
    execute: Execute
    arguments: Callable[[argparse.ArgumentParser], None] | None
    #: which common options it takes: ``config`` adds --config, --data-dir, --set; ``server`` adds --url, --config, --data-dir
    needs: Needs
    #: prose below the summary; may hold an example
    details: str
    #: summary of the group when the name has two words
    group_summary: str


_found: dict[str, Command] = {}


def command(
    name: str,
    summary: str,
    *,
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    needs: Needs = "nothing",
) -> Callable[[Execute], Execute]:
    """Declare the function that executes a command; its docstring becomes the command's description.

    :param arguments: adds the command's own arguments to its parser.
    :raises TypeError: the name is taken.
    """

    def declare(execute: Execute) -> Execute:
        if name in _found:
            raise TypeError(f"command {name!r} is declared twice")
        module = sys.modules[execute.__module__]
        _found[name] = Command(
            name=name,
            summary=summary,
            execute=execute,
            arguments=arguments,
            needs=needs,
            details=_plain(execute.__doc__),
            group_summary=_plain(module.__doc__).split("\n", 1)[0],
        )
        return execute

    return declare


def commands() -> dict[str, Command]:
    """All declared commands by name, sorted."""
    package = importlib.import_module("llama_orch.cli.commands")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{info.name}")
    return dict(sorted(_found.items()))


def _plain(doc: str | None) -> str:
    lines = (doc or "").strip().splitlines()
    return "\n".join(line.strip() for line in lines)
