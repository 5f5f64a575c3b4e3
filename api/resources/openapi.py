"""``/openapi.json`` (API-1)."""

from __future__ import annotations

from ..operations import Answer, Call, Resource, operation, resource


@resource("/openapi.json", tag="server")
class OpenApiResource(Resource):
    """This description."""

    @operation("Describe all routes in OpenAPI 3.1.")
    async def on_get(self, call: Call) -> Answer:
        """Generated from the code that serves them."""
        return Answer(raw=self.context.document())
