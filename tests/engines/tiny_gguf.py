"""Writes small llama-architecture GGUF files with random weights, so that tests run real llama.cpp on models of their own.

The vocabulary is of the SentencePiece kind: control tokens, the 256 bytes, single characters, and made-up words with
all their beginnings, so that every text can be tokenized. What such a model says is gibberish, well spread over the
vocabulary; what a test needs to happen is set by the scale of single output rows.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

UNKNOWN, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3
IM_START = FIRST_BYTE + 256
IM_END = IM_START + 1

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Size and temper of a model."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 128
    context: int = 2048
    words: int = 400
    seed: int = 7
    #: scale of the byte tokens' rows: near 0 they are seldom said, at 1 the stream is full of broken UTF-8
    bytes_scale: float = 0.05
    #: scale of the row that ends a text; 0 = it never does by itself
    eos_scale: float = 0.0
    #: more tokens, as a model's own words for what is a thought or a call, and the scale of their rows
    marks: tuple[tuple[str, float], ...] = ()
    #: a space is put before what follows a control token; with it, llama.cpp's grammars of tool calls do not fit
    space_prefix: bool = True
    #: it has a head that ranks: yes or no
    ranks: bool = False


#: what tests use
VARIANTS = {
    "plain": Shape(),
    "bytes": Shape(bytes_scale=1.0),
    "ending": Shape(eos_scale=1.6),
    "ranking": Shape(ranks=True),
    "slow": Shape(width=512, layers=8, heads=8, kv_heads=4, feed_forward=1408, words=700),
}


def write_model(path: Path, shape: Shape | None = None, *, template: str = CHATML) -> Path:
    """Write a model; the same shape gives the same bytes."""
    shape = shape or Shape()
    rng = np.random.default_rng(shape.seed)
    tokens, scores, kinds = _vocabulary(shape.words)
    first_mark = len(tokens)
    for text, _ in shape.marks:
        tokens.append(text.encode())
        scores.append(0.0)
        kinds.append(int(gguf.TokenType.USER_DEFINED))
    head = shape.width // shape.heads
    writer = gguf.GGUFWriter(path, "qwen3" if shape.ranks else "llama")
    writer.add_name("tiny")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    if not shape.space_prefix:
        writer.add_add_space_prefix(False)
    writer.add_chat_template(template)

    def normal(*dims: int, scale: float) -> NDArray[np.float32]:
        return (rng.standard_normal(dims) * scale).astype(np.float32)

    if shape.ranks:
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_classifier_output_labels(["yes", "no"])

    width, narrow = shape.width, head * shape.kv_heads
    spread = width**-0.5
    writer.add_tensor("token_embd.weight", normal(len(tokens), width, scale=1.0))
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", np.ones(width, np.float32))
        writer.add_tensor(block + "attn_q.weight", normal(width, width, scale=spread))
        writer.add_tensor(block + "attn_k.weight", normal(narrow, width, scale=spread))
        writer.add_tensor(block + "attn_v.weight", normal(narrow, width, scale=spread))
        if shape.ranks:
            writer.add_tensor(block + "attn_q_norm.weight", np.ones(head, np.float32))
            writer.add_tensor(block + "attn_k_norm.weight", np.ones(head, np.float32))
        writer.add_tensor(block + "attn_output.weight", normal(width, width, scale=spread))
        writer.add_tensor(block + "ffn_norm.weight", np.ones(width, np.float32))
        writer.add_tensor(block + "ffn_gate.weight", normal(shape.feed_forward, width, scale=spread))
        writer.add_tensor(block + "ffn_up.weight", normal(shape.feed_forward, width, scale=spread))
        writer.add_tensor(block + "ffn_down.weight", normal(width, shape.feed_forward, scale=shape.feed_forward**-0.5))
    # Logits spread by 3; a row that is scaled down has a logit near 0 and is hardly ever drawn.
    output = normal(len(tokens), width, scale=3.0 * spread)
    output[[UNKNOWN, BOS, IM_START]] *= 0.05
    output[[EOS, IM_END]] *= shape.eos_scale
    output[FIRST_BYTE:IM_START] *= shape.bytes_scale
    for n, (_, scale) in enumerate(shape.marks):
        output[first_mark + n] *= scale
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    writer.add_tensor("output.weight", output)
    if shape.ranks:
        writer.add_tensor("cls.output.weight", normal(2, width, scale=spread))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary(words: int) -> tuple[list[bytes], list[float], list[int]]:
    tokens: list[bytes] = []
    scores: list[float] = []
    kinds: list[int] = []
    known: set[str] = set()

    def add(text: str, score: float, kind: gguf.TokenType) -> None:
        if text not in known:
            known.add(text)
            tokens.append(text.encode())
            scores.append(score)
            kinds.append(int(kind))

    for text, kind in (
        ("<unk>", gguf.TokenType.UNKNOWN),
        ("<s>", gguf.TokenType.CONTROL),
        ("</s>", gguf.TokenType.CONTROL),
    ):
        add(text, 0.0, kind)
    for byte in range(256):
        add(f"<0x{byte:02X}>", 0.0, gguf.TokenType.BYTE)
    for text in ("<|im_start|>", "<|im_end|>"):
        add(text, 0.0, gguf.TokenType.CONTROL)
    for n, text in enumerate(["\u2581", *map(chr, range(33, 127)), "\n", "é", "ß", "中", "文", "🙂"]):
        add(text, -1000.0 - n, gguf.TokenType.NORMAL)
    # A word is reached by joining neighbours, so each of its beginnings is a token too.
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
    first = len(tokens)
    for n in itertools.count():
        word = "\u2581" + "".join(syllables[k % 70] for k in (n, 31 * n + n // 70, 17 * n))
        for end in range(2, len(word) + 1):
            if len(tokens) - first >= words:
                return tokens, scores, kinds
            add(word[:end], -1.0 - 0.01 * (len(tokens) - first), gguf.TokenType.NORMAL)
    raise AssertionError


def main() -> None:
    """Write one variant: ``python tiny_gguf.py OUT.gguf [VARIANT]``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("variant", nargs="?", choices=sorted(VARIANTS), default="plain")
    args = parser.parse_args()
    write_model(args.out, VARIANTS[args.variant])


if __name__ == "__main__":
    main()
