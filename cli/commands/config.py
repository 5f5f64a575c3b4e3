"""The configuration: check a file, print its schema."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .. import exits
from ..command import command
from ..connect import loaded_from
from ..shell import Shell


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="YAML or TOML (default: the one that serve would read)")


@command(
    "config check",
    "check a configuration, with environment and flags on top",
    arguments=_check_arguments,
    needs="config",
)
def check_config(options: argparse.Namespace, shell: Shell) -> int:
    """Finds unknown keys, wrong values, and what types cannot say: double pool ids, missing model files, unknown
    engines, addresses that other machines could reach. With --json it prints the effective configuration, without
    secrets. Exit status 2 when something is wrong.
    """
    options.config = options.file or options.config
    loaded = loaded_from(options, shell)
    from ..config_check import require_sound

    require_sound(loaded)
    if shell.as_json:
        shell.json(
            {
                "file": str(loaded.path) if loaded.path else None,
                "data_dir": str(loaded.data_dir),
                "set_by": dict(loaded.set_by),
                "settings": effective(loaded.settings),
            }
        )
        return exits.OK
    source = str(loaded.path) if loaded.path else "the defaults (no file)"
    pools = ", ".join(f"{pool.id} ({pool.engine}, {pool.model})" for pool in loaded.settings.pools) or "none"
    shell.line(f"{source}: sound")
    shell.line(f"  bind {loaded.settings.bind}, data in {loaded.data_dir}")
    shell.line(f"  pools: {pools}")
    return exits.OK


@command("config schema", "print the JSON Schema of the configuration")
def schema(options: argparse.Namespace, shell: Shell) -> int:
    """Editors complete and check a file with it."""
    from ..config_schema import settings_schema

    shell.stdout.write(json.dumps(settings_schema(), indent=2) + "\n")
    return exits.OK


def effective(settings: Any) -> Any:
    """Settings as plain values, without secrets."""
    import msgspec

    from ..redact import redact

    return redact(msgspec.to_builtins(settings))
