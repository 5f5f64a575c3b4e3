"""What OpenAI's text completions take, and the tasks that it asks for: one per prompt."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta

from ...core.errors import InvalidParamsError
from ...core.types import TaskRequest, Text, TokenId
from ..workloads import require_sound
from .chat_request import schema_of
from .parameters import fields_of
from .sampling_request import SamplingRequest, refused, task_fields

#: most prompts of one request
PROMPTS: Final = 256
_Ids = Annotated[list[TokenId], Meta(max_length=10_000_000)]


class CompletionRequest(SamplingRequest, kw_only=True, omit_defaults=True):
    """OpenAI's parameters of text completions as far as they are served, and our own beside them."""

    #: a text, texts, token ids, or lists of token ids; each text or list of ids is a task of its own
    prompt: Text | Annotated[list[Text | TokenId | _Ids], Meta(min_length=1, max_length=10_000_000)]
    #: the answer begins with the prompt
    echo: bool | None = None
    #: likeliest tokens beside each one; ``true`` = none, but the log-probability of the token itself
    logprobs: bool | Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    # --- parameters that would change the answer's meaning: refused rather than ignored ---
    suffix: str | None = None
    best_of: int | None = None


KNOWN: Final = fields_of(CompletionRequest)
#: OpenAI's names of what errors name by a task's fields
NAMES: Final = {"model_ref": "model", "prompt_ids": "prompt", "json_schema": "response_format", "workload": "model"}


def prompts_of(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts, as texts or as token ids.

    :raises InvalidParamsError: they are mixed, empty or too many.
    """
    given = body.prompt
    if isinstance(given, str):
        return [given]
    kind = type(given[0])
    for at, one in enumerate(given):
        if type(one) is not kind:
            msg = f"prompt.{at}: texts, token ids and lists of token ids cannot be mixed"
            raise InvalidParamsError(msg, field=f"prompt.{at}", got=type(one).__name__, expected=kind.__name__)
        if one == []:
            msg = f"prompt.{at}: there are no token ids in it"
            raise InvalidParamsError(msg, field=f"prompt.{at}", got="[]", expected="token ids")
    if kind is int:
        return [[one for one in given if isinstance(one, int)]]
    if len(given) > PROMPTS:
        msg = f"prompt: got {len(given)} prompts, at most {PROMPTS} are taken at once"
        raise InvalidParamsError(msg, field="prompt", got=len(given), expected=f"at most {PROMPTS} prompts")
    return [one for one in given if not isinstance(one, int)]


def _require_served(body: CompletionRequest) -> None:
    if body.suffix:
        remedy = "Leave suffix out, or write the model's own fill-in-the-middle tokens into the prompt."
        raise refused("suffix", "a text", "text before a given end is not served", remedy)
    if body.best_of is not None and body.best_of != (body.n or 1):
        why = f"got {body.best_of}; answers are not chosen among more than are asked for"
        raise refused("best_of", body.best_of, why, "Send n, and choose among the answers.")
    if body.echo and body.logprobs is not None and body.logprobs is not False:
        why = "log-probabilities of a prompt are not served"
        raise refused("echo", True, why, "Send echo or logprobs, not both.")


def tasks_of(body: CompletionRequest) -> list[TaskRequest]:
    """The tasks behind the request, in the order of its prompts.

    :raises InvalidParamsError: it asks for what is not served, naming the parameter.
    """
    _require_served(body)
    prompts = prompts_of(body)
    if len(prompts) > 1 and body.task_id is not None:
        remedy = "Leave task_id out, or send one prompt."
        raise refused("task_id", body.task_id, f"{len(prompts)} prompts are as many tasks", remedy)
    schema = schema_of(body.response_format)
    if schema is not None and body.json_schema is not None:
        raise refused("json_schema", "both", "response_format has one too", "Send one of the two.")
    fields = task_fields(body) | {
        "max_tokens": body.max_tokens,
        "json_schema": schema if schema is not None else body.json_schema,
    }
    if body.logprobs is not None and body.logprobs is not False:
        fields |= {"logprobs": True, "top_logprobs": 0 if body.logprobs is True else body.logprobs}
    tasks = []
    for prompt in prompts:
        text = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": prompt}
        task = TaskRequest(workload="completion", **text, **fields)
        require_sound(task)
        tasks.append(task)
    return tasks
