"""pool-managerd's own rules: who commands, what is durable before it is told, when it ends (RCV-3)."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from llama_orch.pools.connection import SOCKET_NAME, peer_uid
from llama_orch.pools.desired import DesiredPool
from llama_orch.pools.outbox import DirectoryFiles
from llama_orch.pools.protocol import Hello, LogLines, LogsRequest, Refused, Stop, Welcome, encode

from .conftest import run
from .managerd_stage import desired, program, ready, unready, until


def test_whoever_greets_with_an_older_epoch_is_refused_and_a_newer_one_takes_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            first = await it.command(epoch=5)
            _, answer = await it.greet(epoch=4)
            assert isinstance(answer, Refused)
            assert answer.code == "FENCED"
            assert await first.settled() == [], "whoever was refused takes nothing from the other"
            second = await it.command(epoch=6)
            assert await first.ended()
            second.lines.send(desired("a", epoch=6))
            await until(lambda: it.pools and it.pools.applied)

    run(scenario)


def test_the_fence_survives_the_program(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            await it.command(epoch=7)
        async with program(tmp_path) as it:
            _, answer = await it.greet(epoch=6)
            assert isinstance(answer, Refused)
            assert answer.code == "FENCED"
            await it.command(epoch=7)

    run(scenario)


def test_a_stale_commander_that_wakes_up_is_not_heard(tmp_path: Path) -> None:
    """What it wrote while it did not know is read by nobody; what it says under its epoch on a new connection neither."""

    async def scenario() -> None:
        async with program(tmp_path) as it:
            old = await it.command(epoch=1)
            old.lines.send(desired("a", epoch=1))
            await until(lambda: it.pools and it.pools.applied)
            assert it.pools is not None
            new = await it.command(epoch=2)
            new.lines.send(desired("b", epoch=2))
            await until(lambda: it.pools and len(it.pools.applied) == 2)
            old.lines.writer.write(encode(desired("stale", epoch=1, revision=9)))
            assert await old.ended()
            new.lines.send(desired("stale", epoch=1, revision=9))
            await new.settled()
            assert [[pool.settings.id for pool in pools] for _, pools in it.pools.applied] == [["a"], ["b"]]

    run(scenario)


def test_another_journal_is_let_in_only_when_nobody_commands_and_gets_none_of_the_first_ones_facts(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            first = await it.command(epoch=9, owner="one")
            first.lines.send(desired("a", epoch=9))
            await until(lambda: it.outbox.pending)
            _, answer = await it.greet(epoch=1, owner="two")
            assert isinstance(answer, Refused)
            assert answer.code == "OWNER"
            first.lines.abort()
            await until(lambda: "is gone" in it.say())
            second = await it.command(epoch=1, owner="two")
            assert await second.settled() == []

    run(scenario)


def test_facts_are_on_disk_before_they_are_sent_and_come_again_until_they_are_acknowledged(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            client = await it.command()
            client.lines.send(desired("a"))
            await until(lambda: it.pools)
            assert it.pools is not None
            it.pools.sink.fact(unready("a", "one"))
            await until(lambda: len(it.outbox.pending) == 2)
            facts = await client.settled()
            assert [fact.name for fact in facts] == ["pool.ready", "pool.unready"]
            kept = b"".join(path.read_bytes() for path in (tmp_path / "outbox").iterdir())
            assert all(bytes(fact.payload) in kept for fact in facts)
            client.ack(facts[0])
        async with program(tmp_path) as it:
            again = await (await it.command()).settled()
            assert again[-1] == facts[1], "of an earlier run, under its own name"
            client = await it.command()
            (last,) = [fact for fact in await client.settled() if fact == facts[1]]
            client.ack(last)
            await until(lambda: not list((tmp_path / "outbox").iterdir()))
        async with program(tmp_path) as it:
            assert await (await it.command()).settled() == []

    run(scenario)


def test_what_is_told_in_one_turn_is_one_batch(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            client = await it.command()
            client.lines.send(desired())
            await until(lambda: it.pools)
            assert it.pools is not None
            it.pools.sink.fact(ready("a"))
            it.pools.sink.fact(unready("b"))
            await asyncio.sleep(0)
            it.pools.sink.fact(unready("c"))
            await until(lambda: len(it.outbox.pending) == 3)
            assert [fact.more for fact in await client.settled()] == [True, False, False]

    run(scenario)


def test_on_each_connection_the_pools_are_told_as_they_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            for epoch in (1, 2):
                client = await it.command(epoch=epoch)
                client.lines.send(desired("a", epoch=epoch, revision=3))
                await until(lambda: it.outbox.pending)
                (fact,) = await client.settled()
                assert (fact.name, fact.epoch, fact.revision) == ("pool.ready", epoch, 3)
                assert fact.properties is not None
                client.ack(fact)
                client.lines.send(desired("a", epoch=epoch, revision=4))
                assert await client.settled() == [], "nothing changed"

    run(scenario)


def test_generations_count_on_behind_those_that_the_journal_has_not_heard_of(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            client = await it.command()
            client.lines.send(desired())
            await until(lambda: it.pools)
            assert it.pools is not None
            it.pools.sink.fact(ready("a", generation=7))
            await until(lambda: it.outbox.pending)
        async with program(tmp_path) as it:
            client = await it.command()
            client.lines.send(desired("a", "b"))
            await until(lambda: it.pools and it.pools.applied)
            assert it.pools is not None
            assert [pool.generation_floor for pool in it.pools.applied[-1][1]] == [7, 0]

    run(scenario)


def test_a_fact_that_fits_no_line_is_dropped_and_the_others_arrive(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            client = await it.command()
            client.lines.send(desired())
            await until(lambda: it.pools)
            assert it.pools is not None
            it.pools.sink.fact(unready("a", "x" * 2_000_000))
            await until(lambda: "cannot be told" in it.say())
            it.pools.sink.fact(unready("b"))
            await until(lambda: it.outbox.pending)
            (fact,) = await client.settled()
            assert b'"b"' in bytes(fact.payload)

    run(scenario)


def test_facts_wait_in_memory_while_the_disk_is_full(tmp_path: Path) -> None:
    class FullFiles(DirectoryFiles):
        full = True

        def append(self, name: str, data: bytes) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().append(name, data)

    async def scenario() -> None:
        files = FullFiles(tmp_path / "outbox")
        async with program(tmp_path, files=files) as it:
            client = await it.command()
            client.lines.send(desired())
            await until(lambda: it.pools)
            assert it.pools is not None
            for number in range(20):
                it.pools.sink.fact(unready("a", f"cause-{number}"))
                await asyncio.sleep(0)
            await until(lambda: "No space" in it.say())
            assert await client.settled() == [], "what is not durable is not told"
            files.full = False
            await until(lambda: it.outbox.pending)
            (fact,) = await client.settled()
            assert b"cause-19" in bytes(fact.payload), "the newest of a kind is enough"

    run(scenario)


def test_it_ends_with_its_engines_when_nobody_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path, linger_ms=60_000) as it:
            client = await it.command(linger_ms=1)
            client.lines.send(desired("a"))
            await until(lambda: it.pools)
            assert it.pools is not None
            client.lines.abort()
            await it.ended()
            assert it.pools.stopped is True
            assert not (tmp_path / SOCKET_NAME).exists()

    run(scenario)


def test_one_that_was_started_by_itself_waits_for_ever(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            client, answer = await it.greet(linger_ms=1)
            assert isinstance(answer, Welcome)
            assert not answer.lingers
            client.lines.abort()
            await until(lambda: "is gone" in it.say())
            await it.command()

    run(scenario)


@pytest.mark.parametrize("kill_engines", [True, False])
def test_it_ends_when_it_is_told_to_and_says_so_by_closing(tmp_path: Path, kill_engines: bool) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            client = await it.command()
            client.lines.send(desired("a"))
            client.lines.send(Stop(kill_engines=kill_engines))
            await it.ended()
            assert await client.ended()
            assert it.pools is not None
            assert it.pools.stopped is kill_engines

    run(scenario)


def test_engines_end_with_a_data_directory_that_is_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = tmp_path / "data" / "pools"
        async with program(directory) as it:
            client = await it.command()
            client.lines.send(desired("a"))
            await until(lambda: it.pools)
            shutil.rmtree(directory)
            await it.ended()
            assert it.pools is not None
            assert it.pools.stopped is True

    run(scenario)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        b"\xff\xfe\n",
        b'{"type":"Desired","epoch":1,"revision":1,"pools":[]}\n',
        b'{"type":"Hello","protocol":1,"owner":1}\n',
        b'{"type":"Hello","owner":"' + b"x" * 2_000_000 + b'"}\n',
    ],
    ids=["http", "no text", "no greeting", "wrong type", "too long"],
)
def test_what_is_no_greeting_ends_its_own_connection_and_no_other(tmp_path: Path, said: bytes) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            good = await it.command()
            bad = await it.connect()
            bad.lines.writer.write(said)
            assert await bad.ended()
            assert await good.settled() == []

    run(scenario)


def test_another_version_of_the_protocol_is_refused_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            client = await it.connect()
            client.lines.send(Hello(protocol=99, owner="journal", epoch=1))
            answer = await client.hear(Refused)
            assert answer.code == "VERSION"
            assert "99" in answer.message

    run(scenario)


def test_only_its_own_user_may_connect(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path, uid=lambda: os.getuid() + 1) as it:
            assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600
            client = await it.connect()
            assert (await client.hear(Refused)).code == "AUTH"
            assert peer_uid(client.lines.writer.get_extra_info("socket")) == os.getuid()

    run(scenario)


def test_a_socket_in_a_directory_with_a_very_long_name_works(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path / ("long" * 40) / "pools") as it:
            await it.command()

    run(scenario)


def test_the_end_of_a_log_is_read_over_the_connection_and_no_other_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "engines").mkdir()
        (tmp_path / "engines" / "a.log").write_text("one\ntwo\nthree\n")
        (tmp_path / "secret.log").write_text("hidden\n")
        async with program(tmp_path) as it:
            client = await it.command()
            client.lines.send(LogsRequest(pool_id="a", lines=2))
            assert (await client.hear(LogLines)).lines == ["two", "three"]
            client.lines.send(LogsRequest(pool_id="../secret"))
            assert (await client.hear(LogLines)).lines == []

    run(scenario)


def test_a_host_whose_disk_cannot_remember_the_epoch_obeys_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with program(tmp_path) as it:
            (tmp_path / "fence.json").mkdir()  # nothing can be put in its place
            _, answer = await it.greet()
            assert isinstance(answer, Refused)
            assert answer.code == "UNWRITABLE"

    run(scenario)


def test_what_is_desired_survives_its_line() -> None:
    sent = desired("a", "b")
    pool = msgspec.structs.replace(sent.pools[0], devices=["GPU-1"], handover="new-first", next=sent.pools[1].settings)
    assert msgspec.json.decode(msgspec.json.encode(pool), type=DesiredPool) == pool
