"""Outboxes: which facts of each host stand in the journal already, so that each is folded once (RCV-3)."""

from __future__ import annotations

from typing import Any, Final

from ..events.manager import ManagerConnected, ManagerLost, OutboxReceived
from .projection import Projection, Recorded, on

#: incarnations that are remembered per host: an older one has delivered all it had before a newer one begins
_REMEMBERED: Final = 8


class Outboxes(Projection):
    """The last fact of each incarnation of each host's pool-managerd."""

    name = "outboxes"

    def __init__(self) -> None:
        #: ``{host: {incarnation: n}}``, incarnations in the order of their first fact
        self.received: dict[str, dict[str, int]] = {}
        #: hosts whose program is connected, with its incarnation
        self.connected: dict[str, str] = {}

    def last(self, host: str, incarnation: str) -> int:
        """Number of the last fact that stands in the journal; 0 = none."""
        return self.received.get(host, {}).get(incarnation, 0)

    @on(OutboxReceived)
    def _received(self, record: Recorded) -> None:
        event: OutboxReceived = record.payload
        known = self.received.setdefault(event.host, {})
        known[event.incarnation] = max(event.n, known.get(event.incarnation, 0))
        while len(known) > _REMEMBERED:
            del known[next(iter(known))]

    @on(ManagerConnected)
    def _connected(self, record: Recorded) -> None:
        self.connected[record.payload.host] = record.payload.incarnation

    @on(ManagerLost)
    def _lost(self, record: Recorded) -> None:
        self.connected.pop(record.payload.host, None)

    def dump(self) -> Any:
        """Per host the incarnations in order, and who is connected."""
        return {
            "received": {host: [list(pair) for pair in known.items()] for host, known in sorted(self.received.items())},
            "connected": dict(sorted(self.connected.items())),
        }

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.received = {host: dict(map(tuple, pairs)) for host, pairs in data["received"].items()}
        self.connected = dict(data["connected"])
