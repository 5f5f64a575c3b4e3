"""``/v1/pools``: the pools."""

from __future__ import annotations

import msgspec

from ...core.types import PoolView
from ..operations import Call, Resource, operation, resource


class PoolsBody(msgspec.Struct, frozen=True):
    """Pools by id."""

    pools: list[PoolView]


@resource("/v1/pools", tag="pools")
class PoolsResource(Resource):
    """All pools."""

    @operation("List pools.")
    async def on_get(self, call: Call) -> PoolsBody:
        """A pool is an engine with one model on one device."""
        return PoolsBody(self.services.pools.views())
