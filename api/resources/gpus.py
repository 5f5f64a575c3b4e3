"""``/v1/gpus``: GPUs and memory of all hosts."""

from __future__ import annotations

import msgspec

from ...core.services.gpus import HostView
from ..operations import Call, Resource, operation, resource


class GpusBody(msgspec.Struct, frozen=True):
    """Hosts by name."""

    hosts: list[HostView]


@resource("/v1/gpus", tag="pools")
class GpusResource(Resource):
    """Devices."""

    @operation("Show GPUs and memory.")
    async def on_get(self, call: Call) -> GpusBody:
        """Per host its memory and its GPUs as the driver told of them last, with the age of that; what is missing or
        doubtful has its cause and what to do about it.
        """
        return GpusBody(self.services.gpus.views())
