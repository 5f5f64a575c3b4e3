"""A stage with one pool, "p", whose engine a host starts and ends for it; a test says what the host tells."""

from __future__ import annotations

from typing import Any

from llama_orch.core.events.pool import PoolReady, PoolUnready
from llama_orch.core.projections.pools import PoolState

from ...support.stage import Stage


class HostedStage(Stage):
    """The pool has two slots and is ready."""

    def __init__(self) -> None:
        self._n = 0
        super().__init__(slots={"p": 2}, launched=frozenset({"mock"}), ready=False)
        self.tell(PoolUnready(pool_id="p", cause="unloaded"))
        self.comes_up(1)

    def tell(self, *events: object) -> None:
        """The host tells, in one batch."""
        numbered = []
        for event in events:
            self._n += 1
            numbered.append((self._n, event))
        with self.loop.running():
            self.services.pools.received("local", "boot", "one", numbered)
        self.settle()

    def ready_event(self, generation: int) -> object:
        """The pool's engine is ready."""
        return PoolReady(
            pool_id="p", replica_id="r0", generation=generation, engine_version="1", slots=2, ctx=4096, devices=["cpu"]
        )

    def comes_up(self, generation: int) -> None:
        """The host tells that the pool's engine is ready."""
        self.tell(self.ready_event(generation))

    @property
    def pool(self) -> PoolState:
        """The pool by head."""
        return self.journal.head.pools.by_id["p"]

    def events(self, kind: type) -> list[Any]:
        """Events of a type, as they were committed."""
        return [record.payload for record in self.told if isinstance(record.payload, kind)]
