"""Which weights and which tokenizer a directory of Hugging Face's layout holds: what a rerun has to match."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ._llama_identity import file_digest

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_WEIGHTS: Final = ("config.json", "*.safetensors", "*.bin")
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def model_digest(root: str, host: str) -> str:
    """``sha256:…`` over the weights' files where they can be read here, else "". Blocks: call it in a thread."""
    return _digest(root, host, _WEIGHTS)


def tokenizer_digest(root: str, host: str) -> str:
    """The same over the tokenizer's."""
    return _digest(root, host, _TOKENIZER)


def _digest(root: str, host: str, patterns: Sequence[str]) -> str:
    folder = Path(root)
    if host not in _LOOPBACK or not folder.is_absolute():
        return ""
    digest = hashlib.sha256()
    try:
        files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
        for file in files:
            digest.update(f"{file.name} {file_digest(file)}\n".encode())
    except OSError:
        return ""  # a path on another machine, behind a tunnel or in a container
    return f"sha256:{digest.hexdigest()}" if files else ""
