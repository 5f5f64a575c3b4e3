"""docs/reference/journal-tests.md: which requirement of the journal is tested where, read from the tests.

Tests say which requirements they stand for with `@covers("JRN-3")`. Those of the contract suite run once for every
class that inherits it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SUITE = "plugins/testing/storage.py"
CONTRACT = "JournalStoreContract"
PREFIX = "JRN-"

_HEAD = """\
<!-- Generated from the tests by `make generate`; edit the tests. -->

# Tests of the journal

Every test that says which requirement it stands for. The contract suite, `llama_orch.plugins.testing.storage`, is
one and the same for all databases; a storage plugin's own tests inherit it.

"""


@dataclass(frozen=True)
class Test:
    """A test and what it covers."""

    path: str
    name: str
    requirements: tuple[str, ...]


def outputs() -> dict[str, bytes]:
    """The page as bytes, under its path."""
    suite = list(_tests(ROOT / SUITE))
    databases = dict(sorted(_databases()))
    elsewhere = sorted(
        (test for path in sorted((ROOT / "tests").rglob("test_*.py")) for test in _tests(path)),
        key=lambda test: (test.path, test.name),
    )
    lines = ["## The contract of a store", "", f"| test | covers | {' | '.join(databases)} |"]
    lines.append("|---|---|" + ":-:|" * len(databases))
    lines += [f"| {_words(test.name)} | {', '.join(test.requirements)} |{' yes |' * len(databases)}" for test in suite]
    lines += ["", "Run by:", "", *(f"- {database}: `{path}`" for database, path in databases.items()), ""]
    lines += ["## Elsewhere", "", "| test | covers | file |", "|---|---|---|"]
    lines += [f"| {_words(test.name)} | {', '.join(test.requirements)} | `{test.path}` |" for test in elsewhere]
    lines += ["", "## By requirement", "", "| requirement | in the contract | elsewhere |", "|---|---:|---:|"]
    for requirement in sorted({r for test in (*suite, *elsewhere) for r in test.requirements}):
        counts = [sum(requirement in test.requirements for test in tests) for tests in (suite, elsewhere)]
        lines.append(f"| {requirement} | {counts[0]} | {counts[1]} |")
    return {"docs/reference/journal-tests.md": (_HEAD + "\n".join(lines) + "\n").encode()}


def _tests(path: Path) -> Iterator[Test]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            covered = tuple(r for r in _covered(node) if r.startswith(PREFIX))
            if covered:
                yield Test(str(path.relative_to(ROOT)), node.name, covered)


def _covered(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "covers":
            for argument in decorator.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value


def _databases() -> Iterator[tuple[str, str]]:
    """Name (a test class's docstring) and file of every class that inherits the suite."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == CONTRACT for b in node.bases):
                yield (ast.get_docstring(node) or node.name).rstrip("."), str(path.relative_to(ROOT))


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")
