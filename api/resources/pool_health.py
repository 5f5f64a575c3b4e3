"""``/v1/pools/{id}/health``."""

from __future__ import annotations

from typing import Any

from ...core.errors import NotFoundError
from ..operations import Call, Resource, operation, resource


@resource("/v1/pools/{pool_id}/health", tag="pools")
class PoolHealthResource(Resource):
    """The health of a pool."""

    @operation("Get a pool's health.", errors=(NotFoundError,))
    async def on_get(self, call: Call, pool_id: str) -> dict[str, Any]:
        """Whether it lives, is ready, drains; leases and slots; its devices as they are now, which `/v1/gpus` describes;
        the last error with its advice.
        """
        pools = self.services.pools
        return {**pools.health(pool_id), "gpu": self.services.gpus.view_of_pool(pools.state(pool_id))}
