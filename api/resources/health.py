"""``/health``: the process lives."""

from __future__ import annotations

import msgspec

from ..auth import PUBLIC
from ..operations import Call, Resource, operation, resource


class HealthBody(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str
    version: str


@resource("/health", tag="server")
class HealthResource(Resource):
    """Liveness."""

    @operation("Tell that the process lives.", scopes=PUBLIC)
    async def on_get(self, call: Call) -> HealthBody:
        """Always 200 while the process answers; whether it can serve is /readyz."""
        return HealthBody("ok", self.context.version)
