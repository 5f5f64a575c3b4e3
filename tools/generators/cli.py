"""docs/reference/cli.md from the command line's own parser."""

from __future__ import annotations

import argparse

from llama_orch.cli.exits import MEANINGS
from llama_orch.cli.parser import build_parser, leaves

_HEAD = """\
<!-- Generated from the command line's parser by `make generate`; edit the commands in cli/commands/. -->

# Command line

`llama-orch` (also `llama-orch-cli`) is everything a person or an agent does from a shell; `orchestratord` is
`llama-orch serve`. Results go to standard output, progress, remarks and errors to standard error. At a terminal there
are tables and colour, in a pipe tab-separated lines, and with `--json` JSON: errors too, as `{"error": {…}}` on standard
error.

"""

_COMMON = ("as_json", "quiet", "url", "config", "data_dir", "assignments")

_SERVER = """\
A command that talks to a server takes the one that `--url` or `LLORCH_URL` names, else the one that runs on the data
directory (`server.json` in it says where). `run` and `chat` start one for the call when there is none.
"""


def outputs() -> dict[str, bytes]:
    """The page as bytes, under its path."""
    parts = [_HEAD, "## Exit status\n\n| status | meaning |\n|---:|---|\n"]
    parts += [f"| {status} | {meaning} |\n" for status, meaning in MEANINGS.items()]
    parts += ["\n## Which server\n\n", _SERVER]
    commands = [(words, leaf) for words, leaf in leaves(build_parser()) if words and leaf.get_default("command")]
    every = {a.dest: a for _words, leaf in commands for a in leaf._actions}  # noqa: SLF001
    parts += ["\n## Common options\n\n", _table([(_flags(every[dest]), every[dest]) for dest in _COMMON])]
    for words, leaf in commands:
        parts.append(_section(words, leaf))
    return {"docs/reference/cli.md": "".join(parts).encode()}


def _section(words: tuple[str, ...], parser: argparse.ArgumentParser) -> str:
    command = parser.get_default("command")
    actions = parser._actions  # noqa: SLF001 - argparse has no other way to walk a parser
    positionals = [a for a in actions if not a.option_strings]
    options = [a for a in actions if a.option_strings and a.dest != "help"]
    usage = " ".join(["llama-orch", *words, *map(_usage, positionals), *(["[OPTION …]"] if options else [])])
    text = f"\n## llama-orch {' '.join(words)}\n\n{command.summary[0].upper()}{command.summary[1:]}.\n\n    {usage}\n"
    if command.details:
        text += "\n" + "\n".join(_prose(command.details)) + "\n"
    rows = [(f"`{_usage(a)}`", a) for a in positionals] + [(_flags(a), a) for a in options if a.dest not in _COMMON]
    if rows:
        text += "\n" + _table(rows)
    common = ", ".join(f"`{a.option_strings[0]}`" for a in options if a.dest in _COMMON)
    return f"{text}\nCommon options: {common}.\n"


def _table(rows: list[tuple[str, argparse.Action]]) -> str:
    return "| argument | meaning |\n|---|---|\n" + "".join(f"| {spelled} | {_help(a)} |\n" for spelled, a in rows)


def _prose(details: str) -> list[str]:
    """Paragraphs; lines such as `Example: …` and `bash: …` stand as code."""
    lines = []
    for line in details.splitlines():
        label, colon, rest = line.partition(": ")
        is_code = colon and label in {"Example", "bash", "zsh", "fish", "Use it as"}
        lines.append(f"- {label}: `{rest}`" if is_code else line)
    return lines


def _usage(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest).upper()
    if action.nargs == "*":
        return f"[{name} …]"
    return f"[{name}]" if action.nargs == "?" else name


def _flags(action: argparse.Action) -> str:
    value = ""
    if action.nargs != 0:
        value = " " + str(action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper())
    return ", ".join(f"`{flag}{value}`" for flag in action.option_strings).replace("|", "\\|")


def _help(action: argparse.Action) -> str:
    said = (action.help or "").replace("|", "\\|")
    return said[:1].upper() + said[1:] if said else ("One of " + ", ".join(map(str, action.choices or ())))
