"""What the heads of models and Hugging Face's config.json say about a model's size."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.gguf import GgufError, parse_head, read_model
from llama_orch.plugins.memory.need import need, shape_of_gguf, shape_of_hf

from ...engines.gguf_bytes import array, entry, file_of, scalar, string
from ...engines.shaped_gguf import ModelPlan, write_shaped


def head_of(entries, architecture="llama"):
    entries = [entry("general.architecture", string(architecture)), *entries]
    raw = file_of(entries, [])
    return parse_head(io.BytesIO(raw), file_bytes=len(raw), name="m")


def numbers(architecture="llama", /, **values):
    return [entry(f"{architecture}.{key.replace('__', '.')}", scalar("I", value)) for key, value in values.items()]


PLAIN: dict[str, int] = {
    "block_count": 4,
    "embedding_length": 64,
    "attention__head_count": 4,
    "feed_forward_length": 128,
}


def test_a_models_file_says_its_shape(tmp_path):
    plan = ModelPlan(embedding=128, layers=3, heads=4, kv_heads=2, feed_forward=256, vocab=500, quantization="Q8_0")
    path = write_shaped(tmp_path / "m.gguf", plan)
    shape = shape_of_gguf(read_model(path))
    assert (shape.architecture, shape.layers, shape.embedding, shape.heads) == ("llama", 3, 128, 4)
    assert (shape.kv_heads, shape.key_length, shape.value_length) == ((2, 2, 2), 32, 32)
    assert (shape.feed_forward, shape.vocab, shape.ctx_train) == (256, 500, 32_768)
    assert (shape.quantization, shape.tied_output, shape.file_bytes) == ("Q8_0", False, path.stat().st_size)
    matrices = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256
    assert shape.layer_bytes == (matrices * 34 // 32 + 2 * 128 * 4,) * 3
    assert shape.embedding_bytes == 500 * 128 * 34 // 32
    assert shape.output_bytes == 500 * 128 * 34 // 32 + 128 * 4
    assert shape.weights_bytes == sum(shape.layer_bytes) + shape.embedding_bytes + shape.output_bytes
    assert shape.repacked_bytes == (0, 0, 0)
    assert shape.parameters == 3 * (matrices + 256) + 2 * 500 * 128 + 128


def test_what_the_cpu_copies_is_told_apart(tmp_path):
    plan = ModelPlan(embedding=128, layers=2, heads=4, kv_heads=2, feed_forward=256, vocab=500, quantization="Q4_0")
    shape = shape_of_gguf(read_model(write_shaped(tmp_path / "m.gguf", plan)))
    matrices = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256
    assert shape.repacked_bytes == (matrices * 18 // 32,) * 2
    # 500 rows do not divide by 8: this output is used where it lies.
    assert shape.output_repacked_bytes == 0
    assert shape.mapped_bytes <= shape.file_bytes


def test_an_output_that_is_the_embedding_is_counted_once(tmp_path):
    plan = ModelPlan(embedding=128, layers=1, vocab=512, tied=True)
    shape = shape_of_gguf(read_model(write_shaped(tmp_path / "m.gguf", plan)))
    assert shape.tied_output
    assert shape.weights_bytes == sum(shape.layer_bytes) + 512 * 128 * 2 + 128 * 4
    assert shape.output_bytes == 512 * 128 * 2 + 128 * 4, "what a GPU gets of it"


@pytest.mark.parametrize(
    "architecture, entries, window, windowed",
    [
        ("gemma3", {"attention__sliding_window": 512}, 512, (True, True, True, True)),
        ("gemma2", {"attention__sliding_window": 512}, 512, (True, False, True, False)),
        ("gemma2", {"attention__sliding_window": 8, "attention__sliding_window_pattern": 4}, 8, (True,) * 3 + (False,)),
        ("llama", {"attention__sliding_window": 512}, 0, ()),
        ("gemma2", {}, 0, ()),
    ],
)
def test_windows_are_those_that_the_architecture_has(architecture, entries, window, windowed):
    shape = shape_of_gguf(head_of(numbers(architecture, **PLAIN, **entries), architecture=architecture))
    assert (shape.window, shape.windowed) == (window, windowed)


def test_what_a_file_tells_per_layer_is_taken_per_layer():
    entries = [
        *numbers(block_count=3, embedding_length=64, attention__sliding_window=16),
        entry("llama.attention.head_count", array("I", [4, 8, 4])),
        entry("llama.attention.head_count_kv", array("I", [2, 0, 4])),
        entry("llama.feed_forward_length", array("I", [10, 30, 20])),
        entry("llama.attention.sliding_window_pattern", array("?", [True, False, True])),
    ]
    shape = shape_of_gguf(head_of(entries))
    assert (shape.heads, shape.kv_heads, shape.feed_forward) == (8, (2, 0, 4), 30)
    assert shape.windowed == (True, False, True)


def test_layers_that_share_a_cache_or_have_a_state_keep_no_keys():
    shared = shape_of_gguf(head_of(numbers(**PLAIN, attention__shared_kv_layers=3)))
    assert shared.kv_heads == (4, 0, 0, 0)
    state = {"ssm__inner_size": 128, "ssm__state_size": 16, "ssm__conv_kernel": 4, "ssm__group_count": 2}
    hybrid = shape_of_gguf(head_of(numbers("qwen3next", **PLAIN, **state), architecture="qwen3next"))
    assert hybrid.kv_heads == (0, 0, 0, 4)
    assert hybrid.state_bytes == (4 * (3 * (128 + 2 * 2 * 16) + 16 * 128),) * 3 + (0,)
    mamba = shape_of_gguf(head_of(numbers("mamba", **PLAIN, **state), architecture="mamba"))
    assert mamba.kv_heads == (0, 0, 0, 0)


def test_compressed_keys_hold_the_values_too():
    told = {"attention__key_length": 576, "attention__value_length": 512, "attention__head_count_kv": 1}
    latent = {"attention__kv_lora_rank": 512, "attention__key_length_mla": 192}
    shape = shape_of_gguf(head_of(numbers("deepseek2", **PLAIN, **told, **latent), architecture="deepseek2"))
    assert need(shape, ctx=1_024).kv_bytes == 4 * 1_024 * 576 * 2


@pytest.mark.parametrize(
    "entries",
    [
        [],
        numbers(block_count=4),
        numbers(embedding_length=4),
        numbers(block_count=5_000, embedding_length=64),
        numbers(**{**PLAIN, "embedding_length": 2**31}),
        [*numbers(block_count=3, embedding_length=64), entry("llama.attention.head_count_kv", array("I", [1, 2]))],
        [*numbers(block_count=1, embedding_length=64), entry("llama.attention.head_count_kv", array("i", [-1]))],
        [*numbers(block_count=1, embedding_length=64), entry("llama.attention.head_count_kv", array("f", [1.5]))],
    ],
)
def test_numbers_that_cannot_be_are_refused(entries):
    with pytest.raises(GgufError):
        shape_of_gguf(head_of(entries))


@given(
    st.dictionaries(
        st.sampled_from([
            "block_count", "embedding_length", "attention__head_count", "attention__head_count_kv", "feed_forward_length",
            "attention__key_length", "attention__sliding_window", "attention__shared_kv_layers", "ssm__inner_size",
            "ssm__state_size", "expert_used_count", "expert_feed_forward_length", "attention__kv_lora_rank",
        ]),
        st.integers(0, 2**32 - 1) | st.integers(0, 100),
    ),
    st.sampled_from(["llama", "gemma3", "mamba", "qwen3next", "deepseek2", ""]),
)  # fmt: skip
def test_any_numbers_give_a_shape_or_are_refused(values, architecture):
    try:
        shape = shape_of_gguf(head_of(numbers(architecture, **values), architecture=architecture))
    except GgufError:
        return
    assert need(shape, ctx=4_096, slots=2).host_bytes > 0
    assert len(need(shape, ctx=4_096, devices=2).per_device) == 2


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "torch_dtype": "bfloat16",
}


def test_a_config_json_says_the_shape_and_the_parameters_of_a_known_model():
    shape = shape_of_hf(LLAMA)
    assert shape.parameters == pytest.approx(8_030_261_248, rel=0.001)
    assert shape.weights_bytes == pytest.approx(2 * 8_030_261_248, rel=0.001)
    assert (shape.layers, shape.kv_heads[0], shape.key_length, shape.ctx_train) == (32, 8, 128, 131_072)
    assert need(shape, ctx=8_192).kv_bytes == 2**30
    assert shape_of_hf(LLAMA, file_bytes=5_000_000_000).weights_bytes == pytest.approx(5_000_000_000, rel=0.001)


def test_a_config_json_of_experts_windows_and_quantization():
    shape = shape_of_hf(
        {
            "text_config": {
                **LLAMA, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 1_024,
                "layer_types": ["sliding_attention", "full_attention"] * 16, "tie_word_embeddings": True,
            },
            "quantization_config": {"quant_method": "awq", "bits": 4},
        }
    )  # fmt: skip
    assert (shape.experts_used, shape.window, shape.windowed[:2]) == (2, 1_024, (True, False))
    assert shape.quantization == "awq-4"
    assert shape.weights_bytes == pytest.approx(shape.parameters // 2, rel=0.001)
    assert shape.tied_output


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": None},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 10**9},
        {"hidden_size": "big"},
        {"num_attention_heads": True},
        {"vocab_size": -1},
        {"intermediate_size": 1.5},
    ],
)
def test_a_config_json_that_cannot_be_is_refused_by_the_key(change):
    with pytest.raises(ValueError, match=f"config.json: {next(iter(change))} is"):
        shape_of_hf({**LLAMA, **change})
