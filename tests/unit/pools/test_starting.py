"""pool-managerd as a process: started when none runs, one per data directory, in a session of its own (RCV-3)."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llama_orch.pools.connection import SOCKET_NAME
from llama_orch.pools.logs import BoundedLog, cut, follow, last_lines
from llama_orch.pools.starting import LOG_NAME, Lock, ManagerdStartError, Starter, running

from ...support.managerd import end_pools
from .conftest import run
from .managerd_stage import until


@asynccontextmanager
async def starter(data: Path, linger_ms: int = 60_000, command: tuple[str, ...] = ()) -> AsyncIterator[Starter]:
    """A starter; what it started is gone behind the block."""
    made = Starter(
        data,
        linger_ms=linger_ms,
        environment={**os.environ, "LLORCH_API_TOKEN": "secret"},
        command=command,
    )
    try:
        yield made
    finally:
        end_pools(data)
        made.close()


def test_it_is_started_when_none_runs_and_only_then(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with starter(tmp_path) as one, starter(tmp_path) as other:
            one.begin()
            await one.ready()
            pid = running(tmp_path / "pools")
            assert pid > 0
            assert os.getsid(pid) == pid, "a session of its own"
            assert os.getsid(0) != pid
            other.begin()
            await other.ready()
            assert running(tmp_path / "pools") == pid
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"secret" not in environment
            for path in (tmp_path / "pools").iterdir():
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path

    run(scenario)


def test_two_that_start_at_once_are_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with starter(tmp_path) as one, starter(tmp_path) as other:
            one.begin()
            other.begin()
            await asyncio.gather(one.ready(), other.ready())
            pid = running(tmp_path / "pools")
            assert pid > 0
            await until(lambda: "another one looks after" in (tmp_path / "pools" / LOG_NAME).read_text())
            assert running(tmp_path / "pools") == pid

    run(scenario)


def test_a_killed_one_leaves_a_socket_that_keeps_nobody_from_starting(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with starter(tmp_path) as it:
            it.begin()
            await it.ready()
            first = running(tmp_path / "pools")
            os.kill(first, signal.SIGKILL)
            await until(lambda: not running(tmp_path / "pools"))
            assert (tmp_path / "pools" / SOCKET_NAME).exists()
            it.begin()
            await it.ready()
            assert running(tmp_path / "pools") not in (0, first)

    run(scenario)


def test_one_that_hangs_is_ended_to_make_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with starter(tmp_path) as it:
            it.begin()
            await it.ready()
            first = running(tmp_path / "pools")
            os.kill(first, signal.SIGSTOP)
            it.end_hung()
            await until(lambda: not running(tmp_path / "pools"))
            it.begin()
            await it.ready()
            assert running(tmp_path / "pools") not in (0, first)

    run(scenario)


def test_one_that_nobody_ever_connects_to_ends_by_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with starter(tmp_path, linger_ms=1) as it:
            it.begin()
            await it.ready()
            await until(lambda: not running(tmp_path / "pools"))
            await until(lambda: "ended in order" in (tmp_path / "pools" / LOG_NAME).read_text())

    run(scenario)


def test_a_start_that_fails_says_what_the_program_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        command = (sys.executable, "-c", "import sys; sys.exit('no luck today')")
        async with starter(tmp_path, command=command) as it:
            it.begin()
            with pytest.raises(ManagerdStartError, match="no luck today"):
                await it.ready()
        async with starter(tmp_path, command=("/no/such/program",)) as it:
            with pytest.raises(ManagerdStartError, match="No such file"):
                it.begin()

    run(scenario)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "pools").write_text("a file")
        async with starter(tmp_path) as it:
            with pytest.raises(ManagerdStartError, match="pools cannot be written"):
                it.begin()

    run(scenario)


def test_the_lock_is_held_by_one_and_free_when_it_is_gone(tmp_path: Path) -> None:
    assert running(tmp_path) == 0
    lock = Lock(tmp_path)
    assert running(tmp_path) == os.getpid()
    with pytest.raises(BlockingIOError):
        Lock(tmp_path)
    lock.release()
    assert running(tmp_path) == 0


def test_a_log_is_cut_to_its_newer_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"line {n}\n" for n in range(1000)))
    cut(path, limit=1000)
    assert path.stat().st_size <= 1000
    lines = last_lines(path, 5000)
    assert lines == [f"line {n}" for n in range(1000 - len(lines), 1000)]
    assert last_lines(path, 2) == ["line 998", "line 999"]
    assert last_lines(tmp_path / "none", 2) == []


def test_following_a_log_goes_on_behind_a_cut_and_tells_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("old\nlast\n")
    steps = iter(
        [
            lambda: path.open("a").write("first ha"),
            lambda: path.open("a").write("lf\nsecond\n"),
            lambda: path.write_text("x\n"),
            lambda: path.open("a").write("behind\n"),
        ]
    )

    def wait() -> bool:
        step = next(steps, None)
        if step is not None:
            step()
        return step is not None

    told = list(follow(path, 1, wait=wait))
    assert told[0] == "last"
    assert told[1:3] == ["first half", "second"]
    assert "cut" in told[3]
    assert told[4] == "behind"


def test_its_own_log_is_bounded_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "own.log"
    with path.open("a") as stream:
        log = BoundedLog(stream, path=path)
        for _ in range(9_000):
            log.say("info", "connected", "somebody is there " * 10, epoch=1)
        log.tend()
    assert path.stat().st_size <= 1024 * 1024
    assert '"event":"managerd.connected"' in last_lines(path, 1)[0]
