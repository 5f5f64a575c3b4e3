"""Devices: what was last observed of each host's GPUs and memory, as coarse as it is journaled (PLC-3)."""

from __future__ import annotations

from typing import Any

import msgspec

from ..events.gpu import GpuObserved
from .projection import Projection, Recorded, on


class Gpus(Projection):
    """The last observation of each host by its name."""

    name = "gpus"

    def __init__(self) -> None:
        self.by_host: dict[str, GpuObserved] = {}

    @on(GpuObserved)
    def _observed(self, record: Recorded) -> None:
        self.by_host[record.payload.host] = record.payload

    def dump(self) -> Any:
        """Hosts in order of their names."""
        return [msgspec.to_builtins(self.by_host[host]) for host in sorted(self.by_host)]

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.by_host = {host["host"]: msgspec.convert(host, GpuObserved) for host in data}
