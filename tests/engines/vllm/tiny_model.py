"""Writes a llama of random weights in Hugging Face's layout, with a tokenizer of its own, for real vLLM.

Run by the interpreter of vLLM's environment, which has the libraries: ``python tiny_model.py DIRECTORY``. What it says is
gibberish of made-up words and single bytes; every text can be tokenized.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file  # pyright: ignore[reportMissingImports]
from tokenizers import (  # pyright: ignore[reportMissingImports]
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)

#: vLLM's attention for processors wants heads of 32 numbers or more
HEAD, HEADS, KV_HEADS, LAYERS, WIDE, CTX = 64, 2, 1, 2, 256, 2048
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for c in m['tool_calls'] or [] %}{{ c['function'] | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(rng: np.random.Generator) -> Tokenizer:
    """Byte-level pairs, learnt from made-up words."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = ["".join(rng.choice(syllables, size=rng.integers(1, 4))) for _ in range(300)]
    lines = [" ".join(rng.choice(words, size=15)) for _ in range(400)]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(lines, trainer)
    return made


def weights(rng: np.random.Generator, vocabulary: int) -> dict[str, np.ndarray]:
    """Random ones, scaled so that the next token is neither certain nor arbitrary."""
    dim = HEAD * HEADS

    def random(rows: int, columns: int, scale: float) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    out = random(vocabulary, dim, 3.0 * dim**-0.5)
    out[: len(SPECIAL)] *= 0.05  # it hardly ever ends by itself
    out[len(SPECIAL) : len(SPECIAL) + 256] *= 0.3
    found = {
        "model.embed_tokens.weight": random(vocabulary, dim, 1.0),
        "model.norm.weight": np.ones(dim, np.float32),
        "lm_head.weight": out,
    }
    shapes = {
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (HEAD * KV_HEADS, dim),
        "self_attn.v_proj": (HEAD * KV_HEADS, dim),
        "self_attn.o_proj": (dim, dim),
        "mlp.gate_proj": (WIDE, dim),
        "mlp.up_proj": (WIDE, dim),
        "mlp.down_proj": (dim, WIDE),
    }
    for layer in range(LAYERS):
        for name, (rows, columns) in shapes.items():
            found[f"model.layers.{layer}.{name}.weight"] = random(rows, columns, columns**-0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{name}.weight"] = np.ones(dim, np.float32)
    return found


def write(folder: Path) -> None:
    """Write the model into a directory."""
    rng = np.random.default_rng(11)
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer(rng)
    made.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HEAD * HEADS,
        "head_dim": HEAD,
        "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": made.get_vocab_size(),
        "max_position_embeddings": CTX,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CTX,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
        **special,
    }
    for name, value in {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "tokenizer_config.json": tokens,
        "special_tokens_map.json": special,
    }.items():
        (folder / name).write_text(json.dumps(value))
    save_file(weights(rng, made.get_vocab_size()), str(folder / "model.safetensors"), metadata={"format": "pt"})


if __name__ == "__main__":
    write(Path(sys.argv[1]))
