"""``/v1/estimates``: how good predicted starts are, and what they are made from."""

from __future__ import annotations

from ...core.services.estimate_views import EstimatesView
from ..operations import Call, Resource, operation, resource


@resource("/v1/estimates", tag="queue")
class EstimatesResource(Resource):
    """Predictions."""

    @operation("Show how predicted starts came out.")
    async def on_get(self, call: Call) -> EstimatesView:
        """Per group and load band: how many starts were predicted, how many fell into the 80 % interval, how wide it
        was, and its pinball loss beside that of a moving average of past waits; then the rates and lengths that were
        learnt, of the caller's own answers and of all together.
        """
        return self.services.estimates.view(call.caller.owner)
