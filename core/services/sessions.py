"""Sessions: opened by their first task or by name, over after idle time or by name; what engines keep of them (SES-1, SES-2).

A turn is an accepted task. What a pool's engine keeps of a session is the KV cache of the slot that it ran in last; that is
given up when others need the slot, when the pool may keep no more, and when the session is deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from ..errors import (
    ConflictError,
    InvalidParamsError,
    JournalUnavailableError,
    NotFoundError,
    OrchError,
    SessionExpiredError,
    SessionTurnsExceededError,
)
from ..events.lease import LeaseReleased
from ..events.session import SessionClosed, SessionEvicted, SessionOpened
from ..journal.journal import Journal
from ..projections.head import Head
from ..projections.projection import Recorded
from ..projections.sessions import REMEMBER_NS, SessionState
from ..projections.tasks import TaskState
from ..settings import BudgetCapSettings, Settings
from ..types import TaskRequest
from .budgets import BudgetService, Remaining
from .caller import Caller
from .engines import EngineDirectory

#: sessions that end in one batch
_AT_ONCE = 256


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """A session as it stands."""

    state: SessionState
    ttl_ms_remaining: int
    #: an engine that runs now holds its KV cache, as far as is known
    kv_warmth: bool
    #: what that takes; 0 where the pool's memory was never computed
    kv_bytes: int
    remaining: Remaining | None


def evictions(head: Head, state: TaskState, pool_id: str, slot: int) -> list[object]:
    """What the placement of a task in a slot means for the session whose KV cache it holds."""
    session = head.sessions.at(pool_id, slot)
    if session is None or session.kv is None or session.session_id == state.admitted.session_id:
        return []
    return [_evicted(session, "slot-needed", state.task_id)]


def _evicted(session: SessionState, cause: str, task_id: str = "") -> SessionEvicted:
    kv = session.kv
    assert kv is not None, "only what holds something is evicted"
    return SessionEvicted(
        session_id=session.session_id,
        pool_id=kv.pool_id,
        slot=kv.slot,
        kv_tokens=kv.tokens,
        cause=cause,
        task_id=task_id,
    )


class SessionService:
    """Opens, closes and shows sessions, and says before the queue whether one may have another turn (an admission check)."""

    def __init__(
        self,
        journal: Journal,
        settings: Settings,
        engines: EngineDirectory,
        budgets: BudgetService,
        new_id: Callable[[], str],
    ) -> None:
        self._journal = journal
        self._settings = settings.sessions
        self._engines = engines
        self._budgets = budgets
        self._new_id = new_id
        self._forgetting: set[asyncio.Task[None]] = set()
        #: slots of deleted sessions that are freed once these leases are released
        self._when_free: dict[str, tuple[str, int]] = {}

    def start(self) -> None:
        """Look after what engines keep of sessions."""
        self._journal.on_committed(self._note)

    async def close(self) -> None:
        """Stop asking engines."""
        for task in self._forgetting:
            task.cancel()
        await asyncio.gather(*self._forgetting, return_exceptions=True)

    # --- what admission asks ---------------------------------------------------------------------------------

    def refuse(self, request: TaskRequest, caller: Caller, now_ns: int) -> None:
        """:raises InvalidParamsError: it asks for more than the server's bounds, or names no session that this is for."""
        for field, got in (
            ("session_ttl_ms", request.session_ttl_ms),
            ("session_turn_limit", request.session_turn_limit),
        ):
            if got is not None and request.session_id is None:
                msg = f"{field} is for the session that begins with this task, and it names none (session_id)"
                raise InvalidParamsError(msg, field=field, got=got)
        self._limits(request.session_ttl_ms, request.session_turn_limit, "session_")

    def _limits(self, ttl_ms: int | None, turn_limit: int | None, prefix: str = "") -> tuple[int, int]:
        """Idle time and turns within the server's bounds. :raises InvalidParamsError: beyond them."""
        settings = self._settings
        for field, got, most in (
            ("ttl_ms", ttl_ms, settings.max_ttl_ms),
            ("turn_limit", turn_limit, settings.max_turn_limit),
        ):
            if got is not None and got > most:
                msg = f"{prefix}{field} is {got}, this server allows at most {most} (sessions.max_{field})"
                raise InvalidParamsError(msg, field=prefix + field, got=got)
        return ttl_ms or settings.ttl_ms, turn_limit or settings.turn_limit

    def events(self, request: TaskRequest, caller: Caller, prompt_tokens: int, now_ns: int) -> list[object]:
        """What goes before the admission of a task of a session.

        :raises SessionExpiredError: it was idle for too long. :raises SessionTurnsExceededError: it has had its turns.
        """
        session_id = request.session_id
        if session_id is None:
            return []
        session = self._journal.head.sessions.by_id.get(session_id)
        if session is None:
            self._require_not_expired(session_id, caller, now_ns)
            ttl_ms, turn_limit = self._limits(request.session_ttl_ms, request.session_turn_limit, "session_")
            return [SessionOpened(session_id=session_id, owner=caller.owner, ttl_ms=ttl_ms, turn_limit=turn_limit)]
        if session.owner != caller.owner:
            msg = f"session {session_id} is not yours"
            remedy = "Take a session_id of your own, or the key that opened this session."
            raise ConflictError(msg, field="session_id", got=session_id, remedy=remedy)
        if session.due(now_ns):
            self._journal.append(self._closing(session, "expired"), actor="server", correlation="")
            raise _expired(session_id, session.ttl_ms)
        if session.turns >= session.turn_limit:
            msg = f"session {session_id} has used its {session.turn_limit} turns"
            raise SessionTurnsExceededError(msg, field="session_id", got=session_id, turns=session.turns)
        return []

    def _require_not_expired(self, session_id: str, caller: Caller, now_ns: int) -> None:
        known = self._journal.head.sessions.expired.get(session_id)
        if known is not None and known.owner == caller.owner and now_ns - known.closed_ns < REMEMBER_NS:
            raise _expired(session_id, known.ttl_ms)

    # --- opening and closing ---------------------------------------------------------------------------------

    async def create(
        self,
        caller: Caller,
        *,
        session_id: str | None = None,
        ttl_ms: int | None = None,
        turn_limit: int | None = None,
        budgets: Sequence[BudgetCapSettings] = (),
        correlation: str = "",
    ) -> SessionView:
        """Open a session before its first task, with budgets of its own. Durable on return.

        :raises InvalidParamsError: more than the server's bounds. :raises ConflictError: it is open already.
        :raises SessionExpiredError: one of this id expired within the last day.
        """
        ttl_ms, turn_limit = self._limits(ttl_ms, turn_limit)
        now_ns = self._journal.now_ns()
        session_id = (session_id or self._new_id()).lower()
        known = self._journal.head.sessions.by_id.get(session_id)
        if known is not None and not known.due(now_ns):
            msg = f"session {session_id} is open already"
            raise ConflictError(msg, field="session_id", got=session_id, remedy="Use another session_id, or none.")
        if known is not None and known.owner == caller.owner:
            raise _expired(session_id, known.ttl_ms)
        self._require_not_expired(session_id, caller, now_ns)
        events = [
            *(self._closing(known, "expired") if known is not None else []),
            SessionOpened(session_id=session_id, owner=caller.owner, ttl_ms=ttl_ms, turn_limit=turn_limit),
            *self._budgets.opening("session", session_id, budgets, now_ns),
        ]
        seq = self._journal.append(events, actor=caller.identity, correlation=correlation)
        view = self.view(self._journal.head.sessions.by_id[session_id], now_ns)
        await self._journal.synced(seq)
        return view

    async def delete(self, session_id: str, caller: Caller, correlation: str = "") -> None:
        """Close a session and free its KV cache, at once or when its last task ends; nothing happens if it is gone."""
        session = self._journal.head.sessions.by_id.get(session_id.lower())
        if session is None or not self._may(caller, session):
            return
        kv = session.kv
        seq = self._journal.append(self._closing(session, "deleted"), actor=caller.identity, correlation=correlation)
        if kv is not None:
            busy = self._journal.head.leases.slots.get(kv.pool_id, {}).get(kv.slot)
            if busy is not None:
                self._when_free[busy] = (kv.pool_id, kv.slot)
            self._forget(kv.pool_id, kv.slot)
        await self._journal.synced(seq)

    def _closing(self, session: SessionState, cause: str) -> list[object]:
        kv = session.kv
        idle = kv is not None and kv.slot not in self._journal.head.leases.slots.get(kv.pool_id, {})
        evicted = [_evicted(session, "closed")] if idle and cause == "deleted" else []
        closed = SessionClosed(session_id=session.session_id, cause=cause)
        return [*evicted, *self._budgets.closing(session.session_id), closed]

    def sweep(self, now_ns: int) -> None:
        """End the sessions whose idle time is over."""
        found = self._journal.head.sessions.due(now_ns, _AT_ONCE)
        if found:
            events = [event for session in found for event in self._closing(session, "expired")]
            self._journal.append(events, actor="watchdog", correlation="")

    # --- what engines keep -----------------------------------------------------------------------------------

    def _note(self, records: Sequence[Recorded]) -> None:
        for record in records:
            if type(record.payload) is LeaseReleased:
                self._released(record.payload)

    def _released(self, event: LeaseReleased) -> None:
        """A slot is free: forget what it holds of a closed session, and what is more than the pool may keep."""
        place = self._when_free.pop(event.lease_id, None)
        if place is not None:
            self._forget(*place)
            return
        state = self._journal.task(event.task_id)
        session_id = state.admitted.session_id if state is not None else ""
        if not session_id:
            return
        session = self._journal.head.sessions.by_id.get(session_id)
        if session is None:
            if event.cause == "slot-free":
                self._forget_of_closed(session_id)
            return
        bound = self._settings.kv_per_pool
        if not bound:
            return
        kept = self._journal.head.sessions.kept(event.pool_id)
        idle = [s for s in kept if not s.live]
        too_many = idle[: max(0, len(kept) - bound)]
        try:
            for one in too_many:
                kv = one.kv
                self._journal.append([_evicted(one, "bound")], actor="server", correlation="", internal=True)
                if kv is not None:
                    self._forget(kv.pool_id, kv.slot)
        except JournalUnavailableError:
            return

    def _forget_of_closed(self, session_id: str) -> None:
        warm = self._journal.head.affinity.by_key.get(f"s:{session_id}")
        if warm is not None:
            self._forget(warm.pool_id, warm.slot)

    def _forget(self, pool_id: str, slot: int) -> None:
        """Ask the pool's engine to free an idle slot's KV cache; one that is busy is asked when it is free."""
        engine = self._engines.engine(pool_id)
        if engine is None or slot in self._journal.head.leases.slots.get(pool_id, {}):
            return

        async def ask() -> None:
            try:
                await engine.forget(slot)
            except (TimeoutError, OrchError, OSError):
                return  # an engine that is gone holds nothing; one that cannot overwrites it with what comes next

        task = asyncio.get_running_loop().create_task(ask())
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    # --- showing ---------------------------------------------------------------------------------------------

    @staticmethod
    def _may(caller: Caller, session: SessionState) -> bool:
        return session.owner == caller.owner or "admin" in caller.scopes

    def views(self, caller: Caller) -> list[SessionView]:
        """The caller's open sessions by id; an admin sees all."""
        now_ns = self._journal.now_ns()
        found = sorted(self._journal.head.sessions.by_id.items())
        return [self.view(s, now_ns) for _, s in found if self._may(caller, s) and not s.due(now_ns)]

    def get(self, session_id: str, caller: Caller) -> SessionView:
        """One open session. :raises NotFoundError: there is none of this id, or it is another's."""
        now_ns = self._journal.now_ns()
        session = self._journal.head.sessions.by_id.get(session_id.lower())
        if session is None or session.due(now_ns) or not self._may(caller, session):
            msg = f"there is no open session {session_id[:64]}"
            raise NotFoundError(
                msg,
                field="session_id",
                got=session_id[:64],
                remedy="GET /v1/sessions lists the open ones; a task with a new session_id opens one.",
            )
        return self.view(session, now_ns)

    def view(self, session: SessionState, now_ns: int) -> SessionView:
        """A session as it stands."""
        kv = session.kv
        pool = self._journal.head.pools.by_id.get(kv.pool_id) if kv is not None else None
        warm = (
            kv is not None
            and kv.tokens > 0
            and pool is not None
            and pool.ready
            and pool.observed is not None
            and pool.observed.generation == kv.generation
        )
        sized = pool.sized if pool is not None else None
        per_pool = sized.ctx * sized.slots if sized is not None else 0
        kv_bytes = kv.tokens * sized.kv_bytes // per_pool if warm and kv is not None and sized and per_pool else 0
        return SessionView(
            state=msgspec.structs.replace(session),
            ttl_ms_remaining=session.ttl_ms if session.live else max(0, session.due_ns - now_ns) // 1_000_000,
            kv_warmth=warm,
            kv_bytes=kv_bytes,
            remaining=self._budgets.remaining(session.owner, session.session_id),
        )


def _expired(session_id: str, ttl_ms: int) -> SessionExpiredError:
    msg = f"session {session_id} was idle for more than {ttl_ms} ms"
    return SessionExpiredError(msg, field="session_id", got=session_id)
