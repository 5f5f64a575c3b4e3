"""A server, a cache, and a stage that waits for nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_orch.pools.models.cache import Cache
from llama_orch.pools.models.provenance import StagedModel
from llama_orch.pools.models.sources import source_of
from llama_orch.pools.models.staging import stage

from ...support.model_server import ModelServer, serving


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serving() as state:
        yield state


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "data" / "models")


@pytest.fixture
def staged(cache: Cache, server: ModelServer) -> Callable[..., StagedModel]:
    """Stages a reference from the server, trying twice more without waiting when a connection fails."""

    def call(ref: str, **options: Any) -> StagedModel:
        environ = {"HF_ENDPOINT": server.url, "HF_TOKEN": options.pop("token", "hf_of_the_tests")}
        options = {"cache": cache, "waits_s": (0.0, 0.0), **options}
        options.setdefault("source", lambda reference: source_of(reference, environ))
        return stage(ref, **options)

    return call


def everything_below(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Every file with what tells whether it was written: size, inode, times of content and of status."""
    found: dict[str, tuple[Any, ...]] = {}
    for below, _, names in os.walk(folder):
        for name in names:
            path = Path(below, name)
            status = path.lstat()
            found[str(path.relative_to(folder))] = (
                status.st_size,
                status.st_ino,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
    return found


@pytest.fixture
def below() -> Callable[[Path], dict[str, tuple[Any, ...]]]:
    return everything_below


@pytest.fixture
def contents(cache: Cache) -> Callable[[], set[str]]:
    """What is in the cache besides locks: names of all files in it."""

    def look() -> set[str]:
        names = everything_below(cache.root)
        return {name for name in names if not name.startswith("locks/") and name != "lock"}

    return look
