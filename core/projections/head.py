"""Head: all projections together, folded up to one seq."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec

from ..errors import CorruptJournalError
from .affinity import Affinity
from .budgets import Budgets
from .gpus import Gpus
from .keys import Keys
from .leases import Leases
from .outboxes import Outboxes
from .pools import Pools
from .projection import EntriesRecorded, Projection, Recorded
from .queue import Queue
from .sessions import Sessions
from .tasks import Tasks

P = TypeVar("P", bound=Projection)

#: events that end their stream; a session or an account that is opened again under its id begins anew
_LAST_OF_STREAM = frozenset({"task.transcribed", "session.closed", "budget.removed", "response.deleted"})

_encode = msgspec.json.Encoder(order="sorted").encode


def projection_types() -> list[type[Projection]]:
    """Every projection of this package, by name; a new one is a new module."""
    package = importlib.import_module(__package__ or "llama_orch.core.projections")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{info.name}")
    return sorted(Projection.__subclasses__(), key=lambda p: p.name)


class Head:
    """The state that the events up to ``seq`` build; decisions read it, only the journal folds into it."""

    def __init__(self) -> None:
        self._projections: dict[str, Projection] = {p.name: p() for p in projection_types()}
        self._by_type: dict[type, list[Callable[[Recorded], None]]] = {}
        for projection in self._projections.values():
            for event, handler in projection.handlers().items():
                self._by_type.setdefault(event, []).append(handler)
        self._entry_folds = [
            p.fold_entries for p in self._projections.values() if type(p).fold_entries is not Projection.fold_entries
        ]
        #: seq after the last folded event
        self.next_seq = 1
        #: events per stream that is still open; a stream's next position
        self.positions: dict[str, int] = {}
        #: time of the last event; event time never runs backwards
        self.time_ns = 0

        self.tasks = self.of(Tasks)
        self.queue = self.of(Queue)
        self.leases = self.of(Leases)
        self.pools = self.of(Pools)
        self.sessions = self.of(Sessions)
        self.outboxes = self.of(Outboxes)
        self.gpus = self.of(Gpus)
        self.affinity = self.of(Affinity)
        self.keys = self.of(Keys)
        self.budgets = self.of(Budgets)

    def of(self, kind: type[P]) -> P:
        """The projection of a type."""
        return cast("P", self._projections[kind.name])

    def fold(self, record: Recorded) -> None:
        """Fold one event."""
        for handler in self._by_type.get(type(record.payload), ()):
            handler(record)
        self.time_ns = record.time_ns
        self.next_seq = record.seq + 1
        if record.name in _LAST_OF_STREAM:
            # Nothing follows in this stream: its position is not needed any more.
            self.positions.pop(record.stream, None)
        else:
            self.positions[record.stream] = record.position + 1

    def fold_entries(self, chunk: EntriesRecorded) -> None:
        """Fold one chunk of entries."""
        for fold in self._entry_folds:
            fold(chunk)

    def dump(self) -> dict[str, Any]:
        """Everything as JSON-like data."""
        return {
            "versions": {name: p.version for name, p in self._projections.items()},
            "next_seq": self.next_seq,
            "time_ns": self.time_ns,
            "positions": dict(sorted(self.positions.items())),
            "projections": {name: p.dump() for name, p in self._projections.items()},
        }

    def load(self, data: dict[str, Any]) -> None:
        """Replace everything by dumped data. :raises CorruptJournalError: other versions of the projections."""
        if data.get("versions") != {name: p.version for name, p in self._projections.items()}:
            msg = "the snapshot was written by other versions of the projections"
            raise CorruptJournalError(msg)
        self.next_seq = data["next_seq"]
        self.time_ns = data["time_ns"]
        self.positions = dict(data["positions"])
        for name, projection in self._projections.items():
            projection.load(data["projections"][name])

    def digest(self) -> str:
        """SHA-256 of the dumped state: equal states, equal digests."""
        return hashlib.sha256(_encode(self.dump())).hexdigest()
