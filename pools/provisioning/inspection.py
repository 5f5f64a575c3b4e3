"""Finds the server among what was unpacked or built, and asks it what it is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from . import elf
from .problems import ProvisionError

#: the server program of each engine that comes as a program
PROGRAMS: Final[dict[str, str]] = {"llamacpp": "llama-server"}
_ANSWER_S: Final = 60.0
_ANSWER_BYTES: Final = 1024 * 1024
#: build -> what its libraries are called
_BUILDS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("cuda", re.compile(r"libcuda\.so|libcudart\.so|libcublas\.so|libggml-cuda")),
    ("rocm", re.compile(r"libamdhip64\.so|libhipblas\.so|libggml-hip")),
    ("vulkan", re.compile(r"libvulkan\.so|libggml-vulkan")),
    ("sycl", re.compile(r"libsycl\.so|libggml-sycl")),
    ("metal", re.compile(r"libggml-metal")),
)
_LIBRARY: Final = re.compile(r"\.(so(\.\d+)*|dylib)$")
#: "version: 4711 (abc1234)", and of newer builds "version: 0.5.0 (build 4711, commit abc1234)"
_VERSION: Final = re.compile(r"^version: *(\S+)(?: \((?:build (\d+), commit )?(\w+)\))?", re.MULTILINE)
_OPTION: Final = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A server program, by its own word."""

    version: str
    options: tuple[str, ...]


def program_of(engine: str) -> str:
    """Name of the engine's server program. :raises ProvisionError: the engine does not come as a program."""
    if engine not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        msg = f"provisioning.mode: the engine {engine!r} does not come as a program; these do: {known}"
        raise ProvisionError("bad-configuration", msg, "Use the mode external for it.")
    return PROGRAMS[engine]


def find_program(tree: Path, name: str) -> Path:
    """The program below a directory, made executable; the one nearest to the top where there are several.

    Raises:
        ProvisionError: ``bad-archive``: there is none.
    """
    root = tree.resolve()
    found = sorted(
        (path for path in tree.rglob(name) if path.is_file() and path.resolve().is_relative_to(root)),
        key=lambda path: (len(path.parts), str(path)),
    )
    if not found:
        there = sorted(path.name for path in tree.rglob("*") if path.is_file())[:8]
        raise ProvisionError("bad-archive", f"there is no {name} in it; it holds {', '.join(there) or 'nothing'}")
    found[0].chmod(0o700)
    return found[0]


def build_of(files: Iterable[Path]) -> str:
    """For which devices programs and libraries were built, by the libraries that they are or need; "cpu" if for none."""
    for path in files:
        try:
            names = [path.name, *elf.needed(path)] if elf.is_program(path) or path.suffix == ".dylib" else []
        except OSError:
            continue
        for build, pattern in _BUILDS:
            if any(pattern.search(name) for name in names):
                return build
    return "cpu"


def programs_and_libraries(tree: Path, program: Path) -> list[Path]:
    """The program and all libraries below a directory."""
    return [program, *sorted(path for path in tree.rglob("*") if _LIBRARY.search(path.name) and path.is_file())]


def ask(program: Path, environment: Mapping[str, str]) -> Found:
    """What a program says to ``--version`` and ``--help``.

    Raises:
        ProvisionError: ``wrong-architecture``, ``missing-library`` or ``bad-archive``: it does not run here.
    """
    told = _run([str(program), "--version"], environment)
    version = _VERSION.search(told)
    first = next((line.strip() for line in told.splitlines() if line.strip()), "unknown")
    options = sorted(set(_OPTION.findall(_run([str(program), "--help"], environment))))
    return Found(version=_named(version) if version else first[:60], options=tuple(options))


def _named(version: re.Match[str]) -> str:
    number, build, commit = version.groups()
    if build:
        return f"{number} b{build}-{commit}"
    return f"b{number}-{commit}" if commit else str(number)


def _run(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        msg = f"{Path(argv[0]).name} {argv[1]} did not answer within {_ANSWER_S:g} s"
        raise ProvisionError("bad-archive", msg, "Name a build for this machine.") from error
    except OSError as error:
        cause = "wrong-architecture" if error.errno == 8 else "bad-archive"  # ENOEXEC
        raise ProvisionError(cause, f"{Path(argv[0]).name} cannot be run: {error.strerror}") from error
    told = done.stdout[:_ANSWER_BYTES].decode("utf-8", "replace")
    if done.returncode:
        last = next((line.strip() for line in reversed(told.splitlines()) if line.strip()), "")
        cause = "missing-library" if "shared librar" in told or "shared object" in told else "bad-archive"
        if "illegal instruction" in told.lower() or done.returncode == -4:  # SIGILL
            cause = "wrong-architecture"
        name = Path(argv[0]).name
        raise ProvisionError(cause, f"{name} {argv[1]} ended with {done.returncode}: {last[:300]}")
    return told
