"""One attempt of a task: from the engine's words to the journal's entries.

An attempt that repeats a task after a crash is checked against what the journal holds: bytes are compared,
never chunks, since an engine cuts its text differently each time. What lies beyond the journaled prefix is
appended as new entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ..engine_ports import AttemptEnd, AttemptFailure, AttemptHandle, AttemptStart
from ..entries import EntryBatch, batch_of
from ..journal.journal import Journal
from ..types import Entry
from .purses import Purse


class AttemptEvents(msgspec.Struct, frozen=True):
    """What the dispatcher wants to hear of an attempt."""

    started: Callable[[Attempt, AttemptStart], None]
    ended: Callable[[Attempt, AttemptEnd], None]
    failed: Callable[[Attempt, AttemptFailure], None]
    diverged: Callable[[Attempt], None]


class _Debt:
    """What of one choice and channel the journal holds and the attempt has not repeated yet."""

    __slots__ = ("text", "tokens")

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0


class Attempt:
    """The sink of one attempt; see :class:`~llama_orch.core.engine_ports.AttemptSink`."""

    __slots__ = (
        "_debts",
        "_events",
        "_journal",
        "begun",
        "cached_tokens",
        "done",
        "handle",
        "lease_id",
        "number",
        "pool_id",
        "purse",
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
        purse: Purse | None = None,
    ) -> None:
        self._journal = journal
        self._events = events
        self.task_id = task_id
        self.number = number
        self.pool_id = pool_id
        self.lease_id = lease_id
        #: what it may append; ``None`` = its task is counted on no budget
        self.purse = purse
        self.handle: AttemptHandle | None = None
        #: by choice and channel what this attempt has to repeat before anything new of it is appended
        self._debts: dict[tuple[int, str], _Debt] = {}
        #: pieces that were compared so far: signs of life that leave no entries
        self.repeated = 0
        self.resumed_at = 0
        self.recovery_used = ""
        self.begun = False
        #: of the prompt, that the engine had already; 0 = it did not say so
        self.cached_tokens = 0
        self.done = False
        self.started_ns = now_ns

    def repeat(self, said: Sequence[EntryBatch], entries: int) -> None:
        """This attempt regenerates: its first words have to be those that the journal holds."""
        texts: dict[tuple[int, str], list[str]] = {}
        for batch in said:
            for entry in batch.entries():
                key = (entry.choice, entry.channel)
                texts.setdefault(key, []).append(entry.text)
                self._debts.setdefault(key, _Debt()).tokens += entry.tokens
        for key, pieces in texts.items():
            self._debts[key].text = "".join(pieces)
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
        if self._debts:
            rest = self._check(batch)
            if rest is None:
                return
            batch = rest
        if self.purse is None:
            taken = self._journal.append_entries(self.task_id, self.number, batch)
        else:
            taken = self.purse.append(self.number, batch)
        if not taken:
            self.stop()

    def ended(self, end: AttemptEnd) -> None:
        """The engine finished by its own word."""
        if not self.begun:
            self.started(AttemptStart())
        if self.done:
            return
        if any(debt.text for debt in self._debts.values()):
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
        """Compare with what has to be repeated; what goes beyond it is answered as a batch, ``None`` = nothing does.

        The engine may cut its text differently this time, so tokens are counted apart from it: of the piece that
        crosses the end of the journaled text, and of pieces without text right behind it, only those tokens are new
        that the journal does not hold yet. Choices and channels are compared each for itself: their order may differ.
        """
        fresh: list[Entry] = []
        for entry in batch.entries():
            key = (entry.choice, entry.channel)
            debt = self._debts.get(key)
            if debt is None:
                fresh.append(entry)
                continue
            if not debt.text and (entry.text or not debt.tokens):
                del self._debts[key]
                fresh.append(entry)
                continue
            self.repeated += 1
            if len(entry.text) <= len(debt.text):
                if not debt.text.startswith(entry.text):
                    self._diverged()
                    return None
                debt.text = debt.text[len(entry.text) :]
                debt.tokens = max(0, debt.tokens - entry.tokens)
                continue
            if not entry.text.startswith(debt.text):
                self._diverged()
                return None
            fresh.append(
                Entry(
                    text=entry.text[len(debt.text) :],
                    tokens=max(0, entry.tokens - debt.tokens),
                    ids_complete=False,
                    choice=entry.choice,
                    channel=entry.channel,
                )
            )
            del self._debts[key]
        return batch_of(fresh) if fresh else None
