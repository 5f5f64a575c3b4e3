"""`init`: write a first configuration."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .. import exits
from ..command import command
from ..exits import CliError
from ..shell import Shell


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="where to (default: the user's configuration directory)"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


@command("init", "write a commented configuration for this machine", arguments=_arguments)
def init(options: argparse.Namespace, shell: Shell) -> int:
    """Looks at processors and NVIDIA GPUs, and writes a YAML file that works as it is. Replaces nothing without --force."""
    from ..config import default_config_path
    from ..detect import detect
    from ..starter_config import render

    path = Path(options.file).expanduser().absolute() if options.file else default_config_path()
    if path.suffix not in {".yaml", ".yml"}:
        raise CliError(
            f"{path.name}: init writes YAML", remedy="Give the file a name that ends with .yaml.", status=exits.USAGE
        )
    machine = detect()
    text = render(machine)
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if options.force else os.O_EXCL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise CliError(
            f"{path} exists already", remedy="Write it anew with --force, or name another file.", code="EXISTS"
        ) from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    if shell.as_json:
        shell.json({"file": str(path), "cpus": machine.cpus, "gpus": [gpu.name for gpu in machine.gpus]})
        return exits.OK
    gpus = (
        ", ".join(f"{gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in machine.gpus)
        or f"no NVIDIA GPU ({machine.gpu_note})"
    )
    shell.line(str(path))
    shell.note(f"Found {machine.cpus} processors, {gpus}. Next: llama-orch config check {path}; llama-orch serve")
    return exits.OK
