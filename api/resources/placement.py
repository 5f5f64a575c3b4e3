"""``/v1/placement/{model_ref}``: why a model is where it is, or is not (PLC-2, PLC-5)."""

from __future__ import annotations

from typing import Any

from ...core.errors import ModelNotFoundError
from ..operations import Call, Resource, operation, resource


@resource("/v1/placement/{model_ref}", tag="pools")
class PlacementResource(Resource):
    """A model's placement."""

    @operation("Explain a model's placement.", errors=(ModelNotFoundError,))
    async def on_get(self, call: Call, model_ref: str) -> dict[str, Any]:
        """Its pools with what they need and where they are, the devices with who holds them, the queue, and ``words``
        that say the same in sentences."""
        said: dict[str, Any] = self.services.explaining.model(model_ref)
        return said
