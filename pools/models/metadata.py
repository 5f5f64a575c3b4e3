"""What a model's own files say of it: the head of a GGUF file, or ``config.json`` and its neighbours (MOD-2)."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard

import msgspec

from ...core.gguf import GgufError, GgufHead, parts_of, read_model
from .errors import StagingError

#: more than any model has; what a file says above it is no number to count with
MAX_PARAMETERS: Final = 2**56
#: of a file that somebody else wrote
LARGEST_JSON: Final = 64 * 1024 * 1024
_LARGEST_TEMPLATE: Final = 256 * 1024


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """A summary; 0 and "" where the files do not say."""

    format: Literal["gguf", "hf"]
    #: the file that an engine is given: within the model, "" = its folder
    entry: str = ""
    name: str = ""
    architecture: str = ""
    #: elements of all tensors
    parameters: int = 0
    quantization: str = ""
    #: tokens it was trained for
    ctx_max: int = 0
    layers: int = 0
    #: kind of the tokenizer, and a digest of what makes it where there is one
    tokenizer: str = ""
    tokenizer_digest: str = ""
    chat_template: str = ""
    #: of one token in the cache of all layers, 16 bits per value
    kv_bytes_per_token: int = 0


def describe(folder: Path, names: Sequence[str]) -> ModelMetadata:
    """The summary of a model whose files lie below ``folder``.

    Raises:
        StagingError: ``bad-model``: there is no model in them, or one that is broken.
    """
    weights = sorted(name for name in names if name.lower().endswith(".gguf"))
    if weights:
        return _gguf(folder, weights)
    if len(names) == 1:
        return _gguf(folder, list(names))
    if "config.json" in names:
        return _hf(folder, names)
    raise StagingError("bad-model", f"there is neither a GGUF file nor a config.json among the {len(names)} files")


def _gguf(folder: Path, names: Sequence[str]) -> ModelMetadata:
    entry = names[0]
    try:
        belonging = {path.name for path in parts_of(folder / entry)}
        if belonging != {name.rsplit("/", 1)[-1] for name in names}:
            raise StagingError("bad-model", f"the files {', '.join(names[:5])} are no parts of one model")
        head = read_model(folder / entry)
    except GgufError as error:
        raise StagingError("bad-model", _without_folder(str(error), folder)) from error
    except OSError as error:
        raise StagingError("bad-model", f"{entry} cannot be read: {error.strerror or error}") from error
    if not head.architecture or not head.tensors:
        raise StagingError(
            "bad-model", f"{entry}: a GGUF file without {'weights' if head.architecture else 'an architecture'}"
        )
    return of_gguf(head, entry)


def of_gguf(head: GgufHead, entry: str) -> ModelMetadata:
    """The summary of a GGUF file."""
    return ModelMetadata(
        format="gguf",
        entry=entry,
        name=_text(head.metadata.get("general.name")),
        architecture=head.architecture,
        parameters=min(head.parameters, MAX_PARAMETERS),
        quantization=head.quantization,
        ctx_max=head.context_length,
        layers=head.number("block_count"),
        tokenizer=_text(head.metadata.get("tokenizer.ggml.model")),
        tokenizer_digest=head.tokenizer_digest,
        chat_template=_text(head.metadata.get("tokenizer.chat_template"))[:_LARGEST_TEMPLATE],
        kv_bytes_per_token=_gguf_kv_bytes(head),
    )


def _gguf_kv_bytes(head: GgufHead) -> int:
    layers, width, heads = (
        head.number("block_count"),
        head.number("embedding_length"),
        head.number("attention.head_count"),
    )
    key = f"{head.architecture}.attention.head_count_kv"
    per_layer = head.arrays.get(key) or (head.number("attention.head_count_kv") or heads,) * min(layers, 65_536)
    size = width // heads if heads else 0
    k_size = head.number("attention.key_length") or size
    v_size = head.number("attention.value_length") or size
    total = sum(int(count) for count in per_layer[:layers])
    return max(0, min(total * (k_size + v_size) * 2, MAX_PARAMETERS))


def _hf(folder: Path, names: Sequence[str]) -> ModelMetadata:
    config = _json(folder / "config.json")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)
    architectures = config.get("architectures")
    layers = _number(text, "num_hidden_layers") or _number(text, "n_layer")
    heads = _number(text, "num_attention_heads") or _number(text, "n_head")
    kv_heads = _number(text, "num_key_value_heads") or heads
    head_dim = _number(text, "head_dim") or (
        (_number(text, "hidden_size") or _number(text, "n_embd")) // heads if heads else 0
    )
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise StagingError("bad-model", "there is a config.json, and no safetensors file with weights beside it")
    quantization = config.get("quantization_config")
    tokenizer_config = _json(folder / "tokenizer_config.json") if "tokenizer_config.json" in names else {}
    template = tokenizer_config.get("chat_template")
    if "chat_template.jinja" in names:
        template = (folder / "chat_template.jinja").read_bytes()[:_LARGEST_TEMPLATE].decode("utf-8", "replace")
    return ModelMetadata(
        format="hf",
        architecture=_text(architectures[0])
        if isinstance(architectures, list) and architectures
        else _text(config.get("model_type")),
        name=_text(config.get("_name_or_path")),
        parameters=sum(_safetensors_elements(folder / name, name) for name in weights),
        quantization=(
            _text(quantization.get("quant_method"))
            if isinstance(quantization, dict)
            else _text(text.get("torch_dtype") or text.get("dtype") or config.get("torch_dtype") or config.get("dtype"))
        ),
        ctx_max=_number(text, "max_position_embeddings") or _number(text, "n_positions"),
        layers=layers,
        tokenizer=_text(tokenizer_config.get("tokenizer_class")),
        chat_template=_text(template)[:_LARGEST_TEMPLATE],
        kv_bytes_per_token=min(2 * 2 * layers * kv_heads * head_dim, MAX_PARAMETERS),
    )


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file that somebody else wrote.

    Raises:
        StagingError: ``bad-model``: it is too large, or no JSON object.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return parse_object(file.read(LARGEST_JSON + 1), path.name)


def parse_object(raw: bytes, name: str) -> dict[str, Any]:
    """An object from JSON that somebody else wrote. :raises StagingError: as :func:`read_json`."""
    if len(raw) > LARGEST_JSON:
        raise StagingError("bad-model", f"{name}: larger than {LARGEST_JSON} bytes")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StagingError("bad-model", f"{name}: not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise StagingError("bad-model", f"{name}: holds {type(found).__name__}, takes an object")
    return found


_json = read_json


def _safetensors_elements(path: Path, name: str) -> int:
    """Elements of all tensors of a safetensors file, whose head has to agree with its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(LARGEST_JSON, max(size - 8, 0)):
            raise StagingError("bad-model", f"{name}: no safetensors file, or one that ends within its head")
        try:
            head = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise StagingError("bad-model", f"{name}: the head is not JSON: {str(error)[:200]}") from error
    if not isinstance(head, dict):
        raise StagingError("bad-model", f"{name}: the head is no JSON object")
    elements = end = 0
    for key, tensor in head.items():
        if key == "__metadata__":
            continue
        if not isinstance(tensor, dict):
            raise StagingError("bad-model", f"{name}: the tensor {key[:100]!r} is not described")
        shape, offsets = tensor.get("shape"), tensor.get("data_offsets")
        if not (_counts(shape) and _counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
            raise StagingError("bad-model", f"{name}: the tensor {key[:100]!r} has no sound shape and place")
        product = 1
        for dim in shape:
            product *= dim
        elements += product
        end = max(end, offsets[1])
    if elements > MAX_PARAMETERS:
        raise StagingError("bad-model", f"{name}: the head tells of {elements} parameters")
    if 8 + length + end > size:
        raise StagingError("bad-model", f"{name}: cut off: it has {size} bytes, its head says {8 + length + end}")
    return elements


def _counts(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list) and len(value) <= 16 and all(isinstance(one, int) and 0 <= one < 2**63 for one in value)
    )


def _number(values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48 else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _without_folder(message: str, folder: Path) -> str:
    """An error's text with names as the source has them, not where the files lie for the moment."""
    return message.replace(f"{folder}/", "")
