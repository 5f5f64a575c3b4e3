"""What TGI's `/generate_stream` is asked for a job."""

from __future__ import annotations

from typing import Any

import msgspec

from .. import GenerateJob
from ._stream_attempt import RefusedError

_encode = msgspec.json.Encoder().encode


def body_of(job: GenerateJob, prompt: str, *, max_stop_sequences: int) -> bytes:
    """The request's body. What TGI does not know it ignores silently, so names are exact.

    :param prompt: what the model goes on from.
    :param max_stop_sequences: no more are taken; the client looks for all of them itself.
    :raises RefusedError: the job names a parameter, or a value of one, that TGI does not have.
    """
    parameters: dict[str, Any] = {
        "details": True,
        "return_full_text": False,
        # null = as many as fit; without the field it would be a hundred
        "max_new_tokens": job.max_tokens or None,
        "seed": job.seed,
        **_sampling(job),
    }
    if job.stop:
        parameters["stop"] = [word for word in job.stop if word][:max_stop_sequences]
    if job.top_logprobs:
        parameters["top_n_tokens"] = job.top_logprobs
    if job.json_schema is not None:
        if "properties" not in job.json_schema:
            raise RefusedError("invalid", "json_schema: TGI takes schemas of objects that name their 'properties'")
        parameters["grammar"] = {"type": "json", "value": job.json_schema}
    return _encode({"inputs": prompt, "parameters": parameters})


def _sampling(job: GenerateJob) -> dict[str, Any]:
    """TGI refuses the values that switch a parameter off, and samples when any of them is there."""
    found: dict[str, Any] = {}
    for name, value in job.sampling.items():
        match name:
            case "temperature":
                if value > 0:
                    found["temperature"], found["do_sample"] = value, True
            case "top_p":
                if value < 1:
                    found["top_p"] = value
            case "top_k":
                if value > 0:
                    found["top_k"] = int(value)
            case "repeat_penalty":
                found["repetition_penalty"] = value
            case "frequency_penalty":
                found["frequency_penalty"] = value
            case "presence_penalty" | "min_p" if value == 0:
                pass
            case _:
                raise RefusedError("invalid", f"{name}: TGI has no such parameter")
    if job.sampling.get("temperature") == 0:
        # The likeliest token each time: whatever else narrows the choice makes no difference, and would make it sample.
        found = {name: value for name, value in found.items() if name.endswith("_penalty")}
    return found
