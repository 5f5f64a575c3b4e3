"""``/v1/pools/{id}``: one pool."""

from __future__ import annotations

from ...core.errors import NotFoundError
from ...core.types import PoolView
from ..operations import Call, Resource, operation, resource


@resource("/v1/pools/{pool_id}", tag="pools")
class PoolResource(Resource):
    """One pool."""

    @operation("Get a pool.", errors=(NotFoundError,))
    async def on_get(self, call: Call, pool_id: str) -> PoolView:
        """The pool as placement decisions see it."""
        self.services.pools.state(pool_id)
        found: PoolView = next(view for view in self.services.pools.views() if view.pool_id == pool_id)
        return found
