"""Models that other programs have on this host's disk already: they can be used where they lie (MOD-1)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from ...core.gguf import GgufError
from .errors import StagingError
from .in_place import files_of
from .metadata import ModelMetadata, describe

_OLLAMA_WEIGHTS: Final = "application/vnd.ollama.image.model"
_DIGEST: Final = re.compile(r"^sha256:([0-9a-f]{64})$")
_LATER_PART: Final = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_MAX_MANIFEST: Final = 1024 * 1024


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One model of another program's."""

    #: "huggingface" | "ollama" | "lmstudio" | "llama.cpp" | "folder"
    program: str
    #: as that program calls it
    name: str
    #: what a pool or ``models:`` takes as its model
    path: str
    size_bytes: int
    metadata: ModelMetadata | None
    #: why it cannot be used, where it cannot
    problem: str = ""


def scan(home: Path, environ: Mapping[str, str], folders: tuple[Path, ...] = ()) -> list[Found]:
    """What the caches of the Hugging Face hub, Ollama, LM Studio and llama.cpp hold, and further folders.

    Nothing is written, and nothing is read but names, manifests and heads.

    Args:
        home: of the user.
        environ: ``HF_HOME``, ``HF_HUB_CACHE``, ``OLLAMA_MODELS``, ``LLAMA_CACHE``, ``XDG_CACHE_HOME``.
        folders: looked through as well, with what is below them.
    """
    caches = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = environ.get("HF_HUB_CACHE") or Path(environ.get("HF_HOME") or caches / "huggingface") / "hub"
    ollama = (
        [Path(environ["OLLAMA_MODELS"])]
        if environ.get("OLLAMA_MODELS")
        else [
            home / ".ollama/models",
            Path("/usr/share/ollama/.ollama/models"),
        ]
    )
    found = list(_hub(Path(hub)))
    for folder in ollama:
        found += _ollama(folder)
    for folder in (home / ".lmstudio/models", home / ".cache/lm-studio/models"):
        found += _below("lmstudio", folder)
    found += _below("llama.cpp", Path(environ.get("LLAMA_CACHE") or caches / "llama.cpp"))
    for folder in folders:
        found += _below("folder", folder)
    return found


def _hub(folder: Path) -> Iterator[Found]:
    for repository in _entries(folder, "models--*"):
        name = repository.name.removeprefix("models--").replace("--", "/")
        seen: set[str] = set()
        for snapshot in _newest_first(repository / "snapshots"):
            files = sorted(path for path in snapshot.rglob("*.gguf") if not _LATER_PART.search(path.name))
            for path in files:
                content = str(path.resolve())
                if content not in seen:
                    seen.add(content)
                    yield _look("huggingface", f"{name}/{path.relative_to(snapshot)}", path)
            if not files and (snapshot / "config.json").exists() and "config" not in seen:
                seen.add("config")
                yield _look("huggingface", name, snapshot)


def _ollama(folder: Path) -> Iterator[Found]:
    manifests = folder / "manifests"
    for below, _, names in sorted(os.walk(manifests)):
        for file in sorted(names):
            path = Path(below, file)
            parts = path.relative_to(manifests).parts
            if len(parts) < 3:
                continue
            name = "/".join(parts[1:-1]).removeprefix("library/") + f":{parts[-1]}"
            blob = _ollama_blob(folder, path)
            if blob is not None:
                yield _look("ollama", name, blob)


def _ollama_blob(folder: Path, manifest: Path) -> Path | None:
    """The file with the weights that a manifest names, if it names one."""
    try:
        with manifest.open("rb") as file:
            layers = json.loads(file.read(_MAX_MANIFEST))["layers"]
        for layer in layers:
            if layer["mediaType"] == _OLLAMA_WEIGHTS and (digest := _DIGEST.match(layer["digest"])):
                return folder / "blobs" / f"sha256-{digest[1]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return None


def _below(program: str, folder: Path) -> Iterator[Found]:
    for below, _, names in sorted(os.walk(folder)):
        for file in sorted(names):
            path = Path(below, file)
            if file.lower().endswith(".gguf") and not _LATER_PART.search(file) and "mmproj" not in file.lower():
                yield _look(program, str(path.relative_to(folder)), path)


def _look(program: str, name: str, path: Path) -> Found:
    size, metadata, problem = 0, None, ""
    try:
        folder, names = files_of(path)
        size = sum((folder / one).stat().st_size for one in names)
        metadata = describe(folder, names)
    except StagingError as error:
        problem = error.message
    except (OSError, GgufError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    return Found(program=program, name=name, path=str(path), size_bytes=size, metadata=metadata, problem=problem)


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_dir())
    except OSError:
        return []


def _newest_first(folder: Path) -> list[Path]:
    return sorted(_entries(folder, "*"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
