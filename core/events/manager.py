"""The programs that look after engines, one per host (RCV-3)."""

from __future__ import annotations

from ..registry import event


@event("manager.connected", stream="host", key="host")
class ManagerConnected:
    """The host's pool-managerd answered and took this server's epoch."""

    host: str
    boot_id: str
    #: new at each start of the program
    incarnation: str
    version: str = ""


@event("manager.lost", stream="host", key="host")
class ManagerLost:
    """The connection to the host's pool-managerd is gone."""

    host: str
    detail: str = ""


@event("outbox.received", stream="host", key="host")
class OutboxReceived:
    """Facts of the host's outbox up to this number stand before this event in the same batch."""

    host: str
    boot_id: str
    incarnation: str
    #: number of the last fact, from 1 within the incarnation
    n: int
