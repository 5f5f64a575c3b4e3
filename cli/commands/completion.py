"""`completion`: scripts that let a shell complete commands and options."""

from __future__ import annotations

import argparse

from .. import exits
from ..command import command
from ..shell import Shell


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell_name", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


@command("completion", "print a completion script for bash, zsh or fish", arguments=_arguments)
def completion(options: argparse.Namespace, shell: Shell) -> int:
    """Where the script goes depends on the shell.

    bash: source <(llama-orch completion bash)
    zsh: llama-orch completion zsh > a file named _llama-orch in a directory of $fpath
    fish: llama-orch completion fish | source
    """
    from ..completion import script
    from ..parser import build_parser

    text = script(options.shell_name, build_parser())
    shell.json({"shell": options.shell_name, "script": text}) if shell.as_json else shell.stdout.write(text)
    return exits.OK
