"""How much memory a model takes on each device, computed before it is loaded (PLC-5).

Whole numbers and nothing else: the same shape and settings give the same bytes. The formulae, where they come from and
how near they are to what llama.cpp takes stand in ``docs/explanation/memory-model.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypedDict, Unpack

import msgspec

from ...core.ggml import row_bytes
from .model_shape import ModelShape, shape_of_gguf, shape_of_hf

__all__ = [
    "MemoryNeed",
    "ModelShape",
    "NeedOptions",
    "fit",
    "need",
    "need_vllm",
    "shape_of_gguf",
    "shape_of_hf",
]

_MIB: Final = 1_048_576
#: llama.cpp rounds a slot's context up to it
CTX_STEP: Final = 256
#: where :func:`fit` stops for a model that does not say what it was trained for
_CTX_UNTOLD: Final = 131_072
#: what is not computed but measured on x86-64 Linux, llama.cpp of 2026: see the document
_PROCESS_BYTES: Final = 33 * _MIB
_SLOT_BYTES: Final = 512 * 1024
_LAYER_BYTES: Final = 96 * 1024
_TOKEN_BYTES: Final = 190
_MERGE_BYTES: Final = 160
#: per token of the vocabulary and slot: candidates of the sampler
_CANDIDATE_BYTES: Final = 24
#: CUDA: context, modules and library workspaces on each GPU, and their share of the host's memory
_GPU_BYTES: Final = 450 * _MIB
_GPU_HOST_BYTES: Final = 350 * _MIB
#: vLLM: Python, torch and CUDA libraries of one worker, and what a worker takes of its GPU outside of its share
_VLLM_HOST_BYTES: Final = 3_500 * _MIB
#: copies of what cannot be computed backwards, windows and recurrent states, that the server keeps of each slot
_CHECKPOINTS: Final = 2
_CHECKPOINT_TOKENS: Final = 8_192
_MOST_CHECKPOINTS: Final = 32
#: copies of a layer's input that llama.cpp keeps when it runs several GPUs as a pipeline
_PIPELINE_COPIES: Final = 4


class MemoryNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted bytes, the peak under load."""

    #: on the devices; without devices, in the host's memory
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    overhead_bytes: int
    #: the host's memory in all: without devices everything, else what stays beside them
    host_bytes: int
    #: of each device, in the order that they were given
    per_device: tuple[int, ...] = ()


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine is run."""

    cells: int
    slots: int
    tokens: int
    type_k: str
    type_v: str
    flash: bool
    logit_rows: int


def need(
    shape: ModelShape,
    *,
    ctx: int,
    slots: int = 1,
    batch: int = 2_048,
    ubatch: int = 512,
    kv_type_k: str = "f16",
    kv_type_v: str = "f16",
    flash_attention: bool = True,
    gpu_layers: int = -1,
    devices: int = 0,
    tensor_split: Sequence[int] = (),
    prompt_cache_bytes: int = 0,
    permille: int = 1_000,
) -> MemoryNeed:
    """What llama.cpp takes.

    Args:
        shape: the model.
        ctx: tokens per slot.
        slots: sequences at once.
        batch: tokens that one call may bring; never more than ``ubatch`` are computed at once.
        ubatch: tokens that are computed at once.
        kv_type_k: ggml type of the cached keys.
        kv_type_v: of the cached values.
        flash_attention: attention without a matrix of all scores.
        gpu_layers: layers on the devices, the output counting as one more; -1 = all.
        devices: how many GPUs; 0 = everything on the CPU.
        tensor_split: shares of the devices; empty = equal ones.
        prompt_cache_bytes: limit of the prompts' states that the server keeps in the host's memory.
        permille: correction, thousandths of what is computed; learnt from loads that took another amount.

    Raises:
        ValueError: a number is out of its range, or a type is not known.
    """
    if min(ctx, slots, batch, ubatch, permille) < 1 or devices < 0 or prompt_cache_bytes < 0:
        msg = "ctx, slots, batch, ubatch and permille start at 1, devices and prompt_cache_bytes at 0"
        raise ValueError(msg)
    if len(tensor_split) not in (0, devices):
        msg = f"tensor_split has {len(tensor_split)} shares for {devices} devices"
        raise ValueError(msg)
    cells = -(-ctx // CTX_STEP) * CTX_STEP
    tokens = min(ubatch, batch, cells * slots)
    run = _Run(
        cells=cells,
        slots=slots,
        tokens=tokens,
        type_k=kv_type_k,
        type_v=kv_type_v,
        flash=flash_attention,
        # Builds of before 2026 reserve logits for every token of a batch, and on a GPU they are still around.
        logit_rows=tokens if devices else slots,
    )
    kv = tuple(_layer_kv(shape, layer, run) for layer in range(shape.layers))
    if devices == 0:
        found = _on_cpu(shape, run, sum(kv), prompt_cache_bytes)
    else:
        found = _on_devices(
            shape, run, kv, _placed(shape.layers, gpu_layers, devices, tensor_split), devices, prompt_cache_bytes
        )
    return _corrected(found, permille)


class NeedOptions(TypedDict, total=False):
    """What :func:`fit` passes on to :func:`need`."""

    slots: int
    batch: int
    ubatch: int
    kv_type_k: str
    kv_type_v: str
    flash_attention: bool
    gpu_layers: int
    tensor_split: Sequence[int]
    prompt_cache_bytes: int
    permille: int


def fit(
    shape: ModelShape,
    free_bytes: Sequence[int] | int,
    *,
    host_free_bytes: int | None = None,
    **options: Unpack[NeedOptions],
) -> int:
    """The largest context per slot that fits, a multiple of 256 and at most what the model was trained for; 0 = none does.

    Args:
        shape: the model.
        free_bytes: of each GPU; one plain number = of the host's memory, everything on the CPU.
        host_free_bytes: of the host's memory beside GPUs; ``None`` = not looked at.
        **options: as :func:`need` takes them.

    Raises:
        ValueError: as :func:`need`.
    """
    devices = () if isinstance(free_bytes, int) else tuple(free_bytes)
    host = free_bytes if isinstance(free_bytes, int) else host_free_bytes

    def fits(steps: int) -> bool:
        needed = need(shape, ctx=steps * CTX_STEP, devices=len(devices), **options)
        if host is not None and needed.host_bytes > host:
            return False
        return all(size <= free for size, free in zip(needed.per_device, devices, strict=True))

    # A need only grows with the context, so what fits is found by halving.
    low, high = 0, max(1, (shape.ctx_train or _CTX_UNTOLD) // CTX_STEP)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low * CTX_STEP


def need_vllm(
    shape: ModelShape,
    *,
    ctx: int,
    device_bytes: Sequence[int],
    utilization_permille: int = 900,
    kv_type: str = "f16",
    batched_tokens: int = 8_192,
) -> MemoryNeed:
    """What vLLM takes: its share of each GPU, whatever the model; what the weights leave of it becomes KV cache.

    Args:
        shape: the model.
        ctx: longest sequence (``max_model_len``): one has to fit, or vLLM does not start.
        device_bytes: total memory of each GPU of its tensor-parallel group.
        utilization_permille: ``gpu_memory_utilization`` in thousandths.
        kv_type: ggml's name of the type of the cache.
        batched_tokens: ``max_num_batched_tokens``, which the working memory is measured with.

    Raises:
        ValueError: weights and one sequence do not fit into its share; the text has the numbers.
    """
    count = len(device_bytes)
    if not count or min(ctx, batched_tokens, *device_bytes) < 1 or not 1 <= utilization_permille <= 1_000:
        msg = "vLLM needs a GPU, ctx and batched_tokens from 1, and a share between 1 and 1000 thousandths"
        raise ValueError(msg)
    shares = [total * utilization_permille // 1_000 for total in device_bytes]
    weights = -(-shape.weights_bytes // count)
    wide = max(2 * shape.feed_forward * max(1, shape.experts_used) // count, 4 * shape.embedding)
    # Activations in half precision, and logits in single precision for the sequences that are sampled at once.
    compute = 2 * batched_tokens * (wide + 4 * shape.embedding) + 4 * 256 * shape.vocab + _GPU_BYTES
    per_token = sum(
        -(-heads // count) * (row_bytes(kv_type, shape.key_length) + row_bytes(kv_type, shape.value_length))
        for heads in shape.kv_heads
    )
    # All workers hold as many blocks as the smallest share has room for.
    room = min(shares) - weights - compute
    if room < per_token * ctx:
        msg = (
            f"vLLM's share of the smallest GPU is {min(shares) // _MIB} MiB; weights take {weights // _MIB}, working memory"
            f" {compute // _MIB}, and one sequence of {ctx} tokens {per_token * ctx // _MIB}"
        )
        raise ValueError(msg)
    return MemoryNeed(
        weights_bytes=weights * count,
        kv_bytes=room * count,
        compute_bytes=(compute - _GPU_BYTES) * count,
        overhead_bytes=_GPU_BYTES * count,
        host_bytes=_VLLM_HOST_BYTES * count,
        per_device=tuple(shares),
    )


def _layer_kv(shape: ModelShape, layer: int, run: _Run) -> int:
    """Keys, values and recurrent state of all slots."""
    heads = shape.kv_heads[layer]
    state = shape.state_bytes[layer] * run.slots if shape.state_bytes else 0
    if not heads:
        return state
    row = row_bytes(run.type_k, heads * shape.key_length) + row_bytes(run.type_v, heads * shape.value_length)
    return state + row * _layer_cells(shape, layer, run) * run.slots


def _layer_cells(shape: ModelShape, layer: int, run: _Run) -> int:
    """Tokens of one slot that a layer keeps: of a windowed one, the window and the batch that is computed."""
    if not shape.windowed or not shape.windowed[layer]:
        return run.cells
    return min(run.cells, -(-(shape.window + run.tokens) // CTX_STEP) * CTX_STEP)


def _graph(shape: ModelShape, run: _Run) -> int:
    """Bytes of the intermediate results that live at the same time, in the worse of a layer's two halves."""
    wide = shape.embedding
    queries = shape.heads * shape.key_length
    keys = max(shape.kv_heads, default=0) * (shape.key_length + shape.value_length)
    used = max(1, shape.experts_used)
    forward = shape.feed_forward * used
    masks = 0
    for windowed in (False, True):
        cells = {
            _layer_cells(shape, n, run)
            for n in range(shape.layers)
            if bool(shape.windowed and shape.windowed[n]) is windowed
        }
        masks += max(cells, default=0) * (2 if run.flash else 4)
    attention = 3 * wide + 2 * queries + keys
    if not run.flash:
        attention += wide + 4 * shape.heads * run.cells // 4
    elif forward < wide:
        attention += wide
    feeding = 3 * forward + (5 if forward > wide else 3) * wide + (0 if run.flash else wide)
    if shape.experts_used and 2 * forward < used * wide:
        feeding = max(feeding, 3 * wide + 2 * used * wide)
    if shape.inner:
        feeding = max(feeding, 5 * (wide + shape.inner))
    logits = shape.vocab * run.logit_rows * 4 + 2 * wide * run.tokens * 4
    return run.tokens * masks + max(run.tokens * 4 * max(attention, feeding), logits)


def _work(shape: ModelShape, run: _Run) -> int:
    """What the CPU backend needs to bring the inputs of a multiplication into the type of the weights."""
    # The scores are brought into the type of the values, half precision.
    scores = 0 if run.flash else 2 * run.tokens * shape.heads * run.cells
    if shape.quantization == "F32":
        return scores
    widest = max(shape.embedding, shape.heads * shape.key_length, shape.feed_forward * max(1, shape.experts_used))
    return max(scores, run.tokens * widest * (16 if shape.quantization in ("F16", "BF16") else 9) // 8)


def _checkpoints(shape: ModelShape, run: _Run) -> int:
    """The host's memory for states of each slot that a later prompt may go back to: two near its end, one far between."""
    row = 0
    for layer, windowed in enumerate(shape.windowed):
        if windowed and shape.kv_heads[layer]:
            heads = shape.kv_heads[layer]
            row += row_bytes(run.type_k, heads * shape.key_length) + row_bytes(run.type_v, heads * shape.value_length)
    each = row * min(shape.window, run.cells) + sum(shape.state_bytes)
    return each * run.slots * min(_MOST_CHECKPOINTS, _CHECKPOINTS + run.cells // _CHECKPOINT_TOKENS)


def _serving(shape: ModelShape, run: _Run) -> int:
    """The host's memory for the process, its tokenizer, its slots and its graph."""
    return (
        _PROCESS_BYTES
        + _checkpoints(shape, run)
        + shape.vocab * _TOKEN_BYTES
        + shape.merges * _MERGE_BYTES
        + run.slots * (_SLOT_BYTES + shape.vocab * (_CANDIDATE_BYTES + 4))
        + shape.layers * _LAYER_BYTES
    )


def _on_cpu(shape: ModelShape, run: _Run, kv: int, prompt_cache_bytes: int) -> MemoryNeed:
    weights = shape.mapped_bytes + sum(shape.repacked_bytes) + shape.output_repacked_bytes
    compute = _graph(shape, run) + _work(shape, run)
    overhead = _serving(shape, run) + prompt_cache_bytes
    return MemoryNeed(
        weights_bytes=weights,
        kv_bytes=kv,
        compute_bytes=compute,
        overhead_bytes=overhead,
        host_bytes=weights + kv + compute + overhead,
    )


def _placed(layers: int, gpu_layers: int, devices: int, tensor_split: Sequence[int]) -> list[int]:
    """The device of each layer and of the output, which is the last; -1 = the host. As llama.cpp shares them out."""
    shares = list(tensor_split) if any(tensor_split) else [1] * devices
    total = sum(shares)
    on_devices = layers + 1 if gpu_layers < 0 else min(gpu_layers, layers + 1)
    first = layers + 1 - on_devices
    placed = [-1] * first
    for index in range(on_devices):
        reached = 0
        for device, share in enumerate(shares):
            reached += share
            if reached * on_devices > index * total:
                placed.append(device)
                break
    return placed


def _on_devices(
    shape: ModelShape, run: _Run, kv: Sequence[int], placed: Sequence[int], devices: int, prompt_cache_bytes: int
) -> MemoryNeed:
    graph = _graph(shape, run)
    if len(set(placed)) > 1 and -1 not in placed:
        graph += (_PIPELINE_COPIES - 1) * run.tokens * shape.embedding * 4
    sizes = (*shape.layer_bytes, shape.output_bytes)
    repacked = (*shape.repacked_bytes, shape.output_repacked_bytes)
    weights = [0] * devices
    cache = [0] * devices
    # The input's embedding never leaves the host; a tied output is a copy of it on the device.
    host = shape.embedding_bytes
    used = set()
    for index, device in enumerate(placed):
        layer_kv = kv[index] if index < shape.layers else 0
        if device < 0:
            host += sizes[index] + repacked[index] + layer_kv
        else:
            used.add(device)
            weights[device] += sizes[index]
            cache[device] += layer_kv
    compute = graph + _work(shape, run)
    inputs = run.tokens * (shape.embedding * 4 + run.cells * 2)
    host += _serving(shape, run) + _GPU_HOST_BYTES * max(1, len(used)) + inputs + prompt_cache_bytes
    host += compute if -1 in placed else 0
    return MemoryNeed(
        weights_bytes=sum(weights),
        kv_bytes=sum(cache),
        compute_bytes=compute * len(used),
        overhead_bytes=_GPU_BYTES * len(used),
        host_bytes=host,
        per_device=tuple(
            weights[device] + cache[device] + compute + _GPU_BYTES if device in used else 0 for device in range(devices)
        ),
    )


def _corrected(found: MemoryNeed, permille: int) -> MemoryNeed:
    if permille == 1_000:
        return found

    def scaled(size: int) -> int:
        return -(-size * permille // 1_000)

    return MemoryNeed(
        weights_bytes=scaled(found.weights_bytes),
        kv_bytes=scaled(found.kv_bytes),
        compute_bytes=scaled(found.compute_bytes),
        overhead_bytes=scaled(found.overhead_bytes),
        host_bytes=scaled(found.host_bytes),
        per_device=tuple(scaled(size) for size in found.per_device),
    )
