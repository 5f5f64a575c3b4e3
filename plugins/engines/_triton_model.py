"""What a model on Triton takes and gives, and how a job is asked of it.

Triton has no contract for language models of its own. Two are in use, and told apart by their inputs: TensorRT-LLM's
(each parameter is a tensor: ``max_tokens``, ``stop_words``, …) and that of Triton's vLLM backend (one tensor,
``sampling_parameters``, holds them as JSON).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from .. import GenerateJob
from ._stream_attempt import RefusedError

TEXT_IN: Final = "text_input"
TEXT_OUT: Final = "text_output"
#: tensors of TensorRT-LLM by the names of parameters here
_TENSORS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
#: values that change nothing, and need no parameter
_NEUTRAL: Final = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0.0,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_SEEDS: Final = ("random_seed", "seed")
_GUIDES: Final = ("guided_decoding_guide_type", "guided_decoding_guide")
_SAMPLING: Final = "sampling_parameters"
#: what is asked for beside the text where the model can tell it
_ASKED: Final = (
    "exclude_input_in_output",
    "return_finish_reason",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
#: the context where none is configured
_UNKNOWN_CTX: Final = 4096


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One input or output."""

    name: str
    datatype: str
    shape: list[int] = []


class Model(msgspec.Struct, frozen=True):
    """What Triton tells of a model."""

    name: str
    versions: list[str] = []
    platform: str = ""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    @property
    def digest(self) -> str:
        """Identifies the model as far as Triton tells of it: names, versions, tensors."""
        return f"meta:{hashlib.sha256(msgspec.json.encode(self)).hexdigest()}"

    def tensor(self, name: str) -> Tensor | None:
        """The input of this name."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def takes(self, *names: str) -> bool:
        """Whether it has all these inputs."""
        return all(self.tensor(name) is not None for name in names)

    @property
    def speaks(self) -> bool:
        """Whether it takes a text and gives one."""
        return self.takes(TEXT_IN) and any(tensor.name == TEXT_OUT for tensor in self.outputs)

    @property
    def takes_no_text(self) -> str:
        """Why it is of no use here, in words."""
        return f"{self.name} takes {_names(self.inputs)} and gives {_names(self.outputs)}, not {TEXT_IN} and {TEXT_OUT}"

    def features(self) -> list[str]:
        """What of :data:`~llama_orch.plugins.FEATURES` it has."""
        found = ["continue"]
        if self.takes(_SAMPLING) or any(self.takes(name) for name in _SEEDS):
            found.append("seed")
        if self.takes(*_GUIDES):
            found.append("json_schema")
        return found


def limit_of(job: GenerateJob, ctx: int) -> int:
    """Tokens to ask for: models need a number. Without one in the job it is half of the context.

    :param ctx: tokens of a slot; 0 = not known.
    """
    return job.max_tokens or (ctx or _UNKNOWN_CTX) // 2


def tensors_of(job: GenerateJob, model: Model, *, prompt: str, max_tokens: int) -> dict[str, Any]:
    """Inputs for a job by name: texts, numbers, truth values, lists of texts.

    :param prompt: what the model goes on from.
    :raises RefusedError: the model has no input for something that the job asks for.
    """
    if not model.speaks:
        msg = (
            f"{model.name} takes {_names(model.inputs)} and gives {_names(model.outputs)}, not {TEXT_IN} and {TEXT_OUT}"
        )
        raise RefusedError("invalid", msg)
    tensors: dict[str, Any] = {TEXT_IN: prompt}
    if model.takes("stream"):
        tensors["stream"] = True
    tensors.update({name: True for name in _ASKED if model.takes(name)})
    if model.takes(_SAMPLING):
        tensors[_SAMPLING] = msgspec.json.encode(_as_json(job, max_tokens)).decode()
    else:
        if not model.takes("max_tokens"):
            raise _lacks(model, "max_tokens")
        tensors["max_tokens"] = max_tokens
        tensors.update(_sampling(job, model))
        if job.stop and model.takes("stop_words"):
            tensors["stop_words"] = list(job.stop)
        tensors.update({name: job.seed for name in _SEEDS if model.takes(name)})
    if job.json_schema is not None:
        if not model.takes(*_GUIDES):
            raise _lacks(model, "json_schema")
        schema = msgspec.json.encode(job.json_schema).decode()
        tensors.update(zip(_GUIDES, ("json_schema", schema), strict=True))
    return tensors


def _sampling(job: GenerateJob, model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in job.sampling.items():
        tensor = model.tensor(_TENSORS.get(name, name))
        if name == "temperature" and value == 0 and model.takes("top_k"):
            found["top_k"] = 1  # TensorRT-LLM divides by the temperature
        elif tensor is not None:
            found.setdefault(tensor.name, int(value) if "INT" in tensor.datatype else value)
        elif value != _NEUTRAL.get(name):
            raise _lacks(model, name)
    return found


def _as_json(job: GenerateJob, max_tokens: int) -> Mapping[str, Any]:
    """The parameters under vLLM's names."""
    found: dict[str, Any] = {"max_tokens": max_tokens, "seed": job.seed}
    for name, value in job.sampling.items():
        found[_TENSORS.get(name, name)] = int(value) if name == "top_k" else value
    if job.stop:
        found["stop"] = list(job.stop)
    return found


def _lacks(model: Model, what: str) -> RefusedError:
    return RefusedError("invalid", f"{what}: {model.name} takes {_names(model.inputs)}, and none of these for it")


def _names(tensors: Sequence[Tensor]) -> str:
    return ", ".join(tensor.name for tensor in tensors) or "nothing"
