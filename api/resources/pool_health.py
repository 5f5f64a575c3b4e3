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
        """Whether it lives, is ready, drains; leases and slots; the last error with its advice."""
        health: dict[str, Any] = self.services.pools.health(pool_id)
        return health
