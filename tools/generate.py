"""Write the generated files, or check that they are up to date.

A generator is a module in `tools/generators/` with a function `outputs() -> dict[str, bytes]`: paths
relative to the repository's root, and what the files hold. Nothing lists the generators: a new file
in the folder is a new generator. Two generators may not write one file.

    python tools/generate.py --check    compare, exit 1 and say what differs
    python tools/generate.py --write    write what differs
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

ROOT = Path(__file__).resolve().parent.parent
GENERATORS = Path(__file__).resolve().parent / "generators"
#: Lines of difference shown per file; the rest is counted.
SHOWN_LINES = 20


def generators(folder: Path = GENERATORS) -> Iterator[tuple[str, Callable[[], dict[str, bytes]]]]:
    """Yield each generator's name and its `outputs` function, in the order of the names."""
    for path in sorted(folder.glob("[!_]*.py")):
        spec = importlib.util.spec_from_file_location(f"llama_orch_generator_{path.stem}", path)
        if spec is None or spec.loader is None:  # pragma: no cover - a *.py file always has a loader
            raise ImportError(f"cannot load {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        outputs = getattr(module, "outputs", None)
        if not callable(outputs):
            raise TypeError(f"{path} has no function `outputs() -> dict[str, bytes]`")
        yield path.stem, cast("Callable[[], dict[str, bytes]]", outputs)


def all_outputs(folder: Path = GENERATORS) -> dict[str, bytes]:
    """Run every generator. Raises ValueError when two of them claim one file."""
    written_by: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for name, outputs in generators(folder):
        for path, content in outputs().items():
            if path in files:
                raise ValueError(f"{path} is written by the generators {written_by[path]!r} and {name!r}")
            written_by[path] = name
            files[path] = content
    return files


def stale(files: dict[str, bytes], root: Path = ROOT) -> dict[str, bytes]:
    """Return those of `files` that are missing below `root` or hold something else."""
    return {
        path: content
        for path, content in files.items()
        if not (root / path).is_file() or (root / path).read_bytes() != content
    }


def _difference(path: str, content: bytes, root: Path) -> str:
    target = root / path
    if not target.is_file():
        return f"{path}: missing"
    before = target.read_bytes().decode("utf-8", "replace").splitlines()
    after = content.decode("utf-8", "replace").splitlines()
    lines = list(difflib.unified_diff(before, after, path, f"{path} (generated now)", lineterm="", n=1))
    hidden = len(lines) - SHOWN_LINES
    return "\n".join(lines[:SHOWN_LINES] + ([f"... and {hidden} more lines"] if hidden > 0 else []))


def main(argv: list[str] | None = None) -> int:
    """Check or write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true")
    mode.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)

    files = all_outputs()
    old = stale(files)
    if options.write:
        for path, content in old.items():
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_bytes(content)
            print(f"wrote {path}")
        return 0
    for path, content in old.items():
        print(_difference(path, content, ROOT))
    if old:
        print(f"{len(old)} generated file(s) out of date; run `make generate` and commit what it writes")
        return 1
    print(f"{len(files)} generated files are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
