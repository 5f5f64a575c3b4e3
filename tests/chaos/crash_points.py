"""Where a server can be made to die: each point is a name, and a patch of one method in the process that shall die.

The product itself has no such hooks. ``install("after-commit:7", folder)`` makes the process kill itself with SIGKILL
when it gets there for the seventh time; it leaves the point's name in ``folder/crashed`` just before.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any


class Trigger:
    """Counts how often a point was passed, and kills at the chosen time."""

    def __init__(self, name: str, count: int, folder: Path) -> None:
        self._name = name
        self._left = count
        self.path = folder / "crashed"

    def reached(self) -> None:
        """The point is here."""
        self._left -= 1
        if self._left == 0:
            note = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(note, self._name.encode())
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()  # on a thread: until the signal arrives


Install = Callable[[Trigger], None]
POINTS: dict[str, Install] = {}


def point(name: str) -> Callable[[Install], Install]:
    """Register a point."""

    def register(function: Install) -> Install:
        POINTS[name] = function
        return function

    return register


def install(wanted: str, folder: Path) -> None:
    """Make this process die at ``name:count``."""
    name, _, count = wanted.partition(":")
    POINTS[name](Trigger(name, int(count or 1), folder))


def before(owner: Any, method: str, when: Callable[..., bool], trigger: Trigger) -> None:
    """Die before a method runs."""
    original = getattr(owner, method)

    @wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            trigger.reached()
        return original(*args, **kwargs)

    setattr(owner, method, patched)


def after(owner: Any, method: str, when: Callable[..., bool], trigger: Trigger) -> None:
    """Die once a method returned, before its caller goes on."""
    original = getattr(owner, method)

    @wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if when(*args, **kwargs):
            trigger.reached()
        return result

    setattr(owner, method, patched)


def always(*_args: Any, **_kwargs: Any) -> bool:
    """Every call counts."""
    return True


def _appends(kind: str) -> Callable[..., bool]:
    return lambda _journal, payloads, **_: any(type(payload).__name__ == kind for payload in payloads)


def _journal() -> Any:
    from llama_orch.core.journal.journal import Journal

    return Journal


def _store() -> Any:
    from llama_orch.plugins.storage.sqlite import SqliteStore

    return SqliteStore


def _attempt() -> Any:
    from llama_orch.core.services.attempt import Attempt

    return Attempt


# --- before append, and folded but not committed --------------------------------------------------------------------

for _kind in ("TaskAdmitted", "TaskStarted", "TaskEnded"):

    @point(f"before-append-{_kind}")
    def _before_append(trigger: Trigger, kind: str = _kind) -> None:
        before(_journal(), "append", _appends(kind), trigger)

    @point(f"folded-{_kind}")
    def _folded(trigger: Trigger, kind: str = _kind) -> None:
        after(_journal(), "append", _appends(kind), trigger)


@point("folded-entries")
def _folded_entries(trigger: Trigger) -> None:
    after(_journal(), "append_entries", always, trigger)


# --- around COMMIT, and committed but not synced --------------------------------------------------------------------


class _Connection:
    """A database connection that dies around the statements that commit."""

    def __init__(self, raw: Any, trigger: Trigger, *, first: bool) -> None:
        self._raw = raw
        self._trigger = trigger
        self._first = first

    def execute(self, statement: str, *parameters: Any) -> Any:
        commits = statement == "COMMIT" or (not self._raw.in_transaction and statement.lstrip().startswith("INSERT"))
        if commits and self._first:
            self._trigger.reached()
        done = self._raw.execute(statement, *parameters)
        if commits and not self._first:
            self._trigger.reached()
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _around_commit(trigger: Trigger, *, first: bool) -> None:
    store = _store()
    original = store.commit

    @wraps(original)
    def commit(self: Any, unit: Any) -> None:
        real, self._raw = self._raw, _Connection(self._raw, trigger, first=first)
        try:
            original(self, unit)
        finally:
            self._raw = real

    store.commit = commit


@point("before-commit")
def _before_commit(trigger: Trigger) -> None:
    _around_commit(trigger, first=True)


@point("after-commit")
def _after_commit(trigger: Trigger) -> None:
    _around_commit(trigger, first=False)


@point("rewriting")
def _rewriting(trigger: Trigger) -> None:
    store = _store()
    original = store.commit

    @wraps(original)
    def commit(self: Any, unit: Any) -> None:
        if not unit.rewrites:
            original(self, unit)
            return
        real, self._raw = self._raw, _Connection(self._raw, trigger, first=True)
        try:
            original(self, unit)
        finally:
            self._raw = real

    store.commit = commit


@point("not-synced")
def _not_synced(trigger: Trigger) -> None:
    before(_store(), "sync", always, trigger)


@point("synced-not-told")
def _synced_not_told(trigger: Trigger) -> None:
    after(_store(), "sync", always, trigger)


# --- the engine knows more than the journal -------------------------------------------------------------------------


@point("engine-asked")
def _engine_asked(trigger: Trigger) -> None:
    from llama_orch.plugins.engines.llamacpp import LlamaCpp

    after(LlamaCpp, "generate", lambda _self, job, _sink: not job.task_id.startswith("preload"), trigger)


@point("engine-took-it")
def _engine_took_it(trigger: Trigger) -> None:
    before(_attempt(), "started", always, trigger)


@point("engine-sent-entries")
def _engine_sent_entries(trigger: Trigger) -> None:
    before(_attempt(), "entries", always, trigger)


@point("engine-sent-end")
def _engine_sent_end(trigger: Trigger) -> None:
    before(_attempt(), "ended", always, trigger)


# --- terminal without transcript ------------------------------------------------------------------------------------


@point("no-transcript")
def _no_transcript(trigger: Trigger) -> None:
    from llama_orch.core.services.transcripts import Transcripts

    before(Transcripts, "_now", always, trigger)


@point("no-transcript-end-seen")
def _no_transcript_end_seen(trigger: Trigger) -> None:
    """Ends are synced and told; transcripts are not written at all until the process dies."""
    from llama_orch.core.services.transcripts import Transcripts

    def count_only(_self: Any, _task_id: str) -> None:
        trigger.reached()

    setattr(Transcripts, "_now", count_only)  # noqa: B010


@point("transcript-folded")
def _transcript_folded(trigger: Trigger) -> None:
    after(_journal(), "append_transcript", always, trigger)


# --- while taking up what an earlier kill left ----------------------------------------------------------------------


@point("recovering")
def _recovering(trigger: Trigger) -> None:
    from llama_orch.core.services import container

    after(container, "recover", always, trigger)


# --- facts of pool-managerd -----------------------------------------------------------------------------------------


@point("facts-folded")
def _facts_folded(trigger: Trigger) -> None:
    """In the journal's memory, and not committed."""
    after(_journal(), "append", _appends("OutboxReceived"), trigger)


@point("facts-not-acknowledged")
def _facts_not_acknowledged(trigger: Trigger) -> None:
    """Committed, and the host does not know."""
    from llama_orch.pools.link import Link

    before(Link, "ack", always, trigger)


# --- in a snapshot, which a process beside the server writes --------------------------------------------------------

for _name in ("snapshot-part-written", "snapshot-renamed"):

    @point(_name)
    def _in_a_snapshot(trigger: Trigger, name: str = _name) -> None:
        """The process that writes it dies there, and takes the server along."""
        os.environ["PYTHONPATH"] = str(Path(__file__).with_name("customize"))
        os.environ["CHAOS_SNAPSHOT"] = name
        os.environ["CHAOS_NOTE"] = str(trigger.path)
