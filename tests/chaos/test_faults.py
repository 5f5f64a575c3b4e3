"""Databases and disks that fail under the whole server (JRN-8): a row of the table in
docs/explanation/crash-and-faults.md for each test.

Clients go on all the time. Each test looks at what one new request is answered, what running streams show, what state
the server is in, that service returns by itself when the cause is gone, and that at the end the journal and all that
clients were told agree.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ..contract.storage.postgres_server import PostgresServer
from ..faults import FaultFs
from .http_client import BROKEN, Answer
from .load import Followed, Ledger, Load
from .settle import finish
from .world import PATIENCE_S, World, mock_engine, mock_pool, world

#: the engine speaks slowly, so that streams run while the fault lasts
REQUEST = {"model_ref": "mock", "prompt": "[[mock tokens=60 rate=150]] fault"}


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> FaultFs:
    return FaultFs(tmp_path_factory.mktemp("faultfs"))


def request(rng: Any) -> dict[str, Any]:
    return REQUEST | {"prompt": f"{REQUEST['prompt']} {rng.getrandbits(32)}"}


class Probe:
    """Sends single requests beside the load."""

    def __init__(self, place: World, load: Load) -> None:
        self.place = place
        self.load = load
        self._count = 0
        self.tasks: list[Followed] = []

    async def submit(self, task: Followed, patience_s: float = 1.0) -> Answer | None:
        """One try; ``None`` when no answer comes: the request waits with the frame that the database did not take."""
        try:
            async with asyncio.timeout(patience_s):
                answer = await self.place.call("POST", "/v1/tasks", task.request, Idempotency_Key=task.key)
        except (TimeoutError, *BROKEN):
            return None
        if answer.status == 202 and answer.body["task_id"] not in task.accepted:
            task.accepted.append(answer.body["task_id"])
        return answer

    def task(self, prompt: str = "") -> Followed:
        """A new one."""
        self._count += 1
        task = Followed(f"probe-{self._count}", REQUEST | ({"prompt": prompt} if prompt else {}))
        self.load.ledger.tasks.append(task)
        self.tasks.append(task)
        return task

    async def refused(self) -> tuple[Followed, Answer]:
        """Submit until a request is refused; that task and its answer."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                task = self.task()
                answer = await self.submit(task)
                if answer is not None and answer.status != 202:
                    return task, answer
                await asyncio.sleep(0.01)

    async def accepted(self, task: Followed) -> None:
        """Repeat one request, with its key, until it is accepted."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (answer := await self.submit(task)) is None or answer.status != 202:
                    if answer is not None:
                        assert answer.status == 503, answer
                        assert answer.body["code"] == "JOURNAL_UNAVAILABLE"
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{task.key} is not accepted: {await self.place.stuck()}") from None


@contextlib.asynccontextmanager
async def under_load(
    tmp_path: Path, env: dict[str, str], settings: dict[str, Any] | None = None
) -> AsyncIterator[Probe]:
    """A server with running streams; in the end everything is ended, stopped and audited."""
    async with mock_engine() as engine, world(tmp_path, [mock_pool(engine)], env=env, settings=settings) as place:
        await place.start()
        await place.ready()
        load = Load(place.port, Ledger(), seed=1, make=request, cancels=0.05)
        load.start(4)
        probe = Probe(place, load)
        try:
            await load.ledger.more(100)
            yield probe
            # Service returned by itself: streams go on, what was refused is accepted under its key.
            for task in probe.tasks:
                await probe.accepted(task)
            await load.goes_on(50)
            assert (await place.call("GET", "/readyz")).body["journal"] == "ok"
            for task in probe.tasks:
                await load.follow(task)
            await finish(place, load)
        finally:
            await load.abort()


async def check_refusal(probe: Probe, answer: Answer, *, states: set[str]) -> None:
    """What callers are told while the journal cannot be written."""
    assert answer.status == 503
    assert answer.body["code"] == "JOURNAL_UNAVAILABLE"
    assert answer.body["retriable"] is True
    assert int(answer.headers["retry-after"]) >= 1
    assert (await probe.place.call("GET", "/health")).status == 200
    ready = await probe.place.call("GET", "/readyz")
    assert ready.status == 503
    assert ready.body["journal"] in states


async def refuses_and_goes_on(probe: Probe, begin: Callable[[], object], end: Callable[[], object]) -> None:
    """The database says no: streams pause, nothing is voided, and the same frame is written later."""
    endless = probe.task("[[mock fault=endless rate=20]]")
    await probe.accepted(endless)
    begin()
    task, answer = await probe.refused()
    await check_refusal(probe, answer, states={"refusing"})
    assert not answer.body.get("outcome_unknown")
    cancel = await probe.place.call("POST", f"/v1/tasks/{endless.task_id}/cancel")
    assert (cancel.status, cancel.body["code"]) == (503, "JOURNAL_UNAVAILABLE")
    end()
    await probe.accepted(task)
    assert (await probe.place.call("POST", f"/v1/tasks/{endless.task_id}/cancel")).status == 204
    assert probe.load.ledger.transport_errors == [], "a pause breaks no stream off"


async def breaks_off_and_comes_back(probe: Probe, begin: Callable[[], object], end: Callable[[], object]) -> None:
    """The outcome is unknown: streams break off with a transport error, and the journal is opened anew."""
    begin()
    task, answer = await probe.refused()
    await check_refusal(probe, answer, states={"reopening"})
    await check_broken_streams(probe)
    end()
    await probe.accepted(task)


async def check_broken_streams(probe: Probe) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not probe.load.ledger.transport_errors:
            probe.load.check()
            await asyncio.sleep(0.01)
    for told in probe.load.ledger.transport_errors:
        assert told["code"] == "JOURNAL_UNAVAILABLE"
        assert told["retriable"] is True
    assert any(told.get("outcome_unknown") for told in probe.load.ledger.transport_errors)


def run(scenario: Awaitable[None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(3 * PATIENCE_S):
            await scenario

    asyncio.run(main())


# --- SQLite -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_busy_database_pauses_streams_and_refuses_requests(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with under_load(tmp_path, {}) as probe:
            other = sqlite3.connect(tmp_path / "data" / "journal.db", isolation_level=None, timeout=PATIENCE_S)
            with contextlib.closing(other):
                await refuses_and_goes_on(
                    probe, lambda: other.execute("BEGIN IMMEDIATE"), lambda: other.execute("ROLLBACK")
                )

    run(scenario())


@pytest.mark.slow
def test_a_full_disk_pauses_streams_and_refuses_requests(tmp_path: Path, faults: FaultFs) -> None:
    async def scenario() -> None:
        async with under_load(tmp_path, faults.env) as probe:
            await refuses_and_goes_on(probe, lambda: faults.set("ENOSPC", path="journal.db"), faults.clear)

    run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["EROFS", "EIO_WRITE", "TORN_WRITE", "EIO_FSYNC"])
def test_a_disk_that_fails_breaks_streams_off_until_it_works_again(tmp_path: Path, faults: FaultFs, mode: Any) -> None:
    async def scenario() -> None:
        async with under_load(tmp_path, faults.env) as probe:
            await breaks_off_and_comes_back(probe, lambda: faults.set(mode, path="journal.db"), faults.clear)

    try:
        run(scenario())
    finally:
        faults.clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [("journal.db",), ("journal.db-wal",), ("journal.db", "journal.db-wal", "journal.db-shm", "journal.db.head")],
)
def test_deleted_files_are_written_back_with_everything(tmp_path: Path, names: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with under_load(tmp_path, {}) as probe:
            for name in names:
                (tmp_path / "data" / name).unlink()
            await check_broken_streams(probe)
            async with asyncio.timeout(PATIENCE_S):
                while not all((tmp_path / "data" / name).exists() for name in names):
                    await asyncio.sleep(0.02)

    run(scenario())


@pytest.mark.slow
def test_a_slow_disk_delays_acknowledgements_and_not_streams(tmp_path: Path, faults: FaultFs) -> None:
    async def scenario() -> None:
        async with under_load(tmp_path, faults.env) as probe:
            with faults.active("DELAY_FSYNC", path="journal.db", ms=300):
                for _ in range(3):
                    await probe.accepted(probe.task())
                await probe.load.ledger.more(100)
            assert probe.load.ledger.transport_errors == []
            assert probe.load.ledger.refusals == {}

    run(scenario())


@pytest.mark.slow
def test_a_kill_while_the_disk_is_full_loses_nothing(tmp_path: Path, faults: FaultFs) -> None:
    async def scenario() -> None:
        async with under_load(tmp_path, faults.env) as probe:
            faults.set("ENOSPC", path="journal.db")
            await probe.refused()
            await probe.place.kill()
            faults.clear()
            await probe.place.start()

    try:
        run(scenario())
    finally:
        faults.clear()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ENOSPC", "EIO_WRITE"])
def test_a_stop_while_the_disk_fails_comes_to_its_end_and_loses_nothing(
    tmp_path: Path, faults: FaultFs, mode: Any
) -> None:
    async def scenario() -> None:
        async with under_load(tmp_path, faults.env) as probe:
            faults.set(mode, path="journal.db")
            await probe.refused()
            assert await probe.place.stop() == 0
            faults.clear()
            await probe.place.start()

    try:
        run(scenario())
    finally:
        faults.clear()


@pytest.mark.slow
def test_a_server_does_not_start_on_a_disk_that_cannot_be_written_and_says_why(tmp_path: Path, faults: FaultFs) -> None:
    async def scenario() -> None:
        async with mock_engine() as engine, world(tmp_path, [mock_pool(engine)], env=faults.env) as place:
            await place.start()
            await place.ready()
            assert await place.stop() == 0
            with faults.active("EROFS", path="journal.db"):
                await place.start()
                assert await place.ended() == 1
            said = place.log.read_text()
            assert "the journal sqlite:////" in said
            assert "cannot be opened" in said
            assert "Traceback" not in said
            await place.start()
            await place.ready()
            assert await place.stop() == 0

    run(scenario())


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_stopped_postgresql_breaks_streams_off_until_it_is_back(
    tmp_path: Path, postgres: PostgresServer, database: Callable[[], str], how: signal.Signals
) -> None:
    url = database()

    async def scenario() -> None:
        async with under_load(tmp_path, {}, {"journal": {"url": url}}) as probe:
            # stopped as by a crash, PostgreSQL loses what was committed and not synced: tokens, and nothing durable
            probe.load.ledger.power_is_lost = how == signal.SIGQUIT
            await breaks_off_and_comes_back(probe, lambda: postgres.stop(how), postgres.start)

    run(scenario())
