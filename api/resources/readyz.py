"""``/readyz``: whether tasks can be accepted and served now."""

from __future__ import annotations

import msgspec

from ...core.errors import JournalUnavailableError, PoolUnavailableError
from ..auth import PUBLIC
from ..operations import Answer, Call, Resource, operation, resource


class ReadyBody(msgspec.Struct, frozen=True):
    """Whether the server can serve."""

    ready: bool
    #: state of the journal: ok, refusing, reopening, fenced, closed; "" for who brings no key
    journal: str
    #: per pool, "ready" or why not; nothing for who brings no key
    pools: dict[str, str]


@resource("/readyz", tag="server")
class ReadyResource(Resource):
    """Readiness."""

    @operation("Tell whether tasks are served.", errors=(PoolUnavailableError, JournalUnavailableError), scopes=PUBLIC)
    async def on_get(self, call: Call) -> ReadyBody | Answer:
        """200 when the journal can be written and at least one pool is ready (or, where all are loaded when a task asks for
        them, may be loaded), else 503 with the same body. Where keys are needed everybody is told whether, and only who
        brings one with the scope `read` is told why."""
        status = self.services.journal.status
        views = self.services.pools.views()
        pools = {v.pool_id: "ready" if v.ready else (v.cause or "not ready") for v in views}
        serves = any(v.ready for v in views)
        if views and all(v.on_demand for v in views):
            serves = serves or any(v.cause == "unloaded" and not v.draining for v in views)
        ready = status == "ok" and serves
        told = bool({"read", "admin"} & set(call.caller.scopes))
        body = ReadyBody(ready, status if told else "", pools if told else {})
        return body if ready else Answer(body, status=503, headers={"Retry-After": "1"})
