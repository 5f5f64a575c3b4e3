"""``/v1/pools/{id}/reload`` (POOL-2)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ...core.errors import ConflictError, InvalidParamsError, JournalUnavailableError, NotFoundError
from ...core.settings import Milliseconds
from ..operations import Call, Resource, operation, resource


class ReloadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a pool is changed to."""

    #: a reference, a name of ``models``, or what the pool has now, to start it anew
    new_model_ref: Annotated[str, Meta(min_length=1, max_length=4096)]
    #: "new-first": the new model is proven beside the old one; "drain": running tasks end, then the old engine, then the
    #: new one starts; "auto" = new-first where memory allows
    handover: Literal["auto", "new-first", "drain"] = "auto"
    #: for tasks that run on the old model, from when it has to go; what runs longer is given up for another attempt;
    #: null = until they end
    deadline_ms: Milliseconds | None = None


class ReloadAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was begun."""

    pool_id: str
    new_model_ref: str
    handover: str


@resource("/v1/pools/{pool_id}/reload", tag="pools")
class PoolReloadResource(Resource):
    """The reload of a pool."""

    @operation(
        "Change a pool's model.",
        status=202,
        errors=(InvalidParamsError, NotFoundError, ConflictError, JournalUnavailableError),
    )
    async def on_post(self, call: Call, pool_id: str, body: ReloadBody) -> ReloadAnswer:
        """The pool keeps its names, and answers to the new one, too. Should the new model not come up, the pool serves what
        it served before, and its health says why. It lasts until the pool's configuration is changed.
        """
        handover = await self.services.reloading.reload(
            pool_id,
            body.new_model_ref,
            call.caller,
            handover=None if body.handover == "auto" else body.handover,
            deadline_ms=body.deadline_ms,
            correlation=call.correlation,
        )
        return ReloadAnswer(pool_id=pool_id, new_model_ref=body.new_model_ref, handover=handover)
