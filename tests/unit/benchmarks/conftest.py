"""The benchmarks are no part of the installed package: they are found in the repository."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks.native import Native, build  # noqa: E402 - the path comes first
from benchmarks.processes import Service, free_port  # noqa: E402
from benchmarks.results import LoadRun, Quantiles  # noqa: E402

MakeRun = Callable[..., LoadRun]


@pytest.fixture
def make_run() -> MakeRun:
    """One plausible run of a load; keywords change what matters to the test."""
    times = Quantiles(p50=100.0, p99=400.0, max=900.0)
    plain = LoadRun(
        target="direct",
        load="ii",
        round=0,
        fsync_delay_ms=0,
        requests=64,
        ok=64,
        failed=0,
        unfinished=0,
        misplaced=0,
        tokens=12_800,
        wall_s=4.0,
        tok_s=3_200.0,
        req_s=16.0,
        first_token_us=times,
        frame_us=times,
        request_us=times,
        cpu_s=0.0,
        harness_cpu_s=0.1,
        machine_busy_s=0.5,
        rss_mb=50.0,
        error="",
    )

    def make(target: str, load: str, **changes: object) -> LoadRun:
        return replace(plain, target=target, load=load, **changes)

    return make


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return build(tmp_path_factory.mktemp("native"))


@pytest.fixture
def engine_port(native: Native, tmp_path: Path) -> Iterator[int]:
    """A mock engine with two slots."""
    port = free_port()
    engine = Service("engine", [str(native.engine), "--port", str(port), "--slots", "2"], {}, tmp_path / "engine.log")
    try:
        engine.wait_ready(port, "/health")
        yield port
    finally:
        engine.stop()
