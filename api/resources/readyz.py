"""``/readyz``: whether tasks can be accepted and served now."""

from __future__ import annotations

import msgspec

from ...core.errors import JournalUnavailableError, PoolUnavailableError
from ..operations import Answer, Call, Resource, operation, resource


class ReadyBody(msgspec.Struct, frozen=True):
    """Whether the server can serve."""

    ready: bool
    #: state of the journal: ok, refusing, reopening, fenced, closed
    journal: str
    #: per pool, "ready" or why not
    pools: dict[str, str]


@resource("/readyz", tag="server")
class ReadyResource(Resource):
    """Readiness."""

    @operation("Tell whether tasks are served.", errors=(PoolUnavailableError, JournalUnavailableError))
    async def on_get(self, call: Call) -> ReadyBody | Answer:
        """200 when the journal can be written and at least one pool is ready (or, where all are loaded when a task asks for
        them, may be loaded), else 503 with the same body."""
        status = self.services.journal.status
        views = self.services.pools.views()
        pools = {v.pool_id: "ready" if v.ready else (v.cause or "not ready") for v in views}
        serves = any(v.ready for v in views)
        if views and all(v.on_demand for v in views):
            serves = serves or any(v.cause == "unloaded" and not v.draining for v in views)
        ready = status == "ok" and serves
        body = ReadyBody(ready, status, pools)
        return body if ready else Answer(body, status=503, headers={"Retry-After": "1"})
