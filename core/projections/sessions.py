"""Sessions: turns taken and when they were last used."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from ..events.session import SessionClosed, SessionOpened
from ..events.task import TaskAdmitted, TaskEnded, TaskPlaced
from .projection import Projection, Recorded, on


class SessionState(msgspec.Struct, kw_only=True, gc=False):
    """One open session."""

    session_id: str
    owner: str
    ttl_ms: int
    turn_limit: int
    turns: int = 0
    opened_ns: int = 0
    used_ns: int = 0
    #: pool of its last task, for affinity
    pool_id: str = ""

    def due(self, now_ns: int) -> bool:
        """Whether its idle time is over."""
        return now_ns - self.used_ns > self.ttl_ms * 1_000_000


class Sessions(Projection):
    """Open sessions by id."""

    name = "sessions"

    def __init__(self) -> None:
        #: in the order of their last use
        self.by_id: dict[str, SessionState] = {}
        self._of_task: dict[str, str] = {}

    @on(SessionOpened)
    def _opened(self, record: Recorded) -> None:
        event: SessionOpened = record.payload
        self.by_id[event.session_id] = SessionState(
            session_id=event.session_id,
            owner=event.owner,
            ttl_ms=event.ttl_ms,
            turn_limit=event.turn_limit,
            opened_ns=record.time_ns,
            used_ns=record.time_ns,
        )

    @on(SessionClosed)
    def _closed(self, record: Recorded) -> None:
        self.by_id.pop(record.payload.session_id, None)

    @on(TaskAdmitted)
    def _admitted(self, record: Recorded) -> None:
        event: TaskAdmitted = record.payload
        session = self.by_id.get(event.session_id) if event.session_id else None
        if session is not None:
            session.turns += 1
            session.used_ns = record.time_ns
            self.by_id[event.session_id] = self.by_id.pop(event.session_id)
            self._of_task[event.task_id] = event.session_id

    @on(TaskPlaced)
    def _placed(self, record: Recorded) -> None:
        session_id = self._of_task.pop(record.payload.task_id, None)
        session = self.by_id.get(session_id) if session_id else None
        if session is not None:
            session.pool_id = record.payload.pool_id

    @on(TaskEnded)
    def _ended(self, record: Recorded) -> None:
        self._of_task.pop(record.payload.task_id, None)

    def idle_since(self, before_ns: int) -> list[SessionState]:
        """Sessions that were not used since then, the longest idle one first."""
        return list(itertools.takewhile(lambda session: session.used_ns < before_ns, self.by_id.values()))

    def dump(self) -> Any:
        """Sessions in order of their ids."""
        return {
            "sessions": [msgspec.to_builtins(self.by_id[k]) for k in sorted(self.by_id)],
            "tasks": dict(sorted(self._of_task.items())),
        }

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        states = sorted((msgspec.convert(s, SessionState) for s in data["sessions"]), key=lambda s: s.used_ns)
        self.by_id = {s.session_id: s for s in states}
        self._of_task = dict(data["tasks"])
