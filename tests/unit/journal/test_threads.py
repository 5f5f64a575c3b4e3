"""The threads that commit and sync: one thing at a time, what goes wrong is told, nobody hangs at the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llama_orch.core.errors import FencedError, JournalError, StoreRefusedError, StoreUnknownError
from llama_orch.core.frames import Frame
from llama_orch.core.journal.committer import CommitThread, Syncer, attempt
from llama_orch.core.ports import CommitUnit

PATIENCE_S = 30


class Loop:
    """Callbacks from threads, as an event loop takes them."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[Callable[..., object], tuple[object, ...]]] = queue.Queue()

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> None:
        self.calls.put((callback, args))

    def step(self) -> None:
        """Run the next callback, as soon as it comes."""
        callback, args = self.calls.get(timeout=PATIENCE_S)
        callback(*args)


class Store:
    """A store that waits where it is told to, and fails how it is told to."""

    commits_inline = False

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.entered = threading.Semaphore(0)
        self.failure: Exception | None = None
        self.committed: list[CommitUnit] = []
        self.synced: list[int] = []
        self.maintained = 0
        self.maintain_failure: Exception | None = None

    def _pass(self) -> None:
        self.entered.release()
        assert self.may_go_on.wait(PATIENCE_S)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def commit(self, unit: CommitUnit) -> None:
        self._pass()
        self.committed.append(unit)

    def sync(self, target_hash: bytes, seq: int) -> None:
        self._pass()
        self.synced.append(seq)

    def maintain(self) -> None:
        self.maintained += 1
        if self.maintain_failure is not None:
            raise self.maintain_failure


def unit(number: int) -> CommitUnit:
    """A unit that can be told from others."""
    return CommitUnit(frame=Frame(number, 1, number, 1, b"", b"", b"", b""))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def committer(store: Store, loop: Loop) -> Iterator[CommitThread]:
    thread = CommitThread(store, loop.call_soon_threadsafe)  # type: ignore[arg-type]
    yield thread
    store.may_go_on.set()
    thread.close()


def test_units_are_committed_in_order(committer: CommitThread, store: Store, loop: Loop) -> None:
    told: list[Exception | None] = []
    for number in range(5):
        committer.submit(unit(number), told.append)
        loop.step()
    assert [u.frame.frame_no for u in store.committed] == [0, 1, 2, 3, 4]
    assert told == [None] * 5


@pytest.mark.parametrize("failure", [StoreRefusedError("full"), StoreUnknownError("lost"), FencedError("fenced")])
def test_what_the_store_says_is_told(committer: CommitThread, store: Store, loop: Loop, failure: JournalError) -> None:
    told: list[Exception | None] = []
    store.failure = failure
    committer.submit(unit(1), told.append)
    loop.step()
    assert told == [failure]


def test_an_error_that_nobody_foresaw_leaves_the_outcome_open(
    committer: CommitThread, store: Store, loop: Loop
) -> None:
    told: list[Exception | None] = []
    store.failure = ZeroDivisionError("a bug in a plugin")
    committer.submit(unit(1), told.append)
    loop.step()
    (error,) = told
    assert isinstance(error, StoreUnknownError)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_closing_waits_for_the_commit_at_hand(store: Store, loop: Loop) -> None:
    committer = CommitThread(store, loop.call_soon_threadsafe)  # type: ignore[arg-type]
    store.may_go_on.clear()
    committer.submit(unit(1), lambda error: None)
    assert store.entered.acquire(timeout=PATIENCE_S)
    closing = threading.Thread(target=committer.close)
    closing.start()
    assert store.committed == []
    store.may_go_on.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert len(store.committed) == 1


def test_a_commit_on_the_loop_answers_the_same(store: Store) -> None:
    assert attempt(store, unit(1)) is None  # type: ignore[arg-type]
    store.failure = StoreRefusedError("full")
    assert isinstance(attempt(store, unit(2)), StoreRefusedError)  # type: ignore[arg-type]


class Synced:
    """What the syncer told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Any]] = []

    def __call__(self, seq: int, error: Exception | None) -> None:
        self.told.append((seq, error))


def test_only_durable_commits_are_synced_at_once(store: Store, loop: Loop) -> None:
    synced = Synced()
    syncer = Syncer(store, loop.call_soon_threadsafe, synced, maintain_every=100)  # type: ignore[arg-type]
    for seq in range(1, 10):
        syncer.committed(seq, b"", durable=False)
    syncer.committed(10, b"", durable=True)
    loop.step()
    assert store.synced == [10]
    assert synced.told == [(10, None)]
    syncer.close()


def test_commits_that_come_during_a_sync_are_synced_together(store: Store, loop: Loop) -> None:
    synced = Synced()
    syncer = Syncer(store, loop.call_soon_threadsafe, synced)  # type: ignore[arg-type]
    store.may_go_on.clear()
    syncer.committed(1, b"", durable=True)
    assert store.entered.acquire(timeout=PATIENCE_S)
    for seq in range(2, 8):
        syncer.committed(seq, b"", durable=True)
    store.may_go_on.set()
    loop.step()
    loop.step()
    assert store.synced == [1, 7]
    syncer.close()


def test_so_many_commits_are_synced_and_the_store_is_maintained(store: Store, loop: Loop) -> None:
    synced = Synced()
    syncer = Syncer(store, loop.call_soon_threadsafe, synced, maintain_every=5)  # type: ignore[arg-type]
    for seq in range(1, 6):
        syncer.committed(seq, b"", durable=False)
    loop.step()
    syncer.close()
    assert store.synced == [5]
    assert store.maintained == 1


def test_an_error_of_the_disk_is_told(store: Store, loop: Loop) -> None:
    synced = Synced()
    syncer = Syncer(store, loop.call_soon_threadsafe, synced)  # type: ignore[arg-type]
    for failure in (StoreUnknownError("EIO"), OSError("a bug")):
        store.failure = failure
        syncer.committed(1, b"", durable=True)
        loop.step()
    syncer.close()
    assert [type(error) for _, error in synced.told] == [StoreUnknownError, StoreUnknownError]


def test_a_checkpoint_that_fails_is_told_when_it_leaves_the_outcome_open(store: Store, loop: Loop) -> None:
    synced = Synced()
    syncer = Syncer(store, loop.call_soon_threadsafe, synced, maintain_every=1)  # type: ignore[arg-type]
    store.maintain_failure = StoreUnknownError("EIO")
    syncer.committed(1, b"", durable=True)
    loop.step()
    loop.step()
    syncer.close()
    assert synced.told[0] == (1, None)
    assert isinstance(synced.told[1][1], StoreUnknownError)
