"""``/v1/models``: the models, as OpenAI's and Anthropic's clients list them: each finds its own fields in one answer."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from ...core.errors import ForbiddenError
from ...core.services.caller import Caller
from ...core.services.container import Services
from ..operations import Call, Resource, operation, resource


class ModelBody(msgspec.Struct, frozen=True, kw_only=True):
    """A name under which a model can be asked for."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "llama-orch"
    #: the model behind an alias
    root: str = ""
    #: a pool of it can take tasks now
    ready: bool = False
    #: largest context of its pools, tokens; 0 = not known yet
    max_model_len: int = 0
    pools: list[str] = []
    # --- for Anthropic's clients ---
    type: str = "model"
    display_name: str = ""
    #: ``created`` as RFC 3339 writes it
    created_at: str = ""


class ModelsBody(msgspec.Struct, frozen=True, kw_only=True):
    """All models."""

    object: str = "list"
    data: list[ModelBody]
    #: there are no pages
    has_more: bool = False


def model_bodies(services: Services, caller: Caller) -> list[ModelBody]:
    """All models and their aliases that a caller may ask for."""
    out: list[ModelBody] = []
    pools = services.journal.head.pools.by_id
    for model in services.capabilities.models():
        created = min((pools[p].since_ns for p in model["pools"] if p in pools), default=0) // 1_000_000_000
        for name in (model["id"], *model["aliases"]):
            if not _may(caller, name):
                continue
            out.append(
                ModelBody(
                    id=name,
                    created=created,
                    created_at=datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                    display_name=name,
                    root=model["id"],
                    ready=model["ready"],
                    max_model_len=model["ctx_max"],
                    pools=model["pools"],
                )
            )
    return out


def _may(caller: Caller, name: str) -> bool:
    try:
        caller.require_model(name)
    except ForbiddenError:
        return False
    return True


@resource("/v1/models", tag="openai", shape="openai")
class ModelsResource(Resource):
    """All models."""

    @operation("List models.")
    async def on_get(self, call: Call) -> ModelsBody:
        """Models and their aliases that the caller may ask for, ready or not."""
        return ModelsBody(data=model_bodies(self.services, call.caller))
