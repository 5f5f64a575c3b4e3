"""GPUs: what was observed of them, quantised, and only when it changed (PLC-3)."""

from __future__ import annotations

import msgspec

from ..registry import event


class GpuRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU, as the driver described it."""

    uuid: str
    name: str = ""
    index: int = 0
    #: memory in MiB; ``reserved`` is the driver's own
    total_mib: int = 0
    used_mib: int = 0
    reserved_mib: int = 0
    utilization_percent: int = 0
    temperature_c: int = 0
    power_mw: int = 0
    #: why it does not answer, or ""
    trouble: str = ""


@event("gpu.observed", stream="host", key="host")
class GpuObserved:
    """The GPUs and the memory of a host changed by more than noise."""

    host: str
    driver: str = ""
    cuda: str = ""
    gpus: list[GpuRecord] = []
    memory_total_mib: int = 0
    memory_available_mib: int = 0
    #: why there is no answer (library missing, driver not loaded, driver gone), or ""
    trouble: str = ""
