"""Drivers that are files, and processes that look at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ...nvml import FakeDriver, Kind, Looking, build_nvml


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    """The folder of the fake library, built once for each kind."""
    folder = tmp_path_factory.mktemp("nvml")
    built: dict[Kind, Path] = {}

    def of(kind: Kind) -> Path:
        if kind not in built:
            built[kind] = build_nvml(folder, kind)
        return built[kind]

    return of


@pytest.fixture
def driver(library: Callable[[Kind], Path], tmp_path: Path) -> FakeDriver:
    return FakeDriver(tmp_path, library("full"))


@pytest.fixture
def looking() -> Iterator[Callable[[dict[str, str]], Looking]]:
    """Starts processes that look at GPUs; they have to end well."""
    started: list[Looking] = []

    def start(env: dict[str, str]) -> Looking:
        started.append(Looking(env))
        return started[-1]

    yield start
    assert [one.end() for one in started] == [0] * len(started)
