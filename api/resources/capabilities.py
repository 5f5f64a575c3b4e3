"""``/v1/capabilities`` (CAP-1)."""

from __future__ import annotations

from typing import Any

from ..operations import Call, Resource, operation, resource


@resource("/v1/capabilities", tag="capabilities")
class CapabilitiesResource(Resource):
    """What the server can do now."""

    @operation("Report capabilities.")
    async def on_get(self, call: Call) -> dict[str, Any]:
        """Engines with versions, contexts, workloads and free slots, models and devices, derived from the live pools; the rates are
        those of the caller's key."""
        report: dict[str, Any] = self.services.capabilities.report(call.caller)
        return report
