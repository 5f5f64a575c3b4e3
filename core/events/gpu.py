"""GPUs: what was observed of them, quantised, and only when it changed (PLC-3)."""

from __future__ import annotations

import msgspec

from ..registry import event


class GpuRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU, as the driver described it."""

    uuid: str
    name: str = ""
    index: int = 0
    #: memory in MiB, 0 = not told; ``used`` is never less than it was, ``reserved`` is the driver's own beside it
    total_mib: int = 0
    used_mib: int = 0
    reserved_mib: int = 0
    #: over the last seconds; -1 = not told, as below
    utilization_percent: int = -1
    temperature_c: int = -1
    power_mw: int = -1
    #: why nothing may be placed on it, a cause of ``core/devices.py``, or ""
    trouble: str = ""


@event("gpu.observed", stream="host", key="host")
class GpuObserved:
    """The GPUs and the memory of a host changed by more than noise."""

    host: str
    driver: str = ""
    cuda: str = ""
    gpus: list[GpuRecord] = []
    #: what this host's processes may use, in MiB; 0 = not told
    memory_total_mib: int = 0
    memory_available_mib: int = 0
    #: why GPUs are not known, or not known to be so any more, a cause of ``core/devices.py``, or ""
    trouble: str = ""
