"""``/metrics``: Prometheus (OBS-1)."""

from __future__ import annotations

from ..operations import Answer, Call, Resource, operation, resource

_PLAIN = "text/plain; version=0.0.4; charset=utf-8"


@resource("/metrics", tag="server")
class MetricsResource(Resource):
    """Metrics."""

    @operation("Expose metrics to Prometheus.", media_type=_PLAIN)
    async def on_get(self, call: Call) -> Answer:
        """Prometheus' text format."""
        return Answer(raw=self.context.metrics.exposition(), media_type=_PLAIN)
