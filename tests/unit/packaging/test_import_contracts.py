"""The contracts in pyproject.toml forbid what they say: a planted import of each kind is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAYERS = "Inside core a layer imports only what is below it"
ALONE = "core knows no plugin, no engine process, no HTTP and no command line"
WIRE = "core knows no web framework, no HTTP client and no database driver"
FOLDS = "Folds know no clock, no randomness, no files, no network and no threads"
PLUGINS = "Built-in plugins import llama_orch.plugins alone, as a third party's would"
OUTER = "The command line stands on the API, the pools and the SDK; the first two on core and the plugins"
CLIENT = "The SDK imports nothing of the rest"
HAIKU = "The bundled model's package imports nothing of the rest"


def lint(repository: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = os.environ | {"PYTHONPATH": str(repository / "src"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=repository, env=environment, capture_output=True, text=True
    )


def test_the_repository_keeps_every_contract(clean_copy: Path):
    done = lint(clean_copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "file,line,contract",
    [
        ("core/errors.py", "from . import services", LAYERS),
        ("core/registry.py", "from . import events", LAYERS),
        ("core/events/planted.py", "from .. import ports", LAYERS),
        ("core/ports.py", "from . import schema", LAYERS),
        ("core/schema.py", "from . import journal", LAYERS),
        ("core/projections/planted.py", "from .. import journal", LAYERS),
        ("core/journal/planted.py", "from .. import services", LAYERS),
        ("core/projections/planted.py", "from .. import services", LAYERS),
        ("core/services/planted.py", "from ... import plugins", ALONE),
        ("core/services/planted.py", "from ... import api", ALONE),
        ("core/journal/planted.py", "from ... import pools", ALONE),
        ("core/errors.py", "from .. import cli", ALONE),
        ("core/services/planted.py", "import falcon", WIRE),
        ("core/journal/planted.py", "import sqlite3", WIRE),
        ("core/journal/planted.py", "import psycopg", WIRE),
        ("core/projections/planted.py", "import time", FOLDS),
        ("core/projections/queue.py", "from random import random", FOLDS),
        ("plugins/engines/planted.py", "from ...core import errors", PLUGINS),
        ("plugins/policy/planted.py", "from ...core import services", PLUGINS),
        ("plugins/storage/planted.py", "from ... import pools", PLUGINS),
        ("plugins/planted.py", "from .. import api", OUTER),
        ("pools/planted.py", "from .. import api", OUTER),
        ("api/planted.py", "from .. import cli", OUTER),
        ("client/planted.py", "from ..core import errors", CLIENT),
        ("client/planted.py", "from ..cli import exits", CLIENT),
        ("core/planted.py", "from .. import client", OUTER),
        ("haiku/planted.py", "from ..core import errors", HAIKU),
    ],
)
def test_a_planted_import_breaks_its_contract(planted_copy: Path, file: str, line: str, contract: str):
    target = planted_copy / file
    assert target.parent.is_dir()
    # At the end of the file, where nothing can hide it.
    target.write_text((target.read_text("utf-8") if target.exists() else '"""Planted."""\n') + f"\n{line}\n", "utf-8")
    done = lint(planted_copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(shown.startswith(contract) and shown.endswith("BROKEN") for shown in done.stdout.splitlines()), (
        done.stdout
    )
