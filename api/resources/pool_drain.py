"""``/v1/pools/{id}/drain`` and ``…/undrain`` (POOL-2)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ...core.errors import ConflictError, JournalUnavailableError, NotFoundError
from ...core.settings import Milliseconds
from ..operations import Call, Resource, operation, resource


class DrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a pool is taken out of service."""

    #: for running tasks, from now; what runs longer is given up for another attempt; null = until they end
    deadline_ms: Milliseconds | None = None
    #: for whoever reads the journal
    reason: Annotated[str, Meta(max_length=500)] = ""


class DrainAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How the pool stands."""

    pool_id: str
    draining: bool
    #: tasks that run on it
    active_leases: int


@resource("/v1/pools/{pool_id}/drain", tag="pools")
class PoolDrainResource(Resource):
    """The drain of a pool."""

    @operation("Drain a pool.", status=202, errors=(NotFoundError, ConflictError, JournalUnavailableError))
    async def on_post(self, call: Call, pool_id: str, body: DrainBody) -> DrainAnswer:
        """It takes no new tasks; running ones may end until the deadline, then its engine is unloaded until it is undrained.
        Asked again, the new deadline counts. No task is lost: what is given up, and what waits, is placed elsewhere or later.
        """
        pool = await self.services.draining.drain(
            pool_id, call.caller, deadline_ms=body.deadline_ms, reason=body.reason, correlation=call.correlation
        )
        leases = self.services.journal.head.leases.count(pool_id)
        return DrainAnswer(pool_id=pool_id, draining=pool.draining, active_leases=leases)


@resource("/v1/pools/{pool_id}/undrain", tag="pools")
class PoolUndrainResource(Resource):
    """The end of a pool's drain."""

    @operation("Put a pool back into service.", status=202, errors=(NotFoundError, JournalUnavailableError))
    async def on_post(self, call: Call, pool_id: str) -> DrainAnswer:
        """It is loaded again if it has to be, and takes tasks. One that failed is tried at once; others stay as they are."""
        pool = await self.services.draining.undrain(pool_id, call.caller, correlation=call.correlation)
        leases = self.services.journal.head.leases.count(pool_id)
        return DrainAnswer(pool_id=pool_id, draining=pool.draining, active_leases=leases)
