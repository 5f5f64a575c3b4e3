"""What a pool's engine will take, from the head of its model and the settings that it is started with (PLC-5)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ..core.devices import CPU
from ..core.events.pool import PoolSized
from ..core.gguf import GgufError, read_model
from ..core.scheduling.tensor_split import tensor_shares
from ..plugins.memory.model_shape import ModelShape
from ..plugins.memory.need import MemoryNeed, NeedOptions, need, shape_of_gguf
from .preparing import Order

#: as llama.cpp's launcher takes them where the settings say nothing
_SLOTS: Final = 4
_CTX_TOTAL: Final = 32_768
_CTX_UNTOLD: Final = 4_096
_VECTOR_BATCH: Final = 8_192


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """What was predicted."""

    event: PoolSized
    #: of the order's devices, and of the host's memory
    predicted_bytes: Mapping[str, int]


def shape_of(path: Path) -> ModelShape | None:
    """The shape of a model whose file is GGUF; ``None`` where it is something else."""
    if path.is_dir() or path.suffix.lower() != ".gguf":
        return None
    try:
        return shape_of_gguf(read_model(path))
    except (GgufError, ValueError, OSError):
        return None  # its engine says better what is wrong with it


def size_of(order: Order, shape: ModelShape, *, digest: str = "", gpu_bytes: Mapping[str, int] | None = None) -> Size:
    """Predict.

    Args:
        order: what is started.
        shape: of its model.
        digest: of its model.
        gpu_bytes: total memory of the GPUs, by UUID; several GPUs share a model in proportion to it.

    Raises:
        ValueError: the settings hold a number or a type that is not known.
    """
    settings = order.settings
    slots = settings.slots or _SLOTS
    ctx = settings.ctx or min(shape.ctx_train or _CTX_UNTOLD, max(_CTX_TOTAL, shape.ctx_train) // slots)
    options = _options(settings.provisioning.options)
    options["slots"] = slots
    given = settings.provisioning.options
    if (given.get("embedding") or given.get("reranking")) and "ubatch" not in given:
        # What is embedded or ranked is read at once, so that the engine is started with batches of that size.
        options["ubatch"] = min(ctx, _VECTOR_BATCH)
        options.setdefault("batch", options["ubatch"])
    gpus = [device for device in order.devices if device != CPU]
    needed = need(shape, ctx=ctx, devices=0 if settings.devices == CPU else 1, **options)
    event = PoolSized(
        pool_id=settings.id,
        weights_bytes=needed.weights_bytes,
        kv_bytes=needed.kv_bytes,
        compute_bytes=needed.compute_bytes,
        overhead_bytes=needed.overhead_bytes,
        host_bytes=needed.host_bytes if settings.devices != CPU else 0,
        ctx=ctx,
        slots=slots,
        architecture=shape.architecture,
        quantization=shape.quantization,
        parameters=shape.parameters,
        layers=len(shape.layer_bytes),
        ctx_train=shape.ctx_train,
        file_bytes=shape.file_bytes,
        model_digest=digest,
    )
    if len(gpus) > 1:
        totals = gpu_bytes or {}
        with contextlib.suppress(ValueError):  # the launcher refuses such a split, and says why
            options["tensor_split"] = tensor_shares([totals.get(gpu, 0) for gpu in gpus], settings.tensor_split)
        needed = need(shape, ctx=ctx, devices=len(gpus), **options)
    return Size(event=event, predicted_bytes=_per_device(needed, gpus))


def _per_device(needed: MemoryNeed, gpus: list[str]) -> dict[str, int]:
    if not gpus:
        return {CPU: needed.host_bytes}
    return {**dict(zip(gpus, needed.per_device, strict=True)), CPU: needed.host_bytes}


def _options(given: Mapping[str, Any]) -> NeedOptions:
    """Keys of ``provisioning.options`` that say something about memory."""
    found: NeedOptions = {}
    if "batch" in given:
        found["batch"] = int(given["batch"])
    if "ubatch" in given:
        found["ubatch"] = int(given["ubatch"])
    if "kv_type_k" in given:
        found["kv_type_k"] = str(given["kv_type_k"])
    if "kv_type_v" in given:
        found["kv_type_v"] = str(given["kv_type_v"])
    if "gpu_layers" in given:
        found["gpu_layers"] = int(given["gpu_layers"])
    if "cache_ram_mib" in given:
        found["prompt_cache_bytes"] = max(0, int(given["cache_ram_mib"])) << 20
    if given.get("flash_attention") == "off":
        found["flash_attention"] = False
    return found
