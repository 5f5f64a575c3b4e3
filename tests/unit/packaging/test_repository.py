"""The rules of CONTRIBUTING.md that a test can hold."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

CODE = ("api/", "cli/", "client/", "core/", "haiku/", "migrations/", "plugins/", "pools/", "src/", "tools/")
PACKAGE = CODE[:-2]
GRAB_BAGS = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
LONGEST_FILE_LINES = 600


def python_files(tracked: list[str], folders: tuple[str, ...]) -> list[str]:
    return [name for name in tracked if name.endswith(".py") and name.startswith(folders)]


def test_no_file_has_more_lines_than_the_house_allows(tracked: list[str], root: Path):
    lengths = {
        name: (root / name).read_text("utf-8").count("\n")
        for name in python_files(tracked, (*CODE, "tests/", "benchmarks/"))
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE_LINES} == {}


def test_there_are_no_grab_bags(tracked: list[str]):
    assert [name for name in tracked if GRAB_BAGS & {Path(part).stem for part in Path(name).parts}] == []


def test_imports_inside_the_package_are_relative(tracked: list[str], root: Path):
    absolute: list[str] = []
    for name in python_files(tracked, PACKAGE):
        if name == "migrations/env.py" or name.startswith("migrations/versions/"):
            continue  # Alembic runs these as scripts
        for node in ast.walk(ast.parse((root / name).read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                if node.module == "llama_orch" and [alias.name for alias in node.names] == ["__version__"]:
                    continue  # it stands in src/llama_orch/__init__.py, which no folder has above it
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            absolute += [f"{name}:{node.lineno}" for module in modules if module.split(".")[0] == "llama_orch"]
    assert absolute == []


def test_every_ignored_lint_rule_has_its_reason(root: Path):
    text = (root / "pyproject.toml").read_text("utf-8").split("[tool.ruff.lint]")[1]
    ignores = text[text.index("ignore = [") : text.index("\n]\n")].splitlines()[1:]
    assert len(ignores) > 10
    assert [line for line in ignores if not re.fullmatch(r'  "[A-Z]+[0-9]*", +# \S.*', line)] == []


@pytest.mark.parametrize("name", ["runtime.txt", "build.txt", "dev.txt", "triton.txt"])
def test_every_pinned_requirement_has_a_version_and_hashes_and_no_address(root: Path, name: str):
    text = (root / "requirements" / name).read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines
    for line in lines:
        assert re.fullmatch(
            r"[a-z0-9-]+(\[[a-z,]+\])?==[^\s;]+( ;[^-]+(?:-[^-]+)*?)?( +--hash=sha256:[0-9a-f]{64})+ *", line
        ), line


def test_the_pins_cover_what_pyproject_asks_for(root: Path):
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    project = settings["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^a-z0-9-]", requirement.lower())[0] for requirement in requirements}

    def pinned(file: str) -> dict[str, set[str]]:
        pins: dict[str, set[str]] = {}
        for name, version in re.findall(
            r"^([a-z0-9-]+)==([^\s;]+)", (root / "requirements" / file).read_text("utf-8"), re.MULTILINE
        ):
            pins.setdefault(name, set()).add(version)
        return pins

    extras = {name: extra for name, extra in project["optional-dependencies"].items() if name != "haiku-training"}
    runtime, dev = pinned("runtime.txt"), pinned("dev.txt")
    assert names(project["dependencies"]) | names(extras["llamacpp"]) <= runtime.keys()
    assert (
        names([line for extra in extras.values() for line in extra]) | names(settings["dependency-groups"]["dev"])
        <= dev.keys()
    )
    assert {name: dev[name] for name in runtime} == runtime
    assert {name: dev[name] for name in pinned("build.txt")} == pinned("build.txt")
