"""Digests of the state that a golden journal folds to, one for each projection and version of it.

``python -m tests.golden.states`` adds the lines of versions that are new to the ``expected.json`` of every golden
journal. A line that is there is never changed: the same version of a projection folds the same journal to the same
state.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from llama_orch.core.journal.history import facts_of
from llama_orch.core.journal.replay import replay
from llama_orch.core.projections.head import Head
from llama_orch.core.registry import load_all
from llama_orch.plugins.manager import PluginManager


def state_digests(head: Head) -> dict[str, str]:
    """``{"<projection>@<version>": SHA-256 of its dumped state}``."""
    dumped = head.dump()
    return {
        f"{name}@{version}": hashlib.sha256(
            msgspec.json.encode(dumped["projections"][name], order="sorted")
        ).hexdigest()
        for name, version in sorted(dumped["versions"].items())
    }


def add(folder: Path) -> None:
    """Write the lines that are missing. :raises SystemExit: a line that is there says something else."""
    expected = json.loads((folder / "expected.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "journal"
        shutil.copytree(folder, copy)
        store = PluginManager(entry_points=False).journal_stores()["sqlite"](f"sqlite:///{copy / 'journal.db'}", {})
        store.open()
        found = state_digests(replay(store).head)
        types = {record.name for frame in store.frames(1) for record in facts_of(frame)}
        store.close()
    states = expected.setdefault("states", {})
    for line, digest in found.items():
        if states.setdefault(line, digest) != digest:
            sys.exit(f"{folder}: {line} folds to another state than before; give the projection a new version")
    expected["states"] = dict(sorted(states.items()))
    expected.setdefault("types", sorted(types))
    expected.pop("digest", None)
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    load_all()
    for one in sorted(Path(__file__).parent.glob("v*")):
        add(one)
