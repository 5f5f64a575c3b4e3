"""Engines as processes: started, watched, adopted, reaped."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from llama_orch.core.engine_ports import GenerateJob
from llama_orch.plugins.testing.engines import Recorder
from llama_orch.pools import identity as identities
from llama_orch.pools.hosts import free_port
from llama_orch.pools.identity import MARKER, owner_of, process_table
from llama_orch.pools.outfitting import model_path

from .conftest import TIMING, Heard, desired, managed, pids, plan_mock_server, pool, run

pytestmark = pytest.mark.slow


def record(data_dir):
    found = identities.read(data_dir / "engines" / "a.json")
    assert found is not None
    return found


def engine_of(manager, name="a"):
    found = manager.engine(name)
    assert found is not None
    return found


def test_a_pool_is_ready_only_after_it_decoded_and_its_engine_ends_with_an_orderly_stop(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool()))
        assert manager.engine("a") is None
        ready = await heard.next("a", "ready")
        assert ready["generation"] == 1
        assert ready["decode_mtok_s"] > 0
        assert manager.properties("a") == ready["properties"]
        assert (await engine_of(manager).metrics())["llamacpp:tokens_predicted_total"] >= 1
        assert record(data_dir).pid in pids(data_dir)
        assert os.getsid(record(data_dir).pid) == record(data_dir).pid, "it has a session of its own"
        await manager.stop(kill_engines=True)
        assert pids(data_dir) == []
        assert not (data_dir / "engines" / "a.json").exists()
        assert manager.engine("a") is None

    run(test)


def test_what_an_engine_leaves_behind_is_for_its_owner_only(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool()))
        await heard.next("a", "ready")
        folder = data_dir / "engines"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
            "a.json": 0o600,
            "a.log": 0o600,
        }
        await manager.stop(kill_engines=True)

    run(test)


def test_an_engine_that_dies_is_started_again_and_running_attempts_hear_of_it(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool()))
        await heard.next("a", "ready")
        sink = Recorder()
        job = GenerateJob(task_id="t", attempt=1, prompt="[[mock tokens=100000 rate=100]]", slot=0)
        handle = engine_of(manager).generate(job, sink)
        await sink.until(lambda: sink.count >= 2)
        os.kill(record(data_dir).pid, signal.SIGKILL)
        assert (await sink.failure()).kind == "cut"
        assert await handle.slot_free() == "engine-gone"
        told = await heard.next("a", "killed")
        assert told["advice"]
        assert told["retry_ms"] > 0
        assert (await heard.next("a", "ready"))["generation"] == 2
        await manager.stop(kill_engines=True)

    run(test)


def test_an_engine_that_hangs_is_ended_and_started_again(data_dir):
    async def test():
        timing = msgspec.structs.replace(TIMING, grace_ms=50, health_timeout_ms=200)
        heard = Heard()
        manager = managed(data_dir, heard, timing=timing)
        await manager.apply(desired(pool()))
        await heard.next("a", "ready")
        first = record(data_dir).pid
        # A stopped process answers neither a health check nor SIGTERM; its death needs the other signal.
        os.kill(first, signal.SIGSTOP)
        await heard.next("a", "unresponsive")
        assert (await heard.next("a", "ready"))["generation"] == 2
        assert first not in pids(data_dir)
        await manager.stop(kill_engines=True)

    run(test)


def test_an_engine_outlives_a_kill_of_its_owner_and_is_adopted(data_dir):
    async def test():
        owner = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OWNER, str(data_dir), cwd=Path(__file__).parents[3], stdout=asyncio.subprocess.PIPE
        )
        assert owner.stdout is not None
        assert (await owner.stdout.readline()).strip() == b"ready"
        owner.kill()
        await owner.wait()
        first = record(data_dir)
        assert pids(data_dir) == [first.pid]
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool()))
        assert (await heard.next("a", "ready"))["generation"] == 1
        assert record(data_dir) == first
        assert pids(data_dir) == [first.pid]
        os.kill(first.pid, signal.SIGKILL)  # it is watched although it is not our child
        await heard.next("a", "engine-exited")
        assert (await heard.next("a", "ready"))["generation"] == 2
        await manager.stop(kill_engines=True)
        assert pids(data_dir) == []

    run(test)


OWNER = """
import asyncio, sys
from pathlib import Path
from tests.unit.pools.conftest import Heard, desired, managed, pool

async def main():
    heard = Heard()
    manager = managed(Path(sys.argv[1]), heard)
    await manager.apply(desired(pool()))
    await heard.next("a", "ready")
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_detached_engine_lives_on_and_is_adopted_by_the_next_manager(data_dir):
    async def test():
        heard = Heard()
        first = managed(data_dir, heard)
        await first.apply(desired(pool()))
        await heard.next("a", "ready")
        before = record(data_dir)
        await first.stop(kill_engines=False)
        second = managed(data_dir, heard)
        await second.apply(desired(pool()))
        assert (await heard.next("a", "ready"))["generation"] == 1
        assert record(data_dir) == before
        await second.stop(kill_engines=True)
        reap(before)

    run(test)


def test_an_adopted_engine_is_not_ready_while_it_is_busy_for_nobody(data_dir):
    async def test():
        heard, left = Heard(), Recorder()
        first = managed(data_dir, heard)
        await first.apply(desired(pool()))
        await heard.next("a", "ready")
        job = GenerateJob(task_id="t", attempt=1, prompt="[[mock tokens=100000 rate=100 stall_ms=300]]", slot=1)
        engine_of(first).generate(job, left)
        await left.until(lambda: left.count >= 1)
        before = record(data_dir)
        await first.stop(kill_engines=False)
        second = managed(data_dir, heard)
        await second.apply(desired(pool()))
        await heard.next("a", "ready")
        assert await engine_of(second).slots_in_use() == 0
        await second.stop(kill_engines=True)
        reap(before)

    run(test)


def test_an_engine_of_another_configuration_is_reaped_and_replaced(data_dir):
    async def test():
        heard = Heard()
        first = managed(data_dir, heard)
        await first.apply(desired(pool()))
        await heard.next("a", "ready")
        before = record(data_dir)
        await first.stop(kill_engines=False)
        second = managed(data_dir, heard)
        await second.apply(desired(pool("a", "wire", "--ctx", "512")))
        ready = await heard.next("a", "ready")
        assert (ready["generation"], ready["properties"].ctx) == (2, 512)
        assert pids(data_dir) == [record(data_dir).pid] != [before.pid]
        await second.stop(kill_engines=True)
        reap(before)

    run(test)


def waiting_process(environment):
    """A process that does nothing until its input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,  # as an engine has, so that a signal to its group would meet it
    )


def orphan(data_dir, marker):
    """A process as a crash leaves it between its start and the writing of its record."""
    return waiting_process({MARKER: f"{owner_of(data_dir)}/{marker}"})


def outside_server(port):
    """An engine that somebody else started."""
    argv = [sys.executable, "-m", "llama_orch.plugins.engines._mock_server", "--port", str(port)]
    return subprocess.Popen([*argv, "--loading-ms", "1500"], stdout=subprocess.DEVNULL)


def reap(engine):
    """Take the exit status of a child that its manager gave up while it lived."""
    os.waitpid(engine.pid, 0)


@pytest.mark.parametrize("marker", ["a/1", "no-longer-configured/4"])
def test_an_engine_without_a_record_is_found_by_its_mark_and_reaped(data_dir, marker):
    async def test():
        lost = orphan(data_dir, marker)
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool()))
        await heard.next("a", "ready")
        assert lost.wait() == -signal.SIGKILL
        lost.communicate()
        await manager.stop(kill_engines=True)

    run(test)


def test_a_stranger_who_got_the_pid_of_a_dead_engine_is_left_alone(data_dir):
    async def test():
        stranger = waiting_process({})
        table = process_table()
        born = table.start_ticks(stranger.pid)
        assert born is not None
        identities.write(
            data_dir / "engines" / "a.json",
            identities.Identity(
                pool_id="a",
                generation=7,
                pid=stranger.pid,
                start_ticks=born - 1,
                boot_id=table.boot_id(),
                plan_digest="sha256:00",
                url="http://127.0.0.1:9",
                port=9,
                marker=f"{owner_of(data_dir)}/a/7",
            ),
        )
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool()))
        assert (await heard.next("a", "ready"))["generation"] == 8
        assert stranger.poll() is None
        stranger.communicate()
        await manager.stop(kill_engines=True)

    run(test)


def test_children_of_an_engine_die_with_it(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool()))
        await heard.next("a", "ready")
        engine = record(data_dir)
        # Marked as the engine's own children are, which inherit its environment.
        child = orphan(data_dir, "a/1")
        os.kill(engine.pid, signal.SIGTERM)
        await heard.next("a", "ready")
        assert child.wait() == -signal.SIGKILL
        child.communicate()
        await manager.stop(kill_engines=True)

    run(test)


def test_a_port_that_is_taken_is_told_with_advice_and_tried_again(data_dir):
    async def test():
        port = free_port()
        with socket.create_server(("127.0.0.1", port)) as blocker:
            heard = Heard()
            manager = managed(data_dir, heard)
            await manager.apply(desired(pool(port=port)))
            told = await heard.next("a", "port-taken")
            assert str(port) in told["detail"]
            assert told["advice"] == "Use another port."
            blocker.close()
        await heard.next("a", "ready")
        await manager.stop(kill_engines=True)

    run(test)


def test_secrets_of_the_environment_do_not_reach_an_engine(data_dir, monkeypatch):
    for name in ("LLORCH_API_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "canary-5f1e")

    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool()))
        await heard.next("a", "ready")
        environment = Path(f"/proc/{record(data_dir).pid}/environ").read_bytes()
        assert b"canary-5f1e" not in environment
        assert b"PATH=" in environment
        await manager.stop(kill_engines=True)

    run(test)


def test_an_engine_inside_this_process_is_made_anew_when_it_dies(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool("m", "mock", options={})))
        await heard.next("m", "ready")
        sink = Recorder()
        engine_of(manager, "m").generate(GenerateJob(task_id="t", attempt=1, prompt="[[mock fault=die:2]]"), sink)
        await sink.failure()
        await heard.next("m", "unreachable")
        assert (await heard.next("m", "ready"))["generation"] == 2
        await manager.stop(kill_engines=True)

    run(test)


def test_an_external_engine_is_looked_for_until_it_is_there_and_again_when_it_goes(data_dir):
    async def test():
        port = free_port()
        heard = Heard()
        manager = managed(data_dir, heard)
        outside = pool("x", mode="external", url=f"http://127.0.0.1:{port}", options={})
        await manager.apply(desired(outside))
        told = await heard.next("x", "unreachable")
        assert "provisioning.url" in told["advice"]
        for _ in range(2):
            process = outside_server(port)
            await heard.next("x", "loading")
            await heard.next("x", "ready")
            assert manager.engine("x") is not None
            process.kill()
            process.wait()
            await heard.next("x", "unreachable")
            assert manager.engine("x") is None
        await manager.stop(kill_engines=True)
        assert pids(data_dir) == []

    run(test)


def test_an_external_server_of_another_kind_is_told_as_that(data_dir):
    async def test():
        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool("x", mode="external", url=url, options={})))
        told = await heard.next("x", "not-understood")
        assert "no llama.cpp server" in told["detail"]
        await manager.stop(kill_engines=False)
        server.close()

    run(test)


def test_an_option_that_an_engine_does_not_take_is_told_as_what_has_to_be_mended(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool("m", "mock", options={"script": {"unheard-of": 1}})))
        told = await heard.next("m", "bad-configuration")
        assert "unheard-of" in told["detail"]
        await manager.stop(kill_engines=False)

    run(test)


def test_an_unknown_engine_is_refused_with_the_names_there_are(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard)
        await manager.apply(desired(pool("a", "nothing"), pool("m", "mock", options={})))
        told = await heard.next("a", "bad-configuration")
        assert "no plugin offers the engine 'nothing'" in told["detail"]
        assert "wire" in told["advice"]
        await heard.next("m", "ready")  # the others are not concerned
        await manager.stop(kill_engines=True)

    run(test)


def test_a_long_log_is_cut_while_the_engine_writes_on(data_dir):
    from llama_orch.pools.logs import cut
    from llama_orch.pools.process import tail

    log = data_dir / "engine.log"
    with log.open("ab", buffering=0) as file:
        for n in range(1000):
            file.write(b"line %d\n" % n)
        cut(log, limit=1000)
        assert log.stat().st_size <= 500
        file.write(b"after\n")
    lines = log.read_text().splitlines()
    assert lines[-2:] == ["line 999", "after"]
    assert all(line.startswith("line ") for line in lines[:-1])
    assert tail(log, 10_000_000).splitlines() == lines, "an offset beyond a log that was cut means all of it"
    cut(data_dir / "none.log")
    assert tail(data_dir / "none.log", 0) == ""


def test_models_are_named_by_alias_path_or_as_the_bundled_one(tmp_path):
    assert model_path("m", {"m": f"file:{tmp_path}/m.gguf"}) == tmp_path / "m.gguf"
    assert model_path(f"{tmp_path}/x.gguf", {}) == tmp_path / "x.gguf"
    assert model_path("haiku", {}).name == "haiku.gguf"
    assert model_path("~/m.gguf", {}) == Path.home() / "m.gguf"


def test_what_an_engine_started_beyond_its_group_ends_with_it_also_when_nobody_watched(data_dir, tmp_path):
    """As a container does, that lives on when the program that started it is killed."""
    ended = tmp_path / "ended"

    def plan(config):
        found = plan_mock_server(config)
        note = f"open({str(ended)!r}, 'a').write({config['marker']!r} + ' ')"
        return msgspec.structs.replace(found, stop_argv=(sys.executable, "-c", note))

    def manager_for(heard):
        launchers = {"wire": plan}
        return managed(data_dir, heard, launchers=launchers)

    async def test():
        heard = Heard()
        first = manager_for(heard)
        await first.apply(desired(pool()))
        await heard.next("a", "ready")
        marker = record(data_dir).marker
        os.kill(record(data_dir).pid, signal.SIGKILL)
        await heard.next("a", "killed")
        assert ended.read_text() == f"{marker} "
        await heard.next("a", "ready")
        second_marker, second_pid = record(data_dir).marker, record(data_dir).pid
        await first.stop(kill_engines=False)
        os.kill(second_pid, signal.SIGKILL)
        reap(record(data_dir))
        second = manager_for(heard)
        await second.apply(desired(pool()))
        await heard.next("a", "ready")
        assert second_marker in ended.read_text()
        await second.stop(kill_engines=True)

    run(test)
