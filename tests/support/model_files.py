"""Small files that are models: real heads, weights of a few numbers."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Mapping

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def gguf(
    seed: int = 1, *, elements: int = 4096, extra: Mapping[str, object] | None = None, architecture: str = "llama"
) -> bytes:
    """A GGUF file with one F32 tensor whose bytes come from ``seed``."""
    values: dict[str, object] = {
        "general.architecture": architecture,
        "general.name": f"tiny {seed}",
        "general.file_type": 0,
        f"{architecture}.block_count": 2,
        f"{architecture}.embedding_length": 64,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
        f"{architecture}.feed_forward_length": 128,
        f"{architecture}.context_length": 2048,
        "tokenizer.ggml.model": "llama",
        "tokenizer.chat_template": TEMPLATE,
        **(extra or {}),
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values))
    for key, value in values.items():
        head += _text(key) + (
            struct.pack("<I", 8) + _text(value) if isinstance(value, str) else struct.pack("<II", 4, int(str(value)))
        )
    head += _text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, elements // 64, 0, 0)
    head += b"\0" * (-len(head) % 32)
    return head + random.Random(seed).randbytes(elements * 4)


def split_gguf(parts: int = 2, seed: int = 1) -> dict[str, bytes]:
    """The parts of a split model, one tensor each."""
    files: dict[str, bytes] = {}
    for number in range(parts):
        values = {"split.no": number, "split.count": parts, "split.tensors.count": parts}
        one = gguf(seed + number, extra=values)
        files[f"big-{number + 1:05}-of-{parts:05}.gguf"] = one.replace(
            _text("token_embd.weight"), _text(f"token_embd.{number:06}")
        )
    return files


def hf_model(seed: int = 1) -> dict[str, bytes]:
    """A folder of an HF model: config, tokenizer configuration, weights."""
    weights = random.Random(seed).randbytes(4 * 256)
    head = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "model.embed_tokens.weight": {"dtype": "F32", "shape": [16, 16], "data_offsets": [0, len(weights)]},
        }
    ).encode()
    return {
        "config.json": json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 64,
                "max_position_embeddings": 4096,
                "torch_dtype": "float32",
            }
        ).encode(),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
        ).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors": struct.pack("<Q", len(head)) + head + weights,
    }


def sha256(content: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
