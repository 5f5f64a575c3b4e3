"""Which build, which weights, which tokenizer a llama.cpp server runs: what a rerun has to match."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from .. import GgufError, read_head

if TYPE_CHECKING:
    from ._llama_wire import Meta, Props

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_PIECE_BYTES: Final = 4 * 1024 * 1024
_digests: dict[tuple[str, int, int], str] = {}
_digests_lock = threading.Lock()


def engine_version(build_info: str, otherwise: str) -> str:
    """The build by its own word, or what it was started from: the wheel's server has lost its build number."""
    if otherwise and (not build_info or build_info.startswith("b0-")):
        return otherwise
    return build_info or "unknown"


def file_digest(path: Path) -> str:
    """``sha256:…`` of a file; read once per size and modification time. Blocks: call it in a thread.

    Raises:
        OSError: the file cannot be read.
    """
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    with _digests_lock:
        known = _digests.get(key)
    if known:
        return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    found = f"sha256:{digest.hexdigest()}"
    with _digests_lock:
        _digests[key] = found
    return found


def model_digest(model_path: str, host: str, name: str, meta: Meta) -> str:
    """Digest of the weights' file where it can be read here, else ``meta:…`` over what the server tells of it."""
    path = Path(model_path)
    if model_path and host in _LOOPBACK and path.is_absolute():
        try:
            if path.stat().st_size >= meta.size:
                return file_digest(path)
        except OSError:
            pass  # a path on another machine, behind a tunnel or in a container
    told = msgspec.json.encode([meta.n_params, meta.size, meta.n_vocab, name])
    return f"meta:{hashlib.sha256(told).hexdigest()}"


def tokenizer_digest(model_path: str, host: str, props: Props, meta: Meta) -> str:
    """Digest of the tokenizer in the weights' file, else ``meta:…`` over what the server tells of it."""
    path = Path(model_path)
    if model_path and host in _LOOPBACK and path.is_absolute():
        try:
            return read_head(path).tokenizer_digest
        except (OSError, GgufError):
            pass
    told = msgspec.json.encode([meta.vocab_type, meta.n_vocab, props.bos_token, props.eos_token])
    return f"meta:{hashlib.sha256(told).hexdigest()}"
