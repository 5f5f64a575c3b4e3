"""Writes loadable GGUF files of any size, shape and quantization in a moment: for what a model takes, not what it says.

A few random rows are quantized once and repeated; every weight is finite, so real llama.cpp computes with them as with
any other. K-quants, which the ``gguf`` package cannot make, are all zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

UNKNOWN, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3
#: the first token that stands for a word; prompts of plain words are drawn from here on
FIRST_WORD = FIRST_BYTE + 256
_ROWS = 64
#: of recurrent layers
_TAPS, _STATE, _TIME_STEPS = 4, 16, 48


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """What the file shall hold; names as in GGUF's metadata."""

    architecture: str = "llama"
    embedding: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512
    vocab: int = 2_000
    ctx_train: int = 32_768
    quantization: str = "F16"
    #: of one head; 0 = embedding / heads
    head_length: int = 0
    tied: bool = False
    experts: int = 0
    experts_used: int = 0
    window: int = 0
    #: pairs for a tokenizer of the byte-pair kind; 0 = SentencePiece
    merges: int = 0


def write_shaped(path: Path, plan: ModelPlan) -> Path:
    """Write a model; the same plan gives the same bytes."""
    writer = gguf.GGUFWriter(path, plan.architecture)
    _write_metadata(writer, plan)
    _write_tokenizer(writer, plan)
    _Tensors(writer, plan).write()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_metadata(writer: gguf.GGUFWriter, plan: ModelPlan) -> None:
    writer.add_context_length(plan.ctx_train)
    writer.add_embedding_length(plan.embedding)
    writer.add_block_count(plan.layers)
    writer.add_feed_forward_length(plan.feed_forward)
    writer.add_head_count(plan.heads)
    writer.add_head_count_kv(plan.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(plan.vocab)
    if plan.architecture == "mamba":
        writer.add_ssm_conv_kernel(_TAPS)
        writer.add_ssm_inner_size(2 * plan.embedding)
        writer.add_ssm_state_size(_STATE)
        writer.add_ssm_time_step_rank(_TIME_STEPS)
    else:
        writer.add_rope_dimension_count(plan.head_length or plan.embedding // plan.heads)
    if plan.head_length:
        writer.add_key_length(plan.head_length)
        writer.add_value_length(plan.head_length)
    if plan.window:
        writer.add_sliding_window(plan.window)
    if plan.experts:
        writer.add_expert_count(plan.experts)
        writer.add_expert_used_count(plan.experts_used)
        writer.add_expert_feed_forward_length(plan.feed_forward)
    kind = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_S"}.get(plan.quantization, f"MOSTLY_{plan.quantization}")
    writer.add_file_type(gguf.LlamaFileType[kind])


def _write_tokenizer(writer: gguf.GGUFWriter, plan: ModelPlan) -> None:
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    if plan.merges:
        # Byte-pair tokens are written with a letter for each byte; these are the ones that GPT-2 uses.
        letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
        tokens = ["<unk>", "<s>", "</s>", *letters]
        pairs = [f"{a} {b}" for a in letters for b in letters] + [
            f"{a}{b} {c}" for a in letters for b in letters for c in "abc"
        ]
        tokens += [pair.replace(" ", "") for pair in pairs[: plan.vocab - len(tokens)]]
        kinds += [gguf.TokenType.NORMAL] * (plan.vocab - len(kinds))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_merges(pairs[: plan.merges])
    else:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
        kinds += [gguf.TokenType.BYTE] * 256
        tokens += [f"\u2581w{n}" for n in range(plan.vocab - len(tokens))]
        kinds += [gguf.TokenType.NORMAL] * (plan.vocab - len(kinds))
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([-float(n) for n in range(plan.vocab)])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_add_bos_token(True)


class _Tensors:
    """Adds the tensors of an architecture."""

    def __init__(self, writer: gguf.GGUFWriter, plan: ModelPlan) -> None:
        self._writer = writer
        self._plan = plan
        self._rng = np.random.default_rng(7)

    def write(self) -> None:
        """Add all of them."""
        plan = self._plan
        self._matrix("token_embd.weight", plan.vocab, plan.embedding, scale=1.0)
        for layer in range(plan.layers):
            if plan.architecture == "mamba":
                self._recurrent_layer(f"blk.{layer}.")
            else:
                self._layer(f"blk.{layer}.")
        self._ones("output_norm.weight", plan.embedding)
        if not plan.tied:
            self._matrix("output.weight", plan.vocab, plan.embedding)

    def _layer(self, block: str) -> None:
        plan = self._plan
        width, wide = plan.embedding, plan.feed_forward
        head = plan.head_length or width // plan.heads
        self._ones(block + "attn_norm.weight", width)
        self._matrix(block + "attn_q.weight", plan.heads * head, width)
        self._matrix(block + "attn_k.weight", plan.kv_heads * head, width)
        self._matrix(block + "attn_v.weight", plan.kv_heads * head, width)
        self._matrix(block + "attn_output.weight", width, plan.heads * head)
        self._ones(block + "ffn_norm.weight", width)
        if plan.architecture in ("gemma3", "qwen3", "qwen3moe"):
            self._ones(block + "attn_q_norm.weight", head)
            self._ones(block + "attn_k_norm.weight", head)
        if plan.architecture == "gemma3":
            self._ones(block + "post_attention_norm.weight", width)
            self._ones(block + "post_ffw_norm.weight", width)
        if plan.experts:
            self._matrix(block + "ffn_gate_inp.weight", plan.experts, width, quantization="F32")
            self._matrix(block + "ffn_gate_exps.weight", plan.experts, wide, width)
            self._matrix(block + "ffn_up_exps.weight", plan.experts, wide, width)
            self._matrix(block + "ffn_down_exps.weight", plan.experts, width, wide)
        else:
            self._matrix(block + "ffn_gate.weight", wide, width)
            self._matrix(block + "ffn_up.weight", wide, width)
            self._matrix(block + "ffn_down.weight", width, wide)

    def _recurrent_layer(self, block: str) -> None:
        width, inner = self._plan.embedding, 2 * self._plan.embedding
        self._ones(block + "attn_norm.weight", width)
        self._matrix(block + "ssm_in.weight", 2 * inner, width)
        self._matrix(block + "ssm_conv1d.weight", inner, _TAPS, quantization="F32")
        self._ones(block + "ssm_conv1d.bias", inner)
        self._matrix(block + "ssm_x.weight", _TIME_STEPS + 2 * _STATE, inner)
        self._matrix(block + "ssm_dt.weight", inner, _TIME_STEPS)
        self._ones(block + "ssm_dt.bias", inner)
        self._writer.add_tensor(block + "ssm_a", -np.ones((inner, _STATE), np.float32))
        self._ones(block + "ssm_d", inner)
        self._matrix(block + "ssm_out.weight", width, inner)

    def _ones(self, name: str, width: int) -> None:
        self._writer.add_tensor(name, np.ones(width, np.float32))

    def _matrix(self, name: str, *dims: int, scale: float = 0.0, quantization: str = "") -> None:
        """A matrix, or one for each expert; the last dimension is the contiguous one."""
        kind = gguf.GGMLQuantizationType[quantization or self._plan.quantization]
        count, width = int(np.prod(dims[:-1])), dims[-1]
        few = (self._rng.standard_normal((min(count, _ROWS), width)) * (scale or width**-0.5)).astype(np.float32)
        rows: NDArray[Any]
        if kind == gguf.GGMLQuantizationType.F32:
            rows = few
        elif kind == gguf.GGMLQuantizationType.F16:
            rows = few.astype(np.float16)
        elif kind.name.endswith("_K"):
            block, size = gguf.GGML_QUANT_SIZES[kind]
            rows = np.zeros((1, width // block * size), np.uint8)
        else:
            rows = gguf.quants.quantize(few, kind)
        whole = np.tile(rows, (-(-count // len(rows)), 1))[:count].reshape(*dims[:-1], rows.shape[-1])
        raw = None if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16) else kind
        self._writer.add_tensor(name, np.ascontiguousarray(whole), raw_dtype=raw)
