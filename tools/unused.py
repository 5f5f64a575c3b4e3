"""Find code that nothing in the package uses; tests do not count as users.

vulture reads the names; what it cannot know is said here: fields of value types are used by whoever
encodes them, a decorator that registers a thing uses it, a framework calls methods by their names, and
some files are there for other people's code. An allowance that no longer hides anything is an error.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from vulture.core import Vulture

ROOT = Path(__file__).resolve().parent.parent

#: These register what they decorate.
DECORATORS = ["@hookimpl", "@hookspec", "@event", "@on", "@upcaster", "@command"]
#: Falcon, ASGI, asyncio and logging call these by their names.
CALLED_BY_NAME = [
    "on_*", "process_*", "connection_made", "connection_lost", "data_received", "eof_received", "pause_writing",
    "resume_writing", "formatException", "formatStack",
]  # fmt: skip
#: `file glob:name glob` and who uses what matches.
ALLOWED: dict[str, str] = {
    "migrations/versions/*:*": "Alembic reads revisions by name",
    "plugins/__init__.py:__getattr__": "Python calls it",
    "plugins/testing/*:*": "contract suites for the authors of plugins",
    "api/app.py:strip_url_path_trailing_slash": "an option of Falcon's",
    "api/*.py:content_type": "Falcon sends it",
    "api/*:*Resource": "api/discovery.py finds resources in their folders",
    "api/protocol.py:disconnected": "uvicorn's",
    "api/server.py:capture_signals": "uvicorn calls it",
    "api/server.py:should_exit": "uvicorn looks at it",
    "cli/following.py:_on_*": "called by the names of stream events",
    "client/__init__.py:__getattr__": "Python calls it",
    "client/errors.py:correlation_id": "for whoever catches it",
    "core/errors.py:*Error": "the table of codes; the codes are part of the API before something answers them",
    "core/journal/index.py:rebuild": "what the index is held against",
    "core/journal/index.py:unpack_frame_numbers": "what the index is held against",
    "core/registry.py:upcaster": "for the first event of which a second version is made",
    "haiku/measure.py:*": "fields of the parameters that llama.cpp reads",
    "haiku/train.py:pre_tokenizer": "the tokenizer reads it",
    "simulator/loop.py:_timer_cancelled_count": "asyncio counts with it",
}


def declarations(path: Path) -> set[int]:
    """Return the lines of `path` that only declare: a class's fields, and the parameters of functions without a body."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            enum = any("Enum" in ast.unparse(base) or "Flag" in ast.unparse(base) for base in node.bases)
            lines.update(
                statement.lineno
                for statement in node.body
                if isinstance(statement, ast.AnnAssign) or (enum and isinstance(statement, ast.Assign))
            )
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and all(
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) for statement in node.body
        ):
            given = node.args
            lines.update(argument.lineno for argument in [*given.posonlyargs, *given.args, *given.kwonlyargs])
    return lines


def entry_points() -> set[str]:
    """Return the names of the functions that pyproject.toml installs as commands or plugins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project.get("scripts", {}), *project.get("entry-points", {}).values()]
    return {target.rpartition(":")[2] for group in groups for target in group.values()}


def unused(folders: list[str], root: Path = ROOT) -> tuple[list[str], set[str]]:
    """Return `file:line: what` for all unused code, and the allowances that hid something."""
    vulture = Vulture(ignore_names=[*CALLED_BY_NAME, *entry_points()], ignore_decorators=DECORATORS)
    vulture.scavenge([root / folder for folder in folders])
    found: list[str] = []
    used: set[str] = set()
    declared: dict[Path, set[int]] = {}
    for item in vulture.get_unused_code(min_confidence=60):
        path = Path(item.filename)
        name = path.relative_to(root).as_posix()
        if path not in declared:
            declared[path] = declarations(path)
        if item.typ == "variable" and item.first_lineno in declared[path]:
            continue
        matching = [rule for rule in ALLOWED if fnmatch(f"{name}:{item.name}", rule)]
        used.update(matching)
        if not matching:
            found.append(f"{name}:{item.first_lineno}: {item.message}")
    return found, used


def main() -> int:
    """Print what is unused, return the exit status."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    found, used = unused(settings["hatch"]["build"]["targets"]["wheel"]["only-include"])
    found += [f"tools/unused.py: the allowance {rule!r} hides nothing any more" for rule in ALLOWED.keys() - used]
    print("\n".join(found) if found else "no unused code")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
