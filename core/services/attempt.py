"""One attempt of a task: from the engine's words to the journal's entries.

An attempt that repeats a task after a crash is checked against what the journal holds: bytes are compared,
never chunks, since an engine cuts its text differently each time. What lies beyond the journaled prefix is
appended as new entries.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..entries import EntryBatch, batch_of
from ..journal.journal import Journal
from ..ports import AttemptEnd, AttemptFailure, AttemptHandle, AttemptStart
from ..types import Entry


class AttemptEvents(msgspec.Struct, frozen=True):
    """What the dispatcher wants to hear of an attempt."""

    started: Callable[[Attempt, AttemptStart], None]
    ended: Callable[[Attempt, AttemptEnd], None]
    failed: Callable[[Attempt, AttemptFailure], None]
    diverged: Callable[[Attempt], None]


class Attempt:
    """The sink of one attempt; see :class:`~llama_orch.core.ports.AttemptSink`."""

    __slots__ = (
        "_events",
        "_expected",
        "_journal",
        "_owed",
        "begun",
        "cached_tokens",
        "done",
        "handle",
        "lease_id",
        "number",
        "pool_id",
        "recovery_used",
        "repeated",
        "resumed_at",
        "started_ns",
        "task_id",
    )

    def __init__(
        self,
        journal: Journal,
        events: AttemptEvents,
        *,
        task_id: str,
        number: int,
        pool_id: str,
        lease_id: str,
        now_ns: int,
    ) -> None:
        self._journal = journal
        self._events = events
        self.task_id = task_id
        self.number = number
        self.pool_id = pool_id
        self.lease_id = lease_id
        self.handle: AttemptHandle | None = None
        #: text that this attempt has to repeat before anything new is appended
        self._expected = ""
        #: tokens that the journal holds and this attempt has not repeated yet
        self._owed = 0
        #: pieces that were compared so far: signs of life that leave no entries
        self.repeated = 0
        self.resumed_at = 0
        self.recovery_used = ""
        self.begun = False
        #: of the prompt, that the engine had already; 0 = it did not say so
        self.cached_tokens = 0
        self.done = False
        self.started_ns = now_ns

    def repeat(self, text: str, entries: int, tokens: int) -> None:
        """This attempt regenerates: its first words have to be ``text``, which the journal holds as ``tokens``."""
        self._expected = text
        self._owed = tokens
        self.resumed_at = entries
        self.recovery_used = "regenerate"

    def continue_from(self, entries: int) -> None:
        """This attempt goes on behind the journaled entries."""
        self.resumed_at = entries
        self.recovery_used = "continue"

    # --- AttemptSink -----------------------------------------------------------------------------------------

    def started(self, start: AttemptStart) -> None:
        """The engine took the job; an engine that says so twice is not listened to."""
        if not self.done and not self.begun:
            self.begun = True
            self.cached_tokens = start.cached_tokens
            self._events.started(self, start)

    def entries(self, batch: EntryBatch) -> None:
        """The engine said something."""
        if not self.begun:
            self.started(AttemptStart())
        if self.done:
            return
        if self._expected or self._owed:
            rest = self._check(batch)
            if rest is None:
                return
            batch = rest
        if not self._journal.append_entries(self.task_id, self.number, batch):
            self.stop()

    def ended(self, end: AttemptEnd) -> None:
        """The engine finished by its own word."""
        if not self.begun:
            self.started(AttemptStart())
        if self.done:
            return
        if self._expected:
            self._diverged()
            return
        self.done = True
        self._events.ended(self, end)

    def failed(self, failure: AttemptFailure) -> None:
        """The attempt broke off."""
        if not self.done:
            self.done = True
            self._events.failed(self, failure)

    def pressure(self) -> bool:
        """Whether the engine shall pause: the journal cannot be written and too much waits."""
        return self._journal.pressure()

    # -----------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Nothing more is taken from the engine, and it is told so; idempotent."""
        self.done = True
        if self.handle is not None:
            self.handle.cancel()

    def _diverged(self) -> None:
        self.stop()
        self._events.diverged(self)

    def _check(self, batch: EntryBatch) -> EntryBatch | None:
        """Compare with the expected text; what goes beyond it is answered as a batch.

        The engine may cut its text differently this time, so tokens are counted apart from it: of the piece that
        crosses the end of the journaled text, and of pieces without text right behind it, only those tokens are new
        that the journal does not hold yet.
        """
        for n, text in enumerate(batch.texts):
            expected = self._expected
            if not expected and (text or not self._owed):
                self._owed = 0
                return batch.slice(n)
            tokens = 1 if batch.tokens is None else batch.tokens[n]
            self.repeated += 1
            if len(text) <= len(expected):
                if not expected.startswith(text):
                    self._diverged()
                    return None
                self._expected = expected[len(text) :]
                self._owed = max(0, self._owed - tokens)
                continue
            if not text.startswith(expected):
                self._diverged()
                return None
            self._expected = ""
            new = max(0, tokens - self._owed)
            self._owed = 0
            piece = batch_of([Entry(text=text[len(expected) :], tokens=new, ids_complete=False)])
            if n + 1 == len(batch.texts):
                return piece
            self._journal.append_entries(self.task_id, self.number, piece)
            return batch.slice(n + 1)
        return None
