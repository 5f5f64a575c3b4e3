"""What of a model decides how much memory it needs: read from the head of a GGUF file or from Hugging Face's ``config.json``.

Keys and layer patterns are those of llama.cpp (``llama-arch.cpp``, ``llama-model.cpp``), without their code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from ...core.ggml import TENSOR_TYPES
from ...core.gguf import GgufError, GgufHead, TensorInfo

#: no model comes near; what a file says above it is a lie or damage
_MAX_NUMBER: Final = 2**31 - 1
_MAX_LAYERS: Final = 4_096
#: one layer in so many sees the whole context, the last of its group; the others a window. Files with a pattern of their
#: own override it; a window of an architecture that is not here is not believed.
_WINDOW_GROUPS: Final = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2, "llama4": 4, "exaone4": 4, "olmo2": 4,
    "smallthinker": 4,
}  # fmt: skip
#: one layer in so many has attention, the last of its group; the others a recurrent state
_ATTENTION_GROUPS: Final = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
_RECURRENT: Final = frozenset({"mamba", "mamba2"})
#: types that llama.cpp's CPU backend copies into another order on x86 with AVX2, and keeps beside the file's pages
_REPACKED: Final = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"})
#: bits of a weight by the name in ``torch_dtype``
_DTYPE_BITS: Final = {"float32": 32, "float16": 16, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e5m2": 8}


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Dimensions and sizes of a model; what is told per layer has one item for each."""

    architecture: str
    embedding: int
    heads: int
    #: 0 = the layer keeps no keys and values
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    #: widest of all layers; with experts, that of one
    feed_forward: int
    vocab: int
    #: pairs that the tokenizer merges
    merges: int = 0
    #: experts that work on one token; 0 = the model has none
    experts_used: int = 0
    #: tokens that windowed layers look back; 0 = none
    window: int = 0
    windowed: tuple[bool, ...] = ()
    #: width of recurrent layers; 0 = none
    inner: int = 0
    #: bytes of recurrent state per slot
    state_bytes: tuple[int, ...] = ()
    #: tokens the model was trained for; 0 = not told
    ctx_train: int = 0
    #: of each layer's weights
    layer_bytes: tuple[int, ...]
    #: of the input's embedding, with all that belongs to no layer
    embedding_bytes: int = 0
    #: of the output matrix and its norm; a tied one is counted here as well
    output_bytes: int = 0
    #: the output matrix is the input's embedding
    tied_output: bool = False
    #: what the CPU backend copies of each layer, and of the output
    repacked_bytes: tuple[int, ...] = ()
    output_repacked_bytes: int = 0
    #: what stays mapped of the file when all layers run on the CPU
    mapped_bytes: int = 0
    quantization: str = ""
    parameters: int = 0
    file_bytes: int = 0

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.layer_bytes)

    @property
    def weights_bytes(self) -> int:
        """All weights, each once."""
        return sum(self.layer_bytes) + self.embedding_bytes + (0 if self.tied_output else self.output_bytes)


def shape_of_gguf(head: GgufHead) -> ModelShape:
    """The shape of a model in a GGUF file.

    Raises:
        GgufError: the file does not describe a model, or with numbers that cannot be.
    """
    told = _Told(head)
    layers = told.number("block_count", limit=_MAX_LAYERS)
    embedding = told.number("embedding_length")
    if not layers or not embedding:
        raise GgufError(
            f"{head.architecture or 'the file'}: block_count or embedding_length is missing: no language model"
        )
    heads = max(told.per_layer("attention.head_count", layers, 0), default=0)
    kv_heads = told.kv_heads(layers, heads)
    key_length = told.number("attention.key_length") or (embedding // heads if heads else 0)
    value_length = told.number("attention.value_length") or (embedding // heads if heads else 0)
    if told.number("attention.kv_lora_rank") and told.number("attention.key_length_mla"):
        value_length = 0  # the compressed keys hold the values too
    window, windowed = told.windows(layers)
    parts = _Parts(head.tensors, layers)
    experts = told.number("expert_used_count")
    return ModelShape(
        architecture=head.architecture,
        embedding=embedding,
        heads=heads,
        kv_heads=kv_heads,
        key_length=key_length,
        value_length=value_length,
        feed_forward=(told.number("expert_feed_forward_length") if experts else 0)
        or max(told.per_layer("feed_forward_length", layers, 0)),
        vocab=told.number("vocab_size") or head.lengths.get("tokenizer.ggml.tokens", 0),
        merges=head.lengths.get("tokenizer.ggml.merges", 0),
        experts_used=experts,
        window=window,
        windowed=windowed,
        inner=told.number("ssm.inner_size"),
        state_bytes=told.states(kv_heads),
        ctx_train=head.context_length,
        layer_bytes=tuple(parts.layer_bytes),
        embedding_bytes=parts.embedding_bytes,
        output_bytes=parts.output_bytes,
        tied_output=parts.tied_output,
        repacked_bytes=tuple(parts.repacked_bytes),
        output_repacked_bytes=parts.output_repacked_bytes,
        mapped_bytes=parts.mapped_bytes,
        quantization=head.quantization,
        parameters=head.parameters,
        file_bytes=head.file_bytes,
    )


class _Told:
    """What the metadata say, held against what can be."""

    def __init__(self, head: GgufHead) -> None:
        self._head = head

    def number(self, key: str, *, limit: int = _MAX_NUMBER) -> int:
        """A whole number of the architecture; 0 = not told."""
        return self._checked(key, self._head.number(key), limit)

    def per_layer(self, key: str, layers: int, default: int) -> tuple[int, ...]:
        """Numbers that are told once, or for each layer."""
        told = self._head.arrays.get(f"{self._head.architecture}.{key}")
        if told is None:
            return (self.number(key) or default,) * layers
        if len(told) < layers:
            raise GgufError(f"{self._head.architecture}.{key} has {len(told)} items for {layers} layers")
        return tuple(self._checked(key, value, _MAX_NUMBER) for value in told[:layers])

    def kv_heads(self, layers: int, heads: int) -> tuple[int, ...]:
        """Of each layer; those that share another's cache have none of their own."""
        architecture = self._head.architecture
        if architecture in _RECURRENT:
            return (0,) * layers
        counts = self.per_layer("attention.head_count_kv", layers, heads)
        group = _ATTENTION_GROUPS.get(architecture, 0)
        if group:
            group = self.number("full_attention_interval") or group
            counts = tuple(count if (layer + 1) % group == 0 else 0 for layer, count in enumerate(counts))
        shared = min(self.number("attention.shared_kv_layers"), layers)
        return counts[: layers - shared] + (0,) * shared

    def windows(self, layers: int) -> tuple[int, tuple[bool, ...]]:
        """How far windowed layers look back, and which they are."""
        window = self.number("attention.sliding_window")
        if not window:
            return 0, ()
        key = f"{self._head.architecture}.attention.sliding_window_pattern"
        told = self._head.arrays.get(key)
        if told is not None:
            if len(told) < layers:
                raise GgufError(f"{key} has {len(told)} items for {layers} layers")
            return window, tuple(bool(value) for value in told[:layers])
        group = self.number("attention.sliding_window_pattern") or _WINDOW_GROUPS.get(self._head.architecture, 0)
        if not group:
            return 0, ()
        return window, tuple(layer % group < group - 1 for layer in range(layers))

    def states(self, kv_heads: Sequence[int]) -> tuple[int, ...]:
        """Recurrent states: the last inputs of the convolution and the state itself, in single precision."""
        inner, state = self.number("ssm.inner_size"), self.number("ssm.state_size")
        if not inner or not state:
            return ()
        groups = self.number("ssm.group_count")
        taps = max(0, self.number("ssm.conv_kernel") - 1)
        size = 4 * (taps * (inner + 2 * groups * state) + state * inner)
        return tuple(0 if count else size for count in kv_heads)

    def _checked(self, key: str, value: object, limit: int) -> int:
        if not isinstance(value, int) or not 0 <= value <= limit:
            raise GgufError(f"{self._head.architecture}.{key} is {value!r}; at most {limit} can be")
        return int(value)


class _Parts:
    """Which tensor belongs to which layer, and what the CPU backend makes of it."""

    def __init__(self, tensors: Sequence[TensorInfo], layers: int) -> None:
        self.layer_bytes = [0] * layers
        self.repacked_bytes = [0] * layers
        self.embedding_bytes = 0
        self.output_bytes = 0
        self.output_repacked_bytes = 0
        embedding: TensorInfo | None = None
        has_output = False
        for tensor in tensors:
            layer = _layer_of(tensor.name)
            repacked = _repacked(tensor)
            if 0 <= layer < layers:
                self.layer_bytes[layer] += tensor.size_bytes
                self.repacked_bytes[layer] += repacked
            elif tensor.name.startswith("output"):
                self.output_bytes += tensor.size_bytes
                self.output_repacked_bytes += repacked
                has_output = has_output or tensor.name == "output.weight"
            else:
                self.embedding_bytes += tensor.size_bytes
                embedding = tensor if tensor.name == "token_embd.weight" else embedding
        self.tied_output = not has_output and embedding is not None
        if self.tied_output and embedding is not None:
            self.embedding_bytes += self.output_bytes  # its norm: counted once in the whole
            self.output_bytes += embedding.size_bytes
            self.output_repacked_bytes += _repacked(embedding)
        self.mapped_bytes = _mapped(tensors, self.tied_output)


def _layer_of(name: str) -> int:
    """-1 = it belongs to none."""
    if not name.startswith("blk."):
        return -1
    number = name[4:].partition(".")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 6 else -1


def _repacked(tensor: TensorInfo) -> int:
    name = TENSOR_TYPES[tensor.type][0] if tensor.type in TENSOR_TYPES else ""
    fits = len(tensor.dims) > 1 and tensor.dims[1] % 8 == 0
    return tensor.size_bytes if name in _REPACKED and fits else 0


def _mapped(tensors: Sequence[TensorInfo], tied_output: bool) -> int:
    """From the first to the last byte that is used where it lies in the file: what is between them stays mapped."""
    first = last = total = 0
    for tensor in tensors:
        if tensor.offset + tensor.size_bytes < last:  # the next part of a split file
            total += last - first
            first = last = 0
        if not _repacked(tensor) or tensor.name.startswith(("token_embd", "per_layer_token_embd")):
            first = first or tensor.offset
            last = tensor.offset + tensor.size_bytes
    return total + last - first


def shape_of_hf(config: Mapping[str, Any], *, file_bytes: int = 0) -> ModelShape:
    """The shape of a model in Hugging Face's format, for engines that load it as it is.

    Args:
        config: the parsed ``config.json``; of a model with several parts, its text's part counts.
        file_bytes: of all weights' files; 0 = computed from the parameters.

    Raises:
        ValueError: a number that is needed is missing or cannot be.
    """
    text = config.get("text_config")
    told: Mapping[str, Any] = {**config, **text} if isinstance(text, Mapping) else config
    layers = _hf_number(told, "num_hidden_layers", limit=_MAX_LAYERS)
    embedding = _hf_number(told, "hidden_size")
    heads = _hf_number(told, "num_attention_heads")
    kv_heads = _hf_number(told, "num_key_value_heads", heads)
    length = _hf_number(told, "head_dim", embedding // heads)
    vocab = _hf_number(told, "vocab_size")
    experts = _hf_number(
        told, "num_local_experts", _hf_number(told, "num_experts", _hf_number(told, "n_routed_experts", 0))
    )
    wide = _hf_number(told, "intermediate_size", 0)
    if experts:
        wide = _hf_number(told, "moe_intermediate_size", wide)
    tied = bool(told.get("tie_word_embeddings"))
    per_layer = (
        2 * embedding * length * (heads + kv_heads) + 3 * embedding * wide * max(1, experts) + experts * embedding
    )
    matrix = vocab * embedding
    parameters = layers * per_layer + matrix * (1 if tied else 2)
    bits, quantization = _hf_precision(told)
    weights_bytes = file_bytes or parameters * bits // 8
    matrix_bytes = weights_bytes * matrix // parameters
    each = (weights_bytes - matrix_bytes * (1 if tied else 2)) // layers
    kinds = told.get("layer_types")
    window = _hf_number(told, "sliding_window", 0) if told.get("use_sliding_window", True) else 0
    windowed: tuple[bool, ...] = ()
    if window and isinstance(kinds, Sequence) and len(kinds) == layers:
        windowed = tuple(kind == "sliding_attention" for kind in kinds)
    return ModelShape(
        architecture=str(told.get("model_type", "")),
        embedding=embedding,
        heads=heads,
        kv_heads=(kv_heads,) * layers,
        key_length=length,
        value_length=length,
        feed_forward=wide,
        vocab=vocab,
        experts_used=_hf_number(told, "num_experts_per_tok", 0) if experts else 0,
        window=window if windowed else 0,
        windowed=windowed,
        ctx_train=_hf_number(told, "max_position_embeddings", 0),
        layer_bytes=(each,) * layers,
        embedding_bytes=matrix_bytes,
        output_bytes=matrix_bytes,
        tied_output=tied,
        mapped_bytes=weights_bytes,
        quantization=quantization,
        parameters=parameters,
        file_bytes=weights_bytes,
    )


def _hf_number(told: Mapping[str, Any], key: str, default: int | None = None, *, limit: int = _MAX_NUMBER) -> int:
    value = told.get(key)
    if value is None and default is not None:
        return default
    least = 1 if default is None else 0
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= limit:
        msg = f"config.json: {key} is {value!r}, it takes a whole number from {least} to {limit}"
        raise ValueError(msg)
    return value


def _hf_precision(told: Mapping[str, Any]) -> tuple[int, str]:
    """Bits of a weight, and the name of it."""
    quantization = told.get("quantization_config")
    if isinstance(quantization, Mapping):
        method = str(quantization.get("quant_method", "quantized"))
        bits = quantization.get("bits", quantization.get("w_bit", 8 if "fp8" in method else 4))
        if isinstance(bits, int) and 1 <= bits <= 32:
            return bits, f"{method}-{bits}"
    name = str(told.get("torch_dtype") or told.get("dtype") or "bfloat16").removeprefix("torch.")
    return _DTYPE_BITS.get(name, 16), name
