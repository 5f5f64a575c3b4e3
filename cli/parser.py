"""The argument parser, built from the declared commands; completion scripts and the reference page walk it too."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from typing import NoReturn

from llama_orch import __version__  # pyright knows no relative name for the root of the folders

from .command import Command, commands
from .exits import MEANINGS, UsageError

_INVALID_CHOICE = re.compile(r"invalid choice: '?([^',]*)'? \(choose from (.*)\)")
_NO_WHOLE_NUMBER = re.compile(r"argument (\S+): invalid int value: (.*)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are a :class:`UsageError` with the nearest name, instead of an exit."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong. :raises UsageError: always."""
        remedy = f"`{self.prog} --help` shows the usage."
        wrong = _INVALID_CHOICE.search(message)
        if wrong:
            names = [name.strip(" '") for name in wrong[2].split(",")]
            near = difflib.get_close_matches(wrong[1], names, n=1)
            what = message.split(":", 1)[0].removeprefix("argument ")
            kind = "command" if what in {"COMMAND", "SUBCOMMAND"} else f"value of {what}"
            message = f"{wrong[1]!r} is no {kind}" + (f"; did you mean {near[0]!r}?" if near else "")
            remedy = f"One of: {', '.join(names)}. " + remedy
        elif message.startswith("unrecognized arguments: "):
            flags = [option for action in self._actions for option in action.option_strings]
            wanted = message.removeprefix("unrecognized arguments: ").split(" ")[0]
            near = difflib.get_close_matches(wanted.split("=")[0], flags, n=1)
            message = f"{wanted!r} is not understood" + (f"; did you mean {near[0]!r}?" if near else "")
            if wanted.split("=")[0] in flags:
                message = f"{wanted!r} stands before the command, and belongs behind it"
        elif whole := _NO_WHOLE_NUMBER.fullmatch(message):
            message = f"{whole[1]} takes a whole number, not {whole[2]}"
        raise UsageError(message, remedy=remedy)


def build_parser(prog: str = "llama-orch") -> Parser:
    """The whole parser. The namespace it makes holds the chosen :class:`Command` as ``command``."""
    parser = Parser(
        prog=prog,
        description="One queue, one journal and explainable placement for local LLM engines.",
        epilog='`llama-orch run "Write a haiku about rain"` needs no server and no configuration. '
        "Exit status: " + "; ".join(f"{status} {meaning}" for status, meaning in MEANINGS.items()) + ".",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"llama-orch {__version__}")
    top = parser.add_subparsers(metavar="COMMAND", dest="command_name", parser_class=Parser, title="commands")
    groups: dict[str, argparse._SubParsersAction[Parser]] = {}
    alone: dict[str, Parser] = {}
    for found in commands().values():
        first, _, second = found.name.partition(" ")
        into = top
        if second:
            if first not in groups:
                # A command of one word may have subcommands beside: `pools` lists, `pools show` shows one.
                group = alone.get(first) or top.add_parser(
                    first, help=found.group_summary, description=found.group_summary, allow_abbrev=False
                )
                groups[first] = group.add_subparsers(
                    metavar="SUBCOMMAND", dest="subcommand_name", parser_class=Parser, required=first not in alone
                )
            into = groups[first]
        leaf = into.add_parser(
            second or first,
            help=found.summary,
            description=f"{found.summary}\n\n{found.details}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if not second:
            alone[first] = leaf
        if found.arguments is not None:
            found.arguments(leaf)
        _common_options(leaf, found)
        leaf.set_defaults(command=found, leaf=leaf)
    return parser


def parse(parser: Parser, arguments: list[str]) -> argparse.Namespace:
    """Parse, with the chosen command's own parser complaining about what is left over. :raises UsageError: bad usage."""
    options, rest = parser.parse_known_args(arguments)
    if rest:
        leaf: Parser = getattr(options, "leaf", parser)
        leaf.error("unrecognized arguments: " + " ".join(rest))
    return options


def leaves(parser: argparse.ArgumentParser) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """All parsers below (and with) ``parser``, with the words that lead to them, groups before their subcommands."""
    yield (), parser
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to walk a parser
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for name, below in action.choices.items():
                for words, leaf in leaves(below):
                    yield (name, *words), leaf


def _common_options(parser: argparse.ArgumentParser, found: Command) -> None:
    options = parser.add_argument_group("common options")
    options.add_argument("--json", dest="as_json", action="store_true", help="print results and errors as JSON")
    options.add_argument("--quiet", "-q", action="store_true", help="no progress and no remarks")
    if found.needs == "server":
        options.add_argument(
            "--url", metavar="URL", help="the server's address (default: LLORCH_URL, else the running one)"
        )
    if found.needs in {"server", "config"}:
        options.add_argument("--config", metavar="FILE", help="configuration, YAML or TOML (default: LLORCH_CONFIG)")
        options.add_argument("--data-dir", metavar="DIR", help="journal, logs and engine state live here")
        options.add_argument(
            "--set",
            dest="assignments",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="set any key of the configuration, e.g. --set journal.commit_window_ms=2",
        )
