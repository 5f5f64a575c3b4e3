"""``/v1/models/{id}``: one model, as OpenAI's clients ask for it."""

from __future__ import annotations

import difflib

from ...core.errors import ModelNotFoundError
from ..operations import Call, Resource, operation, resource
from .models import ModelBody, model_bodies


@resource("/v1/models/{model_id:path}", tag="openai", shape="openai")
class ModelResource(Resource):
    """One model."""

    @operation("Get a model.", errors=(ModelNotFoundError,))
    async def on_get(self, call: Call, model_id: str) -> ModelBody:
        """A model or an alias, whose name may hold slashes."""
        known = {model.id: model for model in model_bodies(self.services, call.caller)}
        found = known.get(model_id)
        if found is None:
            near = difflib.get_close_matches(model_id, known, n=1)
            msg = f"there is no model {model_id!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            raise ModelNotFoundError(msg, field="model", got=model_id)
        return found
