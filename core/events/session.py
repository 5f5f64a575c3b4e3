"""Sessions: turns that belong together."""

from __future__ import annotations

from ..registry import event


@event("session.opened", stream="session", key="session_id")
class SessionOpened:
    """A session was created, or its first task was admitted."""

    session_id: str
    owner: str
    #: idle time after which it expires
    ttl_ms: int
    turn_limit: int


@event("session.closed", stream="session", key="session_id", durable=True)
class SessionClosed:
    """The session is over."""

    session_id: str
    #: "expired" | "deleted"
    cause: str


@event("session.evicted", stream="session", key="session_id")
class SessionEvicted:
    """What a pool's engine kept of an idle session, its KV cache, is given up; the session itself goes on."""

    session_id: str
    pool_id: str
    slot: int
    #: tokens that it held
    kv_tokens: int = 0
    #: "slot-needed" (others work there now) | "bound" (the pool may keep no more) | "closed"
    cause: str = ""
    #: task that the slot was given to, if one was
    task_id: str = ""
