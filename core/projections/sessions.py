"""Sessions: turns taken, when they were last used, and where an engine may still hold their KV cache (SES-1, SES-2)."""

from __future__ import annotations

import heapq
from typing import Any, Final

import msgspec

from ..events.lease import LeaseGranted
from ..events.session import SessionClosed, SessionEvicted, SessionOpened
from ..events.task import TaskAdmitted, TaskEnded, TaskPlaced
from .projection import Projection, Recorded, on

#: how long an expired session is remembered, so that a late turn is told why it is refused
REMEMBER_NS: Final = 86_400_000_000_000
#: expired sessions that are remembered at most
_REMEMBER: Final = 100_000
#: looks at sessions that are gone which may stay in memory, beside as many as there are sessions
_SPARE_LOOKS: Final = 1024


class SessionKv(msgspec.Struct, frozen=True, gc=False):
    """The slot that a session's last task ran in."""

    pool_id: str
    slot: int
    #: start of the engine that the slot belongs to
    generation: int
    #: of prompt and answer of the last task that ended there
    tokens: int = 0
    #: what the session had elsewhere was lost when it came here
    lost: bool = False


class SessionState(msgspec.Struct, kw_only=True, gc=False):
    """One open session."""

    session_id: str
    owner: str
    ttl_ms: int
    turn_limit: int
    turns: int = 0
    #: tasks that have not ended
    tasks: list[str] = []
    opened_ns: int = 0
    used_ns: int = 0
    #: pool of its last task, for affinity
    pool_id: str = ""
    #: ``None``: no engine holds anything of it that is known of
    kv: SessionKv | None = None

    @property
    def live(self) -> int:
        """How many tasks wait or run."""
        return len(self.tasks)

    @property
    def due_ns(self) -> int:
        """Until when it may stay idle."""
        return self.used_ns + self.ttl_ms * 1_000_000

    def due(self, now_ns: int) -> bool:
        """Whether its idle time is over; one with a task that waits or runs is not idle."""
        return not self.live and now_ns > self.due_ns


class Expired(msgspec.Struct, frozen=True, gc=False):
    """A session whose idle time was over."""

    owner: str
    ttl_ms: int
    closed_ns: int


class Sessions(Projection):
    """Open sessions by id, and those that expired of late."""

    name = "sessions"
    version = 3

    def __init__(self) -> None:
        #: in the order of their last use
        self.by_id: dict[str, SessionState] = {}
        #: in the order of their end
        self.expired: dict[str, Expired] = {}
        self._of_task: dict[str, str] = {}
        self._at: dict[tuple[str, int], str] = {}
        #: when to look at each session next, never later than its idle time is over
        self._looks: list[tuple[int, str]] = []

    def at(self, pool_id: str, slot: int) -> SessionState | None:
        """The open session whose KV cache a slot may hold."""
        return self.by_id.get(self._at.get((pool_id, slot), ""))

    def kept(self, pool_id: str) -> list[SessionState]:
        """The open sessions whose KV cache a pool's engine may hold, the longest unused first."""
        found = [self.by_id[session_id] for (pool, _), session_id in self._at.items() if pool == pool_id]
        return sorted(found, key=lambda session: session.used_ns)

    def due(self, now_ns: int, most: int) -> list[SessionState]:
        """Sessions whose idle time is over, at most so many."""
        found: dict[str, SessionState] = {}
        looks = self._looks
        while looks and looks[0][0] < now_ns and len(found) < most:
            _, session_id = heapq.heappop(looks)
            session = self.by_id.get(session_id)
            if session is None or session_id in found:
                continue
            if session.due(now_ns):
                found[session_id] = session
            else:
                heapq.heappush(looks, (max(session.due_ns, now_ns if session.live else 0), session_id))
        # They stay due until their end is appended.
        for session_id, session in found.items():
            heapq.heappush(looks, (session.due_ns, session_id))
        return list(found.values())

    @on(SessionOpened)
    def _opened(self, record: Recorded) -> None:
        event: SessionOpened = record.payload
        self._forget(record.time_ns)
        self.expired.pop(event.session_id, None)
        session = self.by_id[event.session_id] = SessionState(
            session_id=event.session_id,
            owner=event.owner,
            ttl_ms=event.ttl_ms,
            turn_limit=event.turn_limit,
            opened_ns=record.time_ns,
            used_ns=record.time_ns,
            tasks=[],
        )
        heapq.heappush(self._looks, (session.due_ns, event.session_id))
        if len(self._looks) > _SPARE_LOOKS + 2 * len(self.by_id):
            # Most are of sessions that were closed by name.
            self._looks = [(one.due_ns, name) for name, one in self.by_id.items()]
            heapq.heapify(self._looks)

    @on(SessionClosed)
    def _closed(self, record: Recorded) -> None:
        event: SessionClosed = record.payload
        self._forget(record.time_ns)
        session = self.by_id.pop(event.session_id, None)
        if session is None:
            return
        self._leave(session)
        for task_id in session.tasks:
            # Whatever is opened under this id later is another session.
            del self._of_task[task_id]
        if event.cause == "expired":
            self.expired[event.session_id] = Expired(session.owner, session.ttl_ms, record.time_ns)

    def _forget(self, now_ns: int) -> None:
        # Looked through once: to begin anew at each, behind those that are gone, takes seconds after a busy day.
        old, spare = [], len(self.expired) - _REMEMBER
        for n, (session_id, one) in enumerate(self.expired.items()):
            if n >= spare and one.closed_ns > now_ns - REMEMBER_NS:
                break
            old.append(session_id)
        for session_id in old:
            del self.expired[session_id]

    def _leave(self, session: SessionState) -> None:
        kv = session.kv
        if kv is not None:
            self._at.pop((kv.pool_id, kv.slot), None)
            session.kv = None

    @on(TaskAdmitted)
    def _admitted(self, record: Recorded) -> None:
        event: TaskAdmitted = record.payload
        session = self.by_id.get(event.session_id) if event.session_id else None
        if session is not None:
            session.turns += 1
            session.tasks.append(event.task_id)
            self._of_task[event.task_id] = event.session_id
            self._use(session, record.time_ns)

    def _use(self, session: SessionState, now_ns: int) -> None:
        session.used_ns = now_ns
        self.by_id[session.session_id] = self.by_id.pop(session.session_id)

    def _session_of(self, task_id: str) -> SessionState | None:
        session_id = self._of_task.get(task_id)
        return self.by_id.get(session_id) if session_id else None

    @on(TaskPlaced)
    def _placed(self, record: Recorded) -> None:
        session = self._session_of(record.payload.task_id)
        if session is not None:
            session.pool_id = record.payload.pool_id

    @on(LeaseGranted)
    def _granted(self, record: Recorded) -> None:
        event: LeaseGranted = record.payload
        session, place = self._session_of(event.task_id), (event.pool_id, event.slot)
        before = self.by_id.get(self._at.pop(place, ""))
        if before is not None and before is not session:
            before.kv = None
        if session is None:
            return
        had = session.kv.tokens if session.kv is not None else 0
        self._leave(session)
        tokens = had if event.warm else 0
        session.kv = SessionKv(*place, event.generation, tokens, lost=bool(had) and not event.warm)
        self._at[place] = session.session_id

    @on(TaskEnded)
    def _ended(self, record: Recorded) -> None:
        event: TaskEnded = record.payload
        session = self._session_of(event.task_id)
        self._of_task.pop(event.task_id, None)
        if session is None:
            return
        session.tasks.remove(event.task_id)
        if session.kv is not None and event.prompt_tokens:
            session.kv = msgspec.structs.replace(session.kv, tokens=event.prompt_tokens + event.tokens_out)
        self._use(session, record.time_ns)

    @on(SessionEvicted)
    def _evicted(self, record: Recorded) -> None:
        session = self.by_id.get(record.payload.session_id)
        if session is not None:
            self._leave(session)

    def dump(self) -> Any:
        """Open sessions in the order of their last use, expired ones in that of their end."""
        return {
            "sessions": [msgspec.to_builtins(s) for s in self.by_id.values()],
            "expired": [[name, e.owner, e.ttl_ms, e.closed_ns] for name, e in self.expired.items()],
        }

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.__init__()  # type: ignore[misc]
        for session in msgspec.convert(data["sessions"], list[SessionState]):
            self.by_id[session.session_id] = session
            if session.kv is not None:
                self._at[session.kv.pool_id, session.kv.slot] = session.session_id
            for task_id in session.tasks:
                self._of_task[task_id] = session.session_id
            heapq.heappush(self._looks, (session.due_ns, session.session_id))
        self.expired = {name: Expired(owner, ttl_ms, at_ns) for name, owner, ttl_ms, at_ns in data["expired"]}
