"""Completion scripts, made from the parser: commands, subcommands, options, choices, files."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from .parser import leaves

#: Arguments that name a file or directory, by their metavar.
_FILES = frozenset({"FILE", "DIR"})


@dataclass(frozen=True, slots=True)
class _Place:
    """What may stand behind some words."""

    words: tuple[str, ...]
    #: (word, help)
    subcommands: tuple[tuple[str, str], ...]
    #: (flags, help, choices, takes a file, takes a value)
    options: tuple[tuple[tuple[str, ...], str, tuple[str, ...], bool, bool], ...]
    #: choices of positional arguments, and whether one is a file
    values: tuple[str, ...]
    files: bool


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for ``bash``, ``zsh`` or ``fish``."""
    places = list(_places(parser))
    names = ("llama-orch", "llama-orch-cli")
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](places, names)


def _places(parser: argparse.ArgumentParser) -> Iterator[_Place]:
    for words, leaf in leaves(parser):
        subcommands: list[tuple[str, str]] = []
        options, values, files = [], [], False
        for action in leaf._actions:  # noqa: SLF001 - argparse has no other way to walk a parser
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
                subcommands += [(choice.dest, choice.help or "") for choice in action._choices_actions]  # noqa: SLF001
            elif action.option_strings:
                options.append(
                    (
                        tuple(action.option_strings),
                        _first_sentence(action.help),
                        tuple(str(choice) for choice in action.choices or ()),
                        action.metavar in _FILES,
                        action.nargs != 0,
                    )
                )
            else:
                values += [str(choice) for choice in action.choices or ()]
                files = files or action.metavar in _FILES
        yield _Place(words, tuple(subcommands), tuple(options), tuple(values), files)


def _bash(places: list[_Place], names: tuple[str, ...]) -> str:
    lines = [
        "# bash completion for llama-orch; source it, or put it into the directory of bash-completion.",
        "_llama_orch() {",
        '    local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" path="" word',
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        '        case "$path $word" in',
    ]
    paths = [" ".join(place.words) for place in places if place.words]
    lines += [f"            {shlex.quote(_joined(path))}) path={shlex.quote(_joined(path))} ;;" for path in paths]
    lines += ["        esac", "    done", "    COMPREPLY=()", '    case "$path:$before" in']
    for place in places:
        path = _joined(" ".join(place.words))
        for flags, _help, choices, is_file, takes in place.options:
            if not takes:
                continue
            pattern = "|".join(shlex.quote(f"{path}:{flag}") for flag in flags)
            if choices:
                action = f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(choices))} -- "$current"))'
            elif is_file:
                action = 'COMPREPLY=($(compgen -f -- "$current"))'
            else:
                action = ":"
            lines.append(f"        {pattern}) {action}; return ;;")
    lines += ["    esac", '    case "$path" in']
    for place in places:
        words = [name for name, _help in place.subcommands] + list(place.values)
        words += [flag for flags, *_rest in place.options for flag in flags]
        extra = ' COMPREPLY+=($(compgen -f -- "$current"));' if place.files else ""
        lines.append(
            f"        {shlex.quote(_joined(' '.join(place.words)))})"
            f' COMPREPLY=($(compgen -W {shlex.quote(" ".join(words))} -- "$current"));{extra} ;;'
        )
    lines += ["    esac", "}", f"complete -F _llama_orch {' '.join(names)}", ""]
    return "\n".join(lines)


def _joined(path: str) -> str:
    """Words as the bash script builds them: with a space before each."""
    return "".join(f" {word}" for word in path.split())


def _zsh(places: list[_Place], names: tuple[str, ...]) -> str:
    lines = [
        f"#compdef {' '.join(names)}",
        "# zsh completion for llama-orch; put it into a directory of $fpath under the name _llama-orch.",
        "_llama_orch() {",
        '    local path="" word',
        '    for word in "${(@)words[2,CURRENT-1]}"; do',
        '        case "$path $word" in',
    ]
    lines += [
        f"            {shlex.quote(_joined(' '.join(place.words)))}) path={shlex.quote(_joined(' '.join(place.words)))} ;;"
        for place in places
        if place.words
    ]
    lines += ["        esac", "    done", '    local before="${words[CURRENT-1]}"', '    case "$path:$before" in']
    for place in places:
        path = _joined(" ".join(place.words))
        for flags, _help, choices, is_file, takes in place.options:
            if takes:
                pattern = "|".join(shlex.quote(f"{path}:{flag}") for flag in flags)
                action = (
                    f"compadd -- {' '.join(map(shlex.quote, choices))}"
                    if choices
                    else "_files"
                    if is_file
                    else "_message value"
                )
                lines.append(f"        {pattern}) {action}; return ;;")
    lines += ["    esac", "    local -a found", '    case "$path" in']
    for place in places:
        entries = [f"{name}:{_first_sentence(text)}" for name, text in place.subcommands]
        entries += [f"{flag}:{text}" for flags, text, *_rest in place.options for flag in flags]
        entries += list(place.values)
        quoted = " ".join(shlex.quote(entry.replace("`", "")) for entry in entries)
        files = " _files;" if place.files else ""
        lines.append(f"        {shlex.quote(_joined(' '.join(place.words)))}) found=({quoted});{files} ;;")
    lines += ["    esac", "    _describe 'llama-orch' found", "}", '_llama_orch "$@"', ""]
    return "\n".join(lines)


def _fish(places: list[_Place], names: tuple[str, ...]) -> str:
    lines = ["# fish completion for llama-orch."]
    lines += [
        "function __llama_orch_at",
        "    set -l words (commandline -opc | string match -v -- '-*')",
        "    set -e words[1]",
        '    string match -q -- "$argv *" "$words "',
        "end",
    ]
    for name in names:
        lines.append(f"complete -c {name} -f")
        for place in places:
            condition = f"__llama_orch_at {' '.join(place.words)}" if place.words else "__fish_use_subcommand"
            if place.words and place.subcommands:
                inner = " ".join(sub for sub, _help in place.subcommands)
                condition += f"; and not __fish_seen_subcommand_from {inner}"
            head = f"complete -c {name} -n {shlex.quote(condition)}"
            lines += [f"{head} -a {sub} -d {shlex.quote(_first_sentence(text))}" for sub, text in place.subcommands]
            lines += [f"{head} -a {shlex.quote(value)}" for value in place.values]
            if place.files:
                lines.append(f"{head} -F")
            for flags, text, choices, is_file, takes in place.options:
                spelled = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in flags)
                wants = (
                    f" -x -a {shlex.quote(' '.join(choices))}"
                    if choices
                    else " -r -F"
                    if is_file
                    else " -x"
                    if takes
                    else ""
                )
                lines.append(f"{head} {spelled}{wants} -d {shlex.quote(text)}")
    return "\n".join([*lines, ""])


def _first_sentence(text: str | None) -> str:
    return (text or "").replace("\n", " ").split(";")[0].split(" (")[0]
