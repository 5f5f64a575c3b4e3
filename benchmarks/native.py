"""Builds the C parts: the mock engine, the load generator, the shim that makes a disk slow."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"

_PROGRAMS = {
    "engine": ["engine.c", "engine_api.c", "http.c", "json.c"],
    "loadgen": ["loadgen.c", "http.c"],
    "libfsync_delay.so": ["fsync_delay.c"],
}
_FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]


class BuildError(Exception):
    """The C parts cannot be built: there is no compiler, or it refused."""


@dataclass(frozen=True)
class Native:
    """Where the built programs are."""

    engine: Path
    loadgen: Path
    fsync_delay: Path


def build(folder: Path = BUILD, compiler: str = "gcc") -> Native:
    """Compiles what is older than its sources.

    Raises:
        BuildError: gcc is not installed, or it failed.
    """
    program_path = shutil.which(compiler)
    if program_path is None:
        raise BuildError(
            f"{compiler} was not found, and the benchmarks' mock engine and load generator are C programs. "
            "Install it (Debian, Ubuntu: apt-get install gcc libc6-dev) and run this again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in [*HERE.glob("*.c"), *HERE.glob("*.h")])
    for name, sources in _PROGRAMS.items():
        program = folder / name
        if program.exists() and program.stat().st_mtime > newest:
            continue
        shared = ["-shared", "-fPIC"] if name.endswith(".so") else []
        command = [program_path, *_FLAGS, *shared, "-o", str(program), *(str(HERE / s) for s in sources), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"{compiler} could not build {name}:\n{done.stderr}")
    return Native(folder / "engine", folder / "loadgen", folder / "libfsync_delay.so")
