from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from llama_orch.haiku.export import Run, interleaved, write

SHAPE = {
    "vocab": 6,
    "dim": 64,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "hidden": 96,
    "context": 32,
    "norm_epsilon": 1e-5,
    "rope_base": 10_000.0,
}
TOKENIZER = {
    "model": {
        "vocab": {"<s>": 0, "</s>": 1, "<|im_start|>": 2, "<|im_end|>": 3, "a": 4, "b": 5},
        "merges": [["a", "b"]],
    },
    "added_tokens": [{"content": token} for token in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")],
}


@pytest.fixture
def run() -> Run:
    rng = np.random.default_rng(1)
    sizes = {
        "token_embd.weight": (6, 64),
        "blk.0.attn_q.weight": (64, 64),
        "blk.0.attn_k.weight": (32, 64),
        "blk.0.ffn_down.weight": (64, 96),
        "output_norm.weight": (64,),
    }
    weights = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    return Run(SHAPE, weights, TOKENIZER)


def angles(width: int, position: int) -> np.ndarray:
    return position / 10_000.0 ** (np.arange(0, width, 2) / width)


def rotated_halves(x: np.ndarray, position: int) -> np.ndarray:
    """RoPE as the training applies it: the first half of a head is turned with the second."""
    first, second = np.split(x, 2)
    turn = angles(len(x), position)
    return np.concatenate((first * np.cos(turn) - second * np.sin(turn), second * np.cos(turn) + first * np.sin(turn)))


def rotated_pairs(x: np.ndarray, position: int) -> np.ndarray:
    """RoPE as ggml applies it to llama: neighbours are turned together."""
    even, odd = x[0::2], x[1::2]
    turn = angles(len(x), position)
    turned = np.empty_like(x)
    turned[0::2] = even * np.cos(turn) - odd * np.sin(turn)
    turned[1::2] = odd * np.cos(turn) + even * np.sin(turn)
    return turned


def test_reordered_queries_and_keys_score_under_ggmls_rotation_as_they_did_in_training() -> None:
    rng = np.random.default_rng(2)
    query, key, x, y = rng.standard_normal((64, 8)), rng.standard_normal((64, 8)), *rng.standard_normal((2, 8))
    ggml_query, ggml_key = interleaved(query, 2), interleaved(key, 2)
    for head in (slice(0, 32), slice(32, 64)):
        trained = rotated_halves((query @ x)[head], 9) @ rotated_halves((key @ y)[head], 4)
        exported = rotated_pairs((ggml_query @ x)[head], 9) @ rotated_pairs((ggml_key @ y)[head], 4)
        assert exported == pytest.approx(trained)


@pytest.mark.parametrize(
    "file_type, kind, tolerance", [("q8_0", "Q8_0", 0.03), ("f16", "F16", 2e-3), ("f32", "F32", 0)]
)
def test_matrices_are_written_in_the_type_asked_for_and_scales_as_they_are(
    run: Run, tmp_path: Path, file_type: str, kind: str, tolerance: float
) -> None:
    from gguf import quants

    write(run, tmp_path / "tiny.gguf", file_type)
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert set(tensors) == set(run.weights)
    assert tensors["token_embd.weight"].tensor_type.name == kind
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    down = tensors["blk.0.ffn_down.weight"]
    read = quants.dequantize(down.data, down.tensor_type)
    assert np.abs(read - run.weights["blk.0.ffn_down.weight"]).max() <= tolerance


def test_queries_and_keys_are_reordered_by_their_own_number_of_heads(run: Run, tmp_path: Path) -> None:
    write(run, tmp_path / "tiny.gguf", "f32")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert np.array_equal(tensors["blk.0.attn_q.weight"], interleaved(run.weights["blk.0.attn_q.weight"], 2))
    assert np.array_equal(tensors["blk.0.attn_k.weight"], interleaved(run.weights["blk.0.attn_k.weight"], 1))


def test_the_same_run_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        write(run, tmp_path / name)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_special_tokens_are_control_tokens_and_the_rest_is_text(run: Run, tmp_path: Path) -> None:
    write(run, tmp_path / "tiny.gguf")
    field = GGUFReader(tmp_path / "tiny.gguf").get_field("tokenizer.ggml.token_type")
    assert field is not None
    assert field.contents() == [3, 3, 3, 3, 1, 1]
