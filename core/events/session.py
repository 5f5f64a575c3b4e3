"""Sessions: turns that belong together."""

from __future__ import annotations

from ..registry import event


@event("session.opened", stream="session", key="session_id")
class SessionOpened:
    """The first task of a session was admitted."""

    session_id: str
    owner: str
    #: idle time after which it expires
    ttl_ms: int
    turn_limit: int


@event("session.closed", stream="session", key="session_id", durable=True)
class SessionClosed:
    """The session is over."""

    session_id: str
    #: "expired" | "deleted" | "evicted"
    cause: str
