"""A host whose engines stand where a test says: what its pool-managerd would tell, told straight to the service."""

from __future__ import annotations

from llama_orch.core.engine_ports import EngineProperties
from llama_orch.core.errors import JournalUnavailableError
from llama_orch.core.events.pool import PoolReady, PoolUnready
from llama_orch.core.services.container import Services


class StandInHost:
    """Tells facts with numbers of their own; those that the journal did not keep are told again, as an outbox does."""

    def __init__(self, services: Services, incarnation: str = "stand-in") -> None:
        self._services = services
        self._incarnation = incarnation
        self._n = services.journal.head.outboxes.last("local", incarnation)
        self._last: dict[str, PoolReady | PoolUnready] = {}
        services.journal.on_rebuilt(self._again)

    def ready(
        self, pool_id: str, properties: EngineProperties, *, generation: int = 1, decode_mtok_s: int = 50_000
    ) -> None:
        """The pool's engine loaded, is healthy and decoded a token."""
        self._tell(
            PoolReady(
                pool_id=pool_id,
                replica_id="r0",
                generation=generation,
                engine_version=properties.engine_version,
                model_digest=properties.model_digest,
                slots=properties.slots,
                ctx=properties.ctx,
                flags=properties.flags,
                decode_mtok_s=decode_mtok_s,
                abilities=[*properties.workloads, *properties.features],
            )
        )

    def unready(self, pool_id: str, cause: str = "engine-exited", *, detail: str = "", advice: str = "") -> None:
        """The pool's engine cannot take tasks."""
        self._tell(PoolUnready(pool_id=pool_id, cause=cause, detail=detail, advice=advice))

    def _tell(self, event: PoolReady | PoolUnready) -> None:
        self._last[event.pool_id] = event
        try:
            self._n += 1
            self._services.pools.received("local", "boot", self._incarnation, [(self._n, event)])
        except JournalUnavailableError:
            return  # told again once the journal is back

    def _again(self) -> None:
        for event in list(self._last.values()):
            self._tell(event)
