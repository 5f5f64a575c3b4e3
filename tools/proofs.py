"""Check that every proof that docs/requirements.toml names is a test that pytest collects.

A proof may name a parametrised test without its brackets, or a class: then at least one collected
test belongs to it. Whether the proofs pass is what `make test` finds out; a skipped proof fails there
too (tests/conftest.py).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from requirements_table import ROOT, Area, TableError, load


def collected(files: list[str]) -> set[str]:
    """Return the node ids of the tests in `files`, and the ids of everything that holds tests (file, class, test without parameters)."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--no-header", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 5}:
        raise SystemExit(f"pytest cannot collect the tests:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    names: set[str] = set()
    for line in done.stdout.splitlines():
        if not line.startswith("tests/") or "::" not in line:
            continue
        names.add(line)
        plain = line.split("[", 1)[0]
        while "::" in plain:
            names.add(plain)
            plain = plain.rsplit("::", 1)[0]
    return names


def main(read: Callable[[], tuple[Area, ...]] = load) -> int:
    """Check the table that `read` returns, print what is wrong, return the exit status."""
    try:
        areas = read()
    except TableError as error:
        print(error)
        return 1
    proofs = [(row.id, proof) for area in areas for row in area.requirements for proof in row.proofs]
    files = sorted({proof.split("::", 1)[0] for _, proof in proofs})
    existing = [file for file in files if file.startswith("tests/") and (ROOT / file).is_file()]
    known = collected(existing) if existing else set()
    missing = [(name, proof) for name, proof in proofs if proof not in known]
    for name, proof in missing:
        print(f"{name}: no test is called {proof}")
    if missing:
        return 1
    print(f"{len(proofs)} proofs of {sum(len(area.requirements) for area in areas)} requirements exist")
    return 0


if __name__ == "__main__":
    sys.exit(main())
