"""From a configuration to a rig: which pools it would have, how large their models are, on which GPUs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from ..core.devices import CPU
from ..core.gguf import read_model
from ..core.settings import PoolSettings, SessionSettings, Settings
from ..plugins.memory.need import need, shape_of_gguf
from .rig import GIB, ModelledDevice, ModelledPool, Rig
from .trace import TraceError, TraceTask

#: of pools that leave it to the engine
_SLOTS, _CTX = 4, 8192
#: of a model whose size is all that is known: KV cache and buffers, per cent of its weights; and the runtime's own
_KV_PERCENT, _OVERHEAD_BYTES = 8, 450 * 2**20
#: the host's memory as a device: gigabytes a second, thousand million operations a second
_CPU_RATES: Final = (50, 500)


class RigError(ValueError):
    """A configuration that cannot be simulated: says which pool, and what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def rig_of(
    settings: Settings, gpus: Sequence[ModelledDevice], sizes: Mapping[str, int], *, host_memory_bytes: int
) -> tuple[Rig, list[str]]:
    """The rig of a configuration, and remarks on what was left out or assumed.

    Args:
        settings: the configuration.
        gpus: what it would run on.
        sizes: bytes of models by name, for those whose files are not here.
        host_memory_bytes: what CPU pools share.

    Raises:
        RigError: a model's size or a device is not known.
    """
    devices = list(gpus)
    remarks: list[str] = []
    pools: list[ModelledPool] = []
    for pool in settings.pools:
        if pool.provisioning.mode == "external":
            remarks.append(f"{pool.id} is external: its engine is not simulated")
            continue
        if pool.host != "local":
            msg = f"pool {pool.id!r} is on the host {pool.host!r}: one host is simulated"
            raise RigError(msg, "Leave it out of the configuration that is simulated.")
        mask = _mask(pool, gpus)
        pools.append(_modelled(pool, settings, mask, sizes, remarks))
    if any(CPU in pool.devices for pool in pools):
        total = settings.swap.host_memory_mib * 2**20 or host_memory_bytes
        devices.append(
            ModelledDevice(device=CPU, total_bytes=total, bandwidth_gb_s=_CPU_RATES[0], gflops=_CPU_RATES[1])
        )
    if not pools:
        msg = "no pool of the configuration can be simulated"
        raise RigError(msg, "Configure a pool whose engine is started here: provisioning.mode other than external.")
    kept = settings.swap.gpu_reserve_mib * 2**20
    return Rig(name="configured", devices=tuple(devices), pools=tuple(pools), kept_bytes=kept), remarks


def _mask(pool: PoolSettings, gpus: Sequence[ModelledDevice]) -> tuple[str, ...]:
    if pool.devices == CPU:
        return (CPU,)
    names = [gpu.device for gpu in gpus]
    if pool.devices == "auto":
        mask = names
    else:
        words = [word.strip() for word in pool.devices.split(",")]
        mask = [names[int(w)] if w.isdigit() and int(w) < len(names) else w for w in words]
    unknown = [name for name in mask if name not in names]
    if unknown or not mask:
        msg = f"pool {pool.id!r} runs on {', '.join(unknown) or 'a GPU'}; simulated are {', '.join(names) or 'none'}"
        raise RigError(msg, "Name GPUs by their index or as `auto`, and say which there are: --gpus 24,12.")
    return tuple(mask)


def _modelled(
    pool: PoolSettings, settings: Settings, mask: tuple[str, ...], sizes: Mapping[str, int], remarks: list[str]
) -> ModelledPool:
    slots, ctx = pool.slots or _SLOTS, pool.ctx or _CTX
    source = pool.model
    for _ in settings.models:  # a name may stand for another name
        source = settings.models.get(source, source)
    path = Path(source.removeprefix("file:"))
    told = sizes.get(pool.model) or sizes.get(pool.id)
    if told:
        weights, kv, overhead = told, told * _KV_PERCENT // 100, _OVERHEAD_BYTES
        remarks.append(f"{pool.model}: {told / 1e9:.2f} GB as said, {_KV_PERCENT} % of it for the KV cache as a guess")
    elif path.is_file():
        shape = shape_of_gguf(read_model(path))
        found = need(shape, ctx=ctx, slots=slots, devices=0 if mask == (CPU,) else 1)
        weights, kv = found.weights_bytes, found.kv_bytes
        overhead = found.compute_bytes + found.overhead_bytes
    else:
        msg = f"the size of {pool.model!r} (pool {pool.id!r}) is not known: {source!r} is no file here"
        raise RigError(msg, f"Say it in GB: --size {pool.model}=13.4")
    return ModelledPool(
        pool_id=pool.id,
        model=pool.model,
        weights_bytes=weights,
        kv_bytes=kv,
        overhead_bytes=overhead,
        devices=mask,
        slots=slots,
        ctx=ctx,
        pinned=pool.pinned,
        preload=pool.preload,
        keep_alive_ms=pool.keep_alive_ms,
    )


def runnable(settings: Settings, rig: Rig) -> Settings:
    """The configuration as it is simulated: the rig's pools only, and sessions that no limit ends."""
    names = {pool.pool_id for pool in rig.pools}
    pools = [
        msgspec.structs.replace(pool, devices=",".join(rig.pool(pool.id).devices))
        for pool in settings.pools
        if pool.id in names
    ]
    return msgspec.structs.replace(
        settings, pools=pools, sessions=SessionSettings(ttl_ms=86_400_000, turn_limit=1_000_000)
    )


def fitted(trace: Sequence[TraceTask], settings: Settings, *, by_size: Rig | None) -> tuple[list[TraceTask], list[str]]:
    """The trace with models that the configuration serves.

    Args:
        trace: as it was read.
        settings: the configuration.
        by_size: with a rig, models that the configuration does not know are exchanged for its own, the smallest for the
            smallest and so on.

    Raises:
        TraceError: it asks for models that nobody serves.
    """
    served = {name for pool in settings.pools for name in (pool.model, *pool.aliases)} | set(settings.models)
    asked = sorted({task.model for task in trace}, key=_size_in_name)
    unknown = [name for name in asked if name not in served]
    if not unknown:
        return list(trace), []
    if by_size is None:
        near = difflib.get_close_matches(unknown[0], sorted(served), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it serves {', '.join(sorted(served))}"
        msg = f"the trace asks for {unknown[0]!r}, which the configuration does not serve{hint}"
        raise TraceError(msg)
    own = sorted({p.model: p.need_bytes for p in by_size.pools}.items(), key=lambda item: (item[1], item[0]))
    stands_for = {name: own[n * len(own) // len(asked)][0] for n, name in enumerate(asked)}
    remarks = [f"the trace's {name} stands for {stands_for[name]}" for name in asked]
    return [msgspec.structs.replace(task, model=stands_for[task.model]) for task in trace], remarks


def _size_in_name(name: str) -> tuple[int, str]:
    found = re.search(r"(\d+)g$", name)
    return (int(found[1]) if found else 0, name)


def size_bytes(text: str) -> int:
    """Bytes of a size in GB. :raises ValueError: it is no positive number."""
    size = round(float(text) * 1e9)
    if not 0 < size <= 1024 * GIB:
        msg = f"{text!r} is no size in GB"
        raise ValueError(msg)
    return size
