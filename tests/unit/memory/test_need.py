"""The memory model by itself: what it says of known models, and what holds for every model."""

from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llama_orch.plugins.memory.need import ModelShape, fit, need, need_vllm

MIB = 2**20
GIB = 2**30

#: Llama 3.1 8B in Q4_K_M, as its file's head says
LLAMA_8B = ModelShape(
    architecture="llama",
    embedding=4096,
    heads=32,
    kv_heads=(8,) * 32,
    key_length=128,
    value_length=128,
    feed_forward=14_336,
    vocab=128_256,
    merges=280_147,
    ctx_train=131_072,
    layer_bytes=(130 * MIB,) * 32,
    embedding_bytes=282 * MIB,
    output_bytes=411 * MIB,
    repacked_bytes=(100 * MIB,) * 32,
    mapped_bytes=4_853 * MIB,
    quantization="Q4_K_M",
)

shapes = st.builds(
    lambda layers, kv, groups, head, **rest: ModelShape(
        architecture="llama",
        heads=kv * groups,
        kv_heads=(kv,) * layers,
        key_length=head,
        value_length=head,
        layer_bytes=(rest.pop("each"),) * layers,
        repacked_bytes=(0,) * layers,
        **rest,
    ),
    layers=st.integers(1, 40),
    kv=st.integers(1, 16),
    groups=st.integers(1, 8),
    head=st.sampled_from([32, 64, 128, 256]),
    each=st.integers(1, 500 * MIB),
    embedding=st.integers(1, 128).map(lambda n: 64 * n),
    feed_forward=st.integers(1, 30_000),
    vocab=st.integers(1, 300_000),
    ctx_train=st.sampled_from([0, 2_048, 32_768, 1_000_000]),
    embedding_bytes=st.integers(0, GIB),
    output_bytes=st.integers(0, GIB),
    mapped_bytes=st.integers(0, 50 * GIB),
    quantization=st.sampled_from(["F32", "F16", "Q4_0"]),
)
runs = st.fixed_dictionaries(
    {
        "slots": st.integers(1, 16),
        "ubatch": st.sampled_from([64, 512, 2_048]),
        "kv_type_k": st.sampled_from(["f16", "q8_0", "q4_0"]),
        "kv_type_v": st.sampled_from(["f16", "q8_0", "q4_0"]),
        "flash_attention": st.booleans(),
    }
)


def test_the_kv_cache_of_a_known_model_has_its_known_size():
    # llama.cpp says "KV buffer size = 1024.00 MiB" for 8,192 tokens of this model in half precision.
    assert need(LLAMA_8B, ctx=8_192).kv_bytes == GIB
    assert need(LLAMA_8B, ctx=2_048, slots=4).kv_bytes == GIB
    assert need(LLAMA_8B, ctx=8_192, kv_type_k="q8_0", kv_type_v="q8_0").kv_bytes == GIB * 34 // 64
    assert need(LLAMA_8B, ctx=8_192, kv_type_k="q8_0", kv_type_v="q4_0").kv_bytes == GIB * (34 + 18) // 128
    assert need(LLAMA_8B, ctx=8_192, devices=1).kv_bytes == GIB


def test_a_context_is_rounded_up_as_llama_cpp_does():
    assert need(LLAMA_8B, ctx=257) == need(LLAMA_8B, ctx=512)


def test_windowed_layers_keep_their_window_and_a_batch():
    windowed = msgspec.structs.replace(LLAMA_8B, window=1_024, windowed=(True, True, True, False) * 8)
    row = 2 * 2 * 8 * 128
    assert need(windowed, ctx=32_768).kv_bytes == row * (8 * 32_768 + 24 * (1_024 + 512))
    assert need(windowed, ctx=512).kv_bytes == need(LLAMA_8B, ctx=512).kv_bytes
    grown = need(windowed, ctx=32_768).overhead_bytes - need(LLAMA_8B, ctx=32_768).overhead_bytes
    assert grown == 24 * 1_024 * row * (2 + 4), "states that the server may go back to"


def test_recurrent_layers_keep_a_state_per_slot_whatever_the_context():
    hybrid = msgspec.structs.replace(
        LLAMA_8B, kv_heads=(0, 0, 0, 8) * 8, state_bytes=(MIB, MIB, MIB, 0) * 8, layer_bytes=LLAMA_8B.layer_bytes
    )
    assert need(hybrid, ctx=8_192, slots=2).kv_bytes == 2 * (GIB // 4 + 24 * MIB)


def test_on_the_cpu_everything_counts_into_the_hosts_memory():
    found = need(LLAMA_8B, ctx=4_096, prompt_cache_bytes=GIB)
    assert found.per_device == ()
    assert found.weights_bytes == LLAMA_8B.mapped_bytes + 32 * 100 * MIB, "the copies beside the file's pages"
    parts = found.weights_bytes + found.kv_bytes + found.compute_bytes + found.overhead_bytes
    assert found.host_bytes == parts
    assert found.overhead_bytes == need(LLAMA_8B, ctx=4_096).overhead_bytes + GIB


def test_layers_are_shared_out_by_the_tensor_split_and_the_output_is_the_last():
    even = need(LLAMA_8B, ctx=4_096, devices=2)
    uneven = need(LLAMA_8B, ctx=4_096, devices=2, tensor_split=(2, 1))
    # 33 places: 17 and 16, and 22 and 11.
    layer = 130 * MIB + 16 * MIB
    assert even.per_device[0] - even.per_device[1] == 17 * layer - 15 * layer - 411 * MIB
    assert uneven.per_device[0] - uneven.per_device[1] == 22 * layer - 10 * layer - 411 * MIB
    assert even.weights_bytes == uneven.weights_bytes == LLAMA_8B.weights_bytes - 282 * MIB
    assert need(LLAMA_8B, ctx=4_096, devices=2, tensor_split=(1, 0)).per_device[1] == 0


def test_layers_that_stay_on_the_host_count_there():
    whole = need(LLAMA_8B, ctx=4_096, devices=1)
    part = need(LLAMA_8B, ctx=4_096, devices=1, gpu_layers=10)
    none = need(LLAMA_8B, ctx=4_096, devices=1, gpu_layers=0)
    assert part.weights_bytes == 9 * 130 * MIB + 411 * MIB, "the last nine layers and the output"
    assert part.host_bytes > whole.host_bytes + 23 * (130 + 16) * MIB
    assert none.per_device == (0,)
    assert need(LLAMA_8B, ctx=4_096, devices=1, gpu_layers=999) == whole


def test_a_tied_output_is_a_copy_on_the_gpu_and_none_on_the_cpu():
    tied = msgspec.structs.replace(LLAMA_8B, tied_output=True, output_bytes=282 * MIB)
    assert tied.weights_bytes == 32 * 130 * MIB + 282 * MIB
    assert need(tied, ctx=512, devices=1).weights_bytes == 32 * 130 * MIB + 282 * MIB
    assert need(tied, ctx=512).weights_bytes == need(LLAMA_8B, ctx=512).weights_bytes


def test_what_cannot_be_is_refused():
    refused: list[dict[str, Any]] = [
        {"ctx": 0},
        {"ctx": 1, "slots": 0},
        {"ctx": 1, "permille": 0},
        {"ctx": 1, "devices": -1},
        {"ctx": 1, "devices": 2, "tensor_split": (1,)},
        {"ctx": 1, "kv_type_k": "f17"},
    ]
    for wrong in refused:
        with pytest.raises(ValueError, match=r"at 1|shares|f17"):
            need(LLAMA_8B, **wrong)


@given(shapes, runs, st.integers(1, 100_000), st.integers(0, 3), st.integers(1, 50_000), st.integers(0, 4))
def test_more_context_or_more_slots_never_need_less(shape, run, ctx, devices, more_ctx, more_slots):
    less = need(shape, ctx=ctx, devices=devices, **run)
    more = need(shape, ctx=ctx + more_ctx, devices=devices, **{**run, "slots": run["slots"] + more_slots})
    assert more.host_bytes >= less.host_bytes
    assert all(a >= b for a, b in zip(more.per_device, less.per_device, strict=True))


@given(shapes, runs, st.integers(1, 100_000), st.integers(1, 4), st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_the_devices_together_hold_what_is_told_in_parts(shape, run, ctx, devices, split):
    split = split[:devices]
    assume(any(split))
    found = need(shape, ctx=ctx, devices=devices, tensor_split=split, **run)
    parts = found.weights_bytes + found.kv_bytes + found.compute_bytes + found.overhead_bytes
    assert sum(found.per_device) == parts
    assert found.weights_bytes == sum(shape.layer_bytes) + shape.output_bytes
    assert all(size == 0 for size, share in zip(found.per_device, split, strict=True) if share == 0)


@given(shapes, runs, st.integers(0, 80 * GIB), st.lists(st.integers(0, 80 * GIB), max_size=3))
def test_what_fits_is_the_largest_context_that_does(shape, run, host, gpus):
    free = gpus or host
    ctx = fit(shape, free, host_free_bytes=host, **run)
    most = (shape.ctx_train or 131_072) // 256 * 256

    def fits(size):
        found = need(shape, ctx=size, devices=len(gpus), **run)
        return found.host_bytes <= host and all(a <= b for a, b in zip(found.per_device, gpus, strict=True))

    assert ctx % 256 == 0
    assert ctx <= max(256, most)
    assert ctx == 0 or fits(ctx)
    assert ctx == most or not fits(ctx + 256)


@given(shapes, st.integers(1, 100_000), st.integers(0, 2), st.integers(1, 5_000))
def test_a_correction_scales_everything(shape, ctx, devices, permille):
    plain = need(shape, ctx=ctx, devices=devices)
    scaled = need(shape, ctx=ctx, devices=devices, permille=permille)
    for before, after in zip(
        (*plain.per_device, plain.host_bytes, plain.kv_bytes), (*scaled.per_device, scaled.host_bytes, scaled.kv_bytes),
        strict=True,
    ):  # fmt: skip
        assert after == -(-before * permille // 1_000)


def test_vllm_takes_its_share_and_fills_it_with_cache():
    half = msgspec.structs.replace(LLAMA_8B, layer_bytes=(436 * MIB,) * 32, embedding_bytes=GIB, output_bytes=GIB)
    one = need_vllm(half, ctx=8_192, device_bytes=[24 * GIB])
    assert one.per_device == (24 * GIB * 9 // 10,)
    assert one.weights_bytes + one.kv_bytes + one.compute_bytes + one.overhead_bytes == one.per_device[0]
    assert one.kv_bytes >= GIB, "one sequence of 8,192 tokens"
    two = need_vllm(half, ctx=8_192, device_bytes=[24 * GIB, 12 * GIB])
    assert two.per_device == (24 * GIB * 9 // 10, 12 * GIB * 9 // 10)
    assert two.kv_bytes < one.kv_bytes * 2


def test_vllm_that_would_not_start_is_told_with_the_numbers():
    with pytest.raises(ValueError, match=r"share of the smallest GPU is 11059 MiB; weights take \d+"):
        need_vllm(msgspec.structs.replace(LLAMA_8B, layer_bytes=(436 * MIB,) * 32), ctx=8_192, device_bytes=[12 * GIB])
    refused: list[dict[str, Any]]
    refused = [{"device_bytes": []}, {"utilization_permille": 0}, {"utilization_permille": 1_001}, {"ctx": 0}]
    for wrong in refused:
        with pytest.raises(ValueError, match="vLLM needs"):
            need_vllm(LLAMA_8B, **{"ctx": 1, "device_bytes": [GIB], **wrong})
