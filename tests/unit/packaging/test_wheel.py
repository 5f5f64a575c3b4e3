"""What is shipped is what git tracks, no more and no less."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

FOLDERS = ("api", "cli", "client", "core", "haiku", "migrations", "plugins", "pools", "simulator")


def build(source: Path, kind: str, target: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = [path for path in target.iterdir() if path.name.endswith((".whl", ".tar.gz"))]
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(clean_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(clean_copy, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_exactly_the_tracked_files_of_the_package(wheel: Path, tracked: list[str], root: Path):
    expected = {
        f"llama_orch/{name}": (root / name).read_bytes()
        for name in tracked
        if name.startswith(tuple(f"{folder}/" for folder in FOLDERS))
    }
    for name in ("__init__.py", "py.typed"):
        expected[f"llama_orch/{name}"] = (root / "src/llama_orch" / name).read_bytes()
    shipped = contents(wheel)
    assert sorted(shipped) == sorted(expected)
    assert shipped == expected


def test_the_wheel_built_from_the_source_archive_is_the_same(wheel: Path, clean_copy: Path, tmp_path: Path):
    archive = build(clean_copy, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as file:
        assert not [member.name for member in file.getmembers() if member.issym() or member.islnk()]
        file.extractall(tmp_path / "unpacked")  # `filter` came with 3.11.4; the archive is our own
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert contents(build(unpacked, "wheel", tmp_path / "again")) == contents(wheel)


def test_the_wheel_imports_without_the_repository(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = "import llama_orch, llama_orch.core, llama_orch.plugins; print(llama_orch.core.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "llama_orch/core/__init__.py")


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys, llama_orch; print([m for m in sys.modules if m.split('.')[0] in {'falcon', 'sqlalchemy', 'msgspec', 'rich', 'asyncio'}])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_folder_of_the_package_has_its_link_and_its_lines(root: Path):
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]
    hatch = settings["hatch"]["build"]["targets"]
    links = sorted(path.name for path in (root / "src/llama_orch").iterdir() if path.is_symlink())
    assert links == list(FOLDERS)
    for folder in FOLDERS:
        assert (root / "src/llama_orch" / folder).readlink() == Path("../..") / folder
        assert (root / folder / "__init__.py").is_file()
        assert f"/src/llama_orch/{folder}" in hatch["sdist"]["exclude"]
        assert folder in hatch["wheel"]["only-include"]
        assert hatch["wheel"]["sources"][folder] == f"llama_orch/{folder}"
        assert settings["coverage"]["paths"][folder] == [folder, f"*/llama_orch/{folder}"]
        assert folder in settings["pyright"]["include"]


def test_the_commands_are_installed_under_their_names(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        lines = archive.read(name).decode().splitlines()
    assert "llama-orch = llama_orch.cli.main:main" in lines
    assert "llama-orch-cli = llama_orch.cli.main:main" in lines
    assert "orchestratord = llama_orch.cli.main:orchestratord" in lines
    assert "pool-managerd = llama_orch.cli.main:pool_managerd" in lines
