"""A pool with two engines: brought to what is desired, however often and in whatever order that changes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

import msgspec
import pytest

from llama_orch.core.engine_ports import GenerateJob
from llama_orch.plugins.testing.engines import Recorder
from llama_orch.pools import identity as identities
from llama_orch.pools.desired import DesiredPool
from llama_orch.pools.reload import Seat

from .conftest import TIMING, Heard, desired, managed, pids, pool, run

pytestmark = pytest.mark.slow


def to_be(now: str, following: str = "", handover: str = "", **more: Any) -> list[DesiredPool]:
    """Pool "a" with the context that a number names, on its way to another."""
    second = pool("a", "wire", "--ctx", following) if following else None
    return [
        DesiredPool(settings=pool("a", "wire", "--ctx", now), model="m", next=second, handover=handover, **more)  # type: ignore[arg-type]
    ]


def broken(now: str, handover: str) -> list[DesiredPool]:
    """As above; the next one cannot start."""
    (one,) = to_be(now)
    following = pool("a", "wire", "--no-such-option", "error loading model")
    return [msgspec.structs.replace(one, next=following, handover=handover)]


def ctx(manager) -> int:
    found = manager.properties("a")
    return found.ctx if found is not None else 0


def reap(pid):
    """Take the exit status of a child that its manager gave up while it lived."""
    os.waitpid(pid, 0)


async def gone(data_dir, count):
    """Wait until no more than so many engines are left."""
    async with asyncio.timeout(60):
        while len(set(pids(data_dir))) > count:
            await asyncio.sleep(0.01)


def test_new_first_serves_without_a_gap_and_keeps_the_old_engine_while_it_is_named(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(to_be("512"))
        await heard.next("a", "ready")
        old, sink = manager.engine("a"), Recorder()
        assert old is not None
        job = GenerateJob(task_id="t", attempt=1, prompt="[[mock tokens=100000 rate=200]]", slot=0)
        handle = old.generate(job, sink)
        await sink.until(lambda: sink.count >= 1)

        await manager.apply(to_be("512", "1024", "new-first"))
        told = await heard.next("a", "PoolReloaded")
        assert (told["generation"], ctx(manager)) == (2, 1024)
        count = sink.count
        await sink.until(lambda: sink.count > count)
        assert len(pids(data_dir)) == 2, "the old engine decodes on"
        assert [what for _, what in heard.story] == ["ready", "ready", "PoolReloaded"], "never a moment unready"

        handle.cancel()
        await manager.apply(to_be("1024"))
        await gone(data_dir, 1)
        assert ctx(manager) == 1024
        assert [what for _, what in heard.story] == ["ready", "ready", "PoolReloaded"]
        await manager.stop(kill_engines=True)
        assert pids(data_dir) == []

    run(test)


def test_stop_first_never_has_two_engines(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(to_be("512"))
        await heard.next("a", "ready")
        await manager.apply(to_be("512", "1024", "stop-first"))
        await heard.next("a", "reloading")
        most = 0
        while ("a", "PoolReloaded") not in heard.story:
            most = max(most, len(pids(data_dir)))
            await asyncio.sleep(0.005)
        assert most <= 1
        assert ctx(manager) == 1024
        await manager.apply(to_be("1024"))
        assert [what for _, what in heard.story if what != "loading"] == ["ready", "reloading", "ready", "PoolReloaded"]
        await manager.stop(kill_engines=True)

    run(test)


@pytest.mark.parametrize("handover", ["new-first", "stop-first"])
def test_a_next_engine_that_fails_is_told_once_and_what_served_serves_again(data_dir, handover):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(to_be("512"))
        await heard.next("a", "ready")
        await manager.apply(broken("512", handover))
        told = await heard.next("a", "PoolReloadFailed")
        assert told["cause"] == "engine-exited"
        assert told["advice"]
        await manager.apply(broken("512", handover))  # asked again before the failure was heard
        if handover == "stop-first":
            assert (await heard.next("a", "ready"))["generation"] == 3
        await manager.apply(to_be("512"))
        await gone(data_dir, 1)
        assert ctx(manager) == 512
        story = [what for _, what in heard.story]
        assert story.count("PoolReloadFailed") == 1
        if handover == "new-first":
            assert story == ["ready", "PoolReloadFailed"], "what served was not touched"
        await manager.stop(kill_engines=True)

    run(test)


@pytest.mark.parametrize("handover", ["new-first", "stop-first"])
def test_a_reload_is_taken_up_by_the_next_manager(data_dir, handover):
    async def test():
        heard = Heard()
        first = managed(data_dir, heard)
        await first.apply(to_be("512"))
        await heard.next("a", "ready")
        await first.apply(to_be("512", "1024", handover))
        await heard.next("a", "PoolReloaded")
        before = set(pids(data_dir))
        await first.stop(kill_engines=False)

        again = Heard()
        second = managed(data_dir, again)
        await second.apply(to_be("512", "1024", handover))
        await again.next("a", "PoolReloaded")
        assert set(pids(data_dir)) == before, "all were adopted, none started anew"
        assert ctx(second) == 1024
        await second.apply(to_be("1024"))
        await gone(data_dir, 1)
        await second.stop(kill_engines=True)
        for pid in before:
            reap(pid)

    run(test)


def test_a_reload_that_is_taken_back_leaves_what_served(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(to_be("512"))
        await heard.next("a", "ready")
        await manager.apply(to_be("512", "1024", "new-first"))
        await heard.next("a", "PoolReloaded")
        await manager.apply(to_be("512"))
        assert (await heard.next("a", "ready"))["ctx"] == 512
        await gone(data_dir, 1)
        assert ctx(manager) == 512
        await manager.stop(kill_engines=True)

    run(test)


def test_an_unwanted_pool_is_unloaded_and_a_wanted_one_loaded_again(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(to_be("512"))
        await heard.next("a", "ready")
        await manager.apply(to_be("512", wanted=False))
        await manager.apply(to_be("512"))  # before the old one is gone
        assert (await heard.next("a", "ready"))["generation"] == 2
        await manager.apply(to_be("512", wanted=False))
        await heard.next("a", "unloaded")
        assert pids(data_dir) == []
        assert manager.states()[0][0].cause == "unloaded"
        await manager.apply([])
        assert manager.states() == []
        await manager.stop(kill_engines=True)

    run(test)


def test_other_settings_start_another_engine(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(to_be("512"))
        await heard.next("a", "ready")
        await manager.apply(to_be("1024", generation_floor=41))
        told = await heard.next("a", "ready")
        assert (told["ctx"], told["generation"]) == (1024, 42)
        assert manager.pools["a"].phases.keys() == {Seat.SERVING}
        await manager.stop(kill_engines=True)

    run(test)


def test_who_mended_what_was_wrong_asks_for_another_try_at_once(data_dir):
    async def test():
        heard = Heard()
        timing = msgspec.structs.replace(TIMING, permanent_ms=3_600_000)
        manager = managed(data_dir, heard, timing=timing)
        with socket.create_server(("127.0.0.1", 0)) as blocker:
            fixed = pool(port=blocker.getsockname()[1])
            await manager.apply(desired(fixed))
            told = await heard.next("a", "port-taken")
            assert told["permanent"]
            assert told["retry_ms"] > 1_000_000
        await manager.apply(desired(fixed, attempt=1))
        await heard.next("a", "ready")
        await manager.stop(kill_engines=True)

    run(test)


def test_a_pool_that_fails_again_and_again_opens_its_circuit_and_keeps_the_last_cause(data_dir):
    async def test():
        heard = Heard()
        timing = msgspec.structs.replace(TIMING, breaker_failures=3, open_first_ms=3_600_000)
        manager = managed(data_dir, heard, timing=timing)
        await manager.apply(desired(pool("a", "wire", "--no-such-option", "x")))
        told = await heard.next("a", "circuit-open")
        assert (told["last_cause"], told["failures"]) == ("engine-exited", 3)
        assert "3 times" in told["detail"]
        assert [what for _, what in heard.story].count("engine-exited") == 2
        await manager.stop(kill_engines=True)

    run(test)


def test_an_engine_told_to_this_epoch_is_left_in_peace_and_one_of_an_older_epoch_becomes_idle_first(data_dir):
    async def test():
        heard, left = Heard(), Recorder()
        first = managed(data_dir, heard)
        await first.apply(desired(pool()), epoch=5)
        await heard.next("a", "ready")
        engine = first.engine("a")
        assert engine is not None
        handle = engine.generate(
            GenerateJob(task_id="t", attempt=1, prompt="[[mock tokens=100000 rate=200]]", slot=1), left
        )
        await left.until(lambda: left.count >= 1)
        # The same epoch again, and a newer one: what runs was asked for by a server that is gone.
        await first.apply(desired(pool()), epoch=5)
        assert first.engine("a") is engine
        await first.apply(desired(pool()), epoch=6)
        assert first.engine("a") is None
        await heard.next("a", "starting")
        handle.cancel()
        assert (await heard.next("a", "ready"))["generation"] == 1
        known = identities.read(data_dir / "engines" / "a.json")
        assert known is not None
        assert known.told_epoch == 6
        await first.stop(kill_engines=False)
        second = Heard()
        manager = managed(data_dir, second)
        await manager.apply(desired(pool()), epoch=6)
        again = await second.next("a", "ready")
        assert "decode_mtok_s" not in again, "it was not made to decode: it may be at work"
        os.kill(known.pid, signal.SIGKILL)
        await second.next("a", "ready")
        await manager.stop(kill_engines=True)
        reap(known.pid)

    run(test)
