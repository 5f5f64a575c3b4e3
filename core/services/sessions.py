"""Sessions: opened by their first task, over after idle time or turns (SES-1)."""

from __future__ import annotations

from ..errors import ConflictError, SessionExpiredError, SessionTurnsExceededError
from ..events.session import SessionClosed, SessionOpened
from ..journal.journal import Journal
from ..settings import Settings
from ..types import TaskRequest
from .caller import Caller


class SessionTurns:
    """A turn is an accepted task: what a session's limits say of the next one."""

    def __init__(self, journal: Journal, settings: Settings) -> None:
        self._journal = journal
        self._settings = settings

    def refuse(self, request: TaskRequest, caller: Caller, now_ns: int) -> None:
        """See :class:`~.admission.AdmissionCheck`; all is said in :meth:`events`."""

    def events(self, request: TaskRequest, caller: Caller, prompt_tokens: int, now_ns: int) -> list[object]:
        """What goes before the admission of a task of a session.

        :raises SessionExpiredError: it was idle for too long. :raises SessionTurnsExceededError: it has had its turns.
        """
        session_id = request.session_id
        if session_id is None:
            return []
        session = self._journal.head.sessions.by_id.get(session_id)
        defaults = self._settings.sessions
        if session is None:
            ttl_ms, turn_limit = defaults.ttl_ms, defaults.turn_limit
            return [SessionOpened(session_id=session_id, owner=caller.owner, ttl_ms=ttl_ms, turn_limit=turn_limit)]
        if session.owner != caller.owner:
            msg = f"session {session_id} is not yours"
            raise ConflictError(msg, field="session_id", got=session_id)
        if session.due(now_ns):
            closed = SessionClosed(session_id=session_id, cause="expired")
            self._journal.append([closed], actor="server", correlation="")
            msg = f"session {session_id} was idle for more than {session.ttl_ms} ms"
            raise SessionExpiredError(msg, field="session_id", got=session_id)
        if session.turns >= session.turn_limit:
            msg = f"session {session_id} has used its {session.turn_limit} turns"
            raise SessionTurnsExceededError(msg, field="session_id", got=session_id, turns=session.turns)
        return []
