"""What is journaled of a host's devices: coarse values that stay while the real ones only tremble (PLC-3).

A decision reads what the journal holds, so the journal has to hold what the GPUs were like; but not each breath of them. Each
value is a multiple of a step and stays until the real one has left it by clearly more than half a step, so that a value which
trembles at the edge of two steps makes one event and no more. Memory errs to the safe side: used memory is never told as less
than it is, available memory never as more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .devices import GpuReading, HostSample
from .events.gpu import GpuObserved, GpuRecord

MIB: Final = 1_048_576
GPU_STEP_MIB: Final = 32
HOST_STEP_MIB: Final = 128
UTILIZATION_STEP: Final = 5
TEMPERATURE_STEP_C: Final = 5
POWER_STEP_MW: Final = 10_000
#: changes of memory that are told at once, not only now and then
_MUCH_GPU_MIB: Final = 256
_MUCH_HOST_MIB: Final = 1_024
#: share of a new value in the smoothed utilisation, thousandths: a sixteenth
_FRESH: Final = 62


def near(value: int, step: int, told: int | None = None) -> int:
    """The multiple of ``step`` for a value; ``told`` stays while the value is within three quarters of a step of it."""
    if told is not None and told % step == 0 and 4 * abs(value - told) <= 3 * step:
        return told
    return (value + step // 2) // step * step


def at_least(value: int, step: int, told: int | None = None) -> int:
    """A multiple of ``step`` that is not below the value; ``told`` stays while it is less than two steps above."""
    if told is not None and told % step == 0 and 0 <= told - value < 2 * step:
        return told
    return -(-value // step) * step


def at_most(value: int, step: int, told: int | None = None) -> int:
    """A multiple of ``step`` that is not above the value; ``told`` stays while it is less than two steps below."""
    if told is not None and told % step == 0 and 0 <= value - told < 2 * step:
        return told
    return value // step * step


def smoothed(before: int | None, percent: int) -> int:
    """Utilisation over the last samples, thousandths of a percent: it jumps with every request."""
    fresh = percent * 1_000
    return fresh if before is None else (before * (1_000 - _FRESH) + fresh * _FRESH) // 1_000


def coarse(told: GpuObserved | None, sample: HostSample, utilization: Mapping[str, int]) -> GpuObserved:
    """What the journal is to hold of a sample; equal to ``told`` where nothing changed by more than a tremble.

    :param told: what it holds.
    :param utilization: :func:`smoothed` of each GPU by UUID.
    """
    before = {gpu.uuid: gpu for gpu in told.gpus} if told is not None else {}
    memory = sample.memory
    return GpuObserved(
        host=sample.host,
        driver=sample.driver_version,
        cuda=sample.cuda_version,
        gpus=[_record(before.get(gpu.uuid), gpu, utilization.get(gpu.uuid)) for gpu in sample.gpus],
        memory_total_mib=memory.total_bytes // MIB if memory is not None else 0,
        memory_available_mib=0
        if memory is None
        else at_most(
            memory.available_bytes // MIB, HOST_STEP_MIB, told.memory_available_mib if told is not None else None
        ),
        trouble=sample.trouble,
    )


def _record(told: GpuRecord | None, gpu: GpuReading, utilization: int | None) -> GpuRecord:
    return GpuRecord(
        uuid=gpu.uuid,
        name=gpu.name,
        index=gpu.index,
        total_mib=(gpu.total_bytes or 0) // MIB,
        used_mib=_mib(gpu.used_bytes, told.used_mib if told is not None else None),
        reserved_mib=_mib(gpu.reserved_bytes, told.reserved_mib if told is not None else None),
        utilization_percent=_near(
            None if utilization is None or gpu.utilization_percent is None else utilization // 1_000,
            UTILIZATION_STEP,
            told.utilization_percent if told is not None else -1,
        ),
        temperature_c=_near(gpu.temperature_c, TEMPERATURE_STEP_C, told.temperature_c if told is not None else -1),
        power_mw=_near(gpu.power_mw, POWER_STEP_MW, told.power_mw if told is not None else -1),
        trouble=gpu.trouble,
    )


def _mib(value: int | None, told: int | None) -> int:
    return 0 if value is None else at_least(-(-value // MIB), GPU_STEP_MIB, told)


def _near(value: int | None, step: int, told: int) -> int:
    return -1 if value is None else near(value, step, told if told >= 0 else None)


def pressing(told: GpuObserved | None, new: GpuObserved) -> bool:
    """Whether a change is told at once: what is there, what is wrong with it, and memory by much.

    Else it can wait, so that a busy host makes an event every few seconds at most.
    """
    if told is None:
        return True
    if (told.trouble, told.driver, told.cuda) != (new.trouble, new.driver, new.cuda):
        return True
    before = {gpu.uuid: gpu for gpu in told.gpus}
    if before.keys() != {gpu.uuid for gpu in new.gpus}:
        return True
    if told.memory_available_mib - new.memory_available_mib >= _MUCH_HOST_MIB:
        return True
    return any(
        before[gpu.uuid].trouble != gpu.trouble or abs(before[gpu.uuid].used_mib - gpu.used_mib) >= _MUCH_GPU_MIB
        for gpu in new.gpus
    )
