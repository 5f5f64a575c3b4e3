"""Write a trained run as the GGUF file that ships: `python -m llama_orch.haiku.export RUN haiku.gguf`.

Matrices go as Q8_0 (`--type f16` and `f32` are for comparing), scales as F32. Needs the `haiku-training` extra. The
same run gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

#: ChatML. The beginning-of-sequence token is not in it: llama.cpp adds it, as `add_bos_token` says.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_FILE_TYPES: Final = {
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "f32": gguf.LlamaFileType.ALL_F32,
}


@dataclass(frozen=True, slots=True)
class Run:
    """What :mod:`.train` left in its directory."""

    shape: dict[str, Any]
    weights: dict[str, np.ndarray]
    tokenizer: dict[str, Any]

    @classmethod
    def load(cls, directory: Path) -> Run:
        """Read `model.pt` and `tokenizer.json`."""
        import torch  # pyright: ignore[reportMissingImports] - installed only where one trains

        saved = torch.load(directory / "model.pt", weights_only=True)
        weights = {name: tensor.float().numpy() for name, tensor in saved["state"].items()}
        return cls(saved["shape"], weights, json.loads((directory / "tokenizer.json").read_text(encoding="utf-8")))


def interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key matrix from RoPE over halves to ggml's RoPE over neighbouring pairs."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_metadata(writer: gguf.GGUFWriter, shape: dict[str, Any], file_type: str) -> None:
    writer.add_name("haiku")
    writer.add_description("Writes haiku of 5-7-5 syllables. Trained only on text from the grammar of its repository.")
    writer.add_license("apache-2.0")
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["dim"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["hidden"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_layer_norm_rms_eps(shape["norm_epsilon"])
    writer.add_rope_dimension_count(shape["dim"] // shape["heads"])
    writer.add_rope_freq_base(shape["rope_base"])
    writer.add_vocab_size(shape["vocab"])
    writer.add_file_type(_FILE_TYPES[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_pad_token_id(ids["</s>"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write(run: Run, path: Path, file_type: str = "q8_0") -> None:
    """Write `run` to `path`. There is no `output.weight`: llama.cpp then uses the embedding for it."""
    writer = gguf.GGUFWriter(path, "llama")
    _write_metadata(writer, run.shape, file_type)
    _write_tokenizer(writer, run.tokenizer)
    for name, weights in run.weights.items():
        if name.endswith("attn_q.weight"):
            weights = interleaved(weights, run.shape["heads"])
        elif name.endswith("attn_k.weight"):
            weights = interleaved(weights, run.shape["kv_heads"])
        if weights.ndim == 1 or file_type == "f32":
            writer.add_tensor(name, np.ascontiguousarray(weights, np.float32))
        elif file_type == "f16":
            writer.add_tensor(name, weights.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Export as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m llama_orch.haiku.export", description="Write a trained run as a GGUF file."
    )
    parser.add_argument("run", type=Path, help="directory that the training wrote")
    parser.add_argument("gguf", type=Path, help="file to write")
    parser.add_argument("--type", choices=_FILE_TYPES, default="q8_0", help="type of the matrices (default q8_0)")
    given = parser.parse_args()
    write(Run.load(given.run), given.gguf, given.type)
    print(f"{given.gguf}: {given.gguf.stat().st_size} bytes, {given.type}")


if __name__ == "__main__":
    main()
