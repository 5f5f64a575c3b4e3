"""What the swap planner reads of devices, and what pools need on them: head and configuration as its types (PLC-3, PLC-5)."""

from __future__ import annotations

from typing import Final

from ..devices import CPU
from ..events.gpu import GpuRecord
from ..projections.head import Head
from ..projections.pools import PoolState
from ..scheduling.ledger import gib
from ..scheduling.swap_types import DeviceMemory
from ..scheduling.tensor_split import tensor_shares
from ..settings import PoolSettings, Settings

_MIB: Final = 1024 * 1024
_UNKNOWN: Final = 2**62
#: a GPU that shares the host's memory: a pool that names it gets it, nothing else does
_SHARED: Final = "memory-unknown"
#: stands in a mask for a GPU that is not there: nothing fits it
NO_GPU: Final = "no-gpu"


def devices_of(head: Head, settings: Settings) -> tuple[DeviceMemory, ...]:
    """The devices of all hosts that said what they have, in order of their hosts and indices.

    A GPU that is lost, divided or behind a driver that is gone is none; one whose sample is only old still is.
    """
    out: list[DeviceMemory] = []
    swap = settings.swap
    for host, seen in sorted(head.gpus.by_host.items()):
        total = swap.host_memory_mib or seen.memory_total_mib
        out.append(
            DeviceMemory(
                device=CPU,
                host=host,
                total_bytes=total * _MIB,
                free_bytes=seen.memory_available_mib * _MIB if seen.memory_total_mib else None,
                stale=seen.trouble == "stale",
            )
        )
        for gpu in _gpus(head, host):
            if gpu.trouble and gpu.trouble != _SHARED:
                continue
            whole, free = gpu.total_mib, gpu.total_mib - gpu.used_mib - gpu.reserved_mib
            if gpu.trouble == _SHARED:
                whole, free = total, seen.memory_available_mib
            out.append(
                DeviceMemory(
                    device=gpu.uuid,
                    host=host,
                    total_bytes=whole * _MIB,
                    free_bytes=max(0, free) * _MIB,
                    stale=bool(seen.trouble),
                    reserve_bytes=swap.gpu_reserve_mib * _MIB,
                )
            )
    for host in sorted({pool.declared.host for pool in head.pools.by_id.values()} - set(head.gpus.by_host)):
        # The host has not said yet what it has; it refuses by itself what its memory cannot hold.
        out.append(DeviceMemory(device=CPU, host=host, total_bytes=swap.host_memory_mib * _MIB or _UNKNOWN))
    return tuple(out)


def mask_of(head: Head, pool: PoolState) -> tuple[str, ...]:
    """The devices that a pool may run on: "cpu", or UUIDs; a GPU that is not there stands as :data:`NO_GPU`."""
    wanted = pool.declared.device_mask
    if wanted == CPU:
        return (CPU,)
    gpus = _gpus(head, pool.declared.host)
    if wanted == "auto":
        return tuple(gpu.uuid for gpu in gpus if not gpu.trouble) or (NO_GPU,)
    mask = []
    for word in (part.strip() for part in wanted.split(",")):
        found = [gpu.uuid for gpu in gpus if word in (gpu.uuid, str(gpu.index), gpu.name)]
        mask += found or ([word] if word.startswith(("GPU-", "MIG-")) else [NO_GPU])
    return tuple(dict.fromkeys(mask))


def whole_of(pool: PoolState, settings: PoolSettings) -> int:
    """Bytes that a pool needs on one device; 0 = its host does not know either."""
    sized = pool.sized
    if sized is None:
        return 0
    return _corrected(sized.weights_bytes + sized.kv_bytes + sized.compute_bytes + sized.overhead_bytes, pool, settings)


def split_of(head: Head, pool: PoolState, settings: PoolSettings) -> tuple[int, ...]:
    """Bytes on each device of its mask when a pool is spread over all of them; () = it cannot be told.

    Weights and KV cache are shared out as its engine is told to (:func:`~..scheduling.tensor_split.tensor_shares`); what
    computing needs is needed on each.
    """
    mask, sized = mask_of(head, pool), pool.sized
    totals = {gpu.uuid: gpu.total_mib for gpu in _gpus(head, pool.declared.host)}
    if sized is None or any(device not in totals for device in mask):
        return ()
    if not all(totals[device] for device in mask):
        return ()
    try:
        shares = tensor_shares([totals[device] * _MIB for device in mask], settings.tensor_split)
    except ValueError:
        return ()
    shared, each = sized.weights_bytes + sized.kv_bytes, sized.compute_bytes + sized.overhead_bytes
    return tuple(_corrected(-(-shared * share // sum(shares)) + each, pool, settings) for share in shares)


def misfit_of(head: Head, settings: Settings, pool: PoolState, own: PoolSettings) -> str:
    """Why a pool fits none of the devices that it may run on, were they empty, with the numbers; "" = it does, or its host
    has not said yet what it has and what the pool needs."""
    if pool.declared.host not in head.gpus.by_host:
        return ""
    mask = mask_of(head, pool)
    most = {
        device.device: device.total_bytes - device.reserve_bytes
        for device in devices_of(head, settings)
        if device.host == pool.declared.host and device.device in mask
    }
    if not most:
        return (
            f"there is no GPU {pool.declared.device_mask!r}"
            if pool.declared.device_mask != "auto"
            else "there is no GPU"
        )
    need = whole_of(pool, own)
    if need <= max(most.values()):
        return ""
    parts = split_of(head, pool, own) if len(mask) > 1 and CPU not in mask else ()
    if parts and all(part <= most.get(device, 0) for device, part in zip(mask, parts, strict=True)):
        return ""
    have = ", ".join(f"{device} has {gib(size)}" for device, size in sorted(most.items()))
    return f"it needs {gib(need)}, and {have}"


def _gpus(head: Head, host: str) -> list[GpuRecord]:
    seen = head.gpus.by_host.get(host)
    return sorted(seen.gpus, key=lambda gpu: (gpu.index, gpu.uuid)) if seen is not None else []


def _corrected(size: int, pool: PoolState, settings: PoolSettings) -> int:
    """What was configured and what was observed of an earlier load, if that was more."""
    return size * settings.memory_permille * max(1000, pool.memory_permille) // 1_000_000
