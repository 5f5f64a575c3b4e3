"""The repository as git tracks it, and its scripts as modules."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest

ROOT = Path(__file__).resolve().parents[3]


class LoadTool(Protocol):
    def __call__(self, name: str) -> ModuleType: ...


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tracked() -> list[str]:
    """Paths that git tracks and that are there, links included."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_symlink() | (ROOT / name).exists())


@pytest.fixture(scope="session")
def clean_copy(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files alone. Tests that change it take `planted_copy`."""
    target = tmp_path_factory.mktemp("clean") / "repository"
    for name in tracked:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


@pytest.fixture
def planted_copy(clean_copy: Path, tmp_path: Path) -> Path:
    """A copy of the tracked files that the test may spoil."""
    return Path(shutil.copytree(clean_copy, tmp_path / "repository", symlinks=True))


@pytest.fixture(scope="session")
def load_tool() -> LoadTool:
    """Import a script of `tools/` by its name."""

    def load(name: str) -> ModuleType:
        tools = str(ROOT / "tools")
        if tools not in sys.path:
            sys.path.insert(0, tools)
        path = ROOT / "tools" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"repository_tool_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load
