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
        "begun",
        "done",
        "handle",
        "last_ns",
        "lease_id",
        "number",
        "pool_id",
        "recovery_used",
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
        self.resumed_at = 0
        self.recovery_used = ""
        self.begun = False
        self.done = False
        self.started_ns = now_ns
        #: monotonic time of the last sign of life, for the idle watchdog
        self.last_ns = now_ns

    def repeat(self, text: str, entries: int) -> None:
        """This attempt regenerates: its first words have to be ``text``."""
        self._expected = text
        self.resumed_at = entries
        self.recovery_used = "regenerate"

    def continue_from(self, entries: int) -> None:
        """This attempt goes on behind the journaled entries."""
        self.resumed_at = entries
        self.recovery_used = "continue"

    @property
    def behind(self) -> bool:
        """Whether it has not yet repeated all that the journal holds."""
        return bool(self._expected)

    # --- AttemptSink -----------------------------------------------------------------------------------------

    def started(self, start: AttemptStart) -> None:
        """The engine took the job."""
        if not self.done:
            self.begun = True
            self._events.started(self, start)

    def entries(self, batch: EntryBatch) -> None:
        """The engine said something."""
        if self.done:
            return
        if self._expected:
            rest = self._check(batch)
            if rest is None:
                return
            batch = rest
        if not self._journal.append_entries(self.task_id, self.number, batch):
            self.stop()

    def ended(self, end: AttemptEnd) -> None:
        """The engine finished by its own word."""
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
        """Compare with the expected text; what goes beyond it is answered as a batch."""
        for n, text in enumerate(batch.texts):
            expected = self._expected
            if len(text) < len(expected):
                if not expected.startswith(text):
                    self._diverged()
                    return None
                self._expected = expected[len(text) :]
                continue
            if not text.startswith(expected):
                self._diverged()
                return None
            self._expected = ""
            rest = batch.slice(n + 1) if n + 1 < len(batch.texts) else None
            if len(text) == len(expected):
                return rest
            # The engine cut differently: the tokens of this piece were counted when its beginning was appended.
            piece = batch_of([Entry(text=text[len(expected) :], tokens=0, ids_complete=False)])
            if rest is None:
                return piece
            self._journal.append_entries(self.task_id, self.number, piece)
            return rest
        return None
