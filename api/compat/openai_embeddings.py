"""``/v1/embeddings``: OpenAI's embeddings; all inputs of a request are one task (API-2)."""

from __future__ import annotations

import base64
import sys
from array import array
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from ...core.errors import BudgetExhaustedError, InternalError, InvalidParamsError, PoolUnreadyError
from ...core.types import Name, PlacementRequest, TaskRequest, Text, TokenId, Uuid
from ..conversations import conversation_of
from ..operations import Answer, Call, Resource, operation, resource
from ..resources.tasks import SUBMIT_ERRORS
from ..waiting import wait_for_end
from ..workloads import idempotency_key, require_sound
from .failures import failure_of_info
from .openai_chat import ANSWER_HEADERS, REQUEST_HEADERS
from .parameters import fields_of, ignored_parameters, name_or_refuse
from .sampling_request import priority_of
from .submission import named, submit

#: most inputs of one request
INPUTS: Final = 2048
_Ids = Annotated[list[TokenId], Meta(max_length=1_000_000)]


class EmbeddingRequest(Struct, kw_only=True, omit_defaults=True):
    """OpenAI's parameters, and our own beside them."""

    model: Name
    #: a text, texts, token ids, or lists of token ids
    input: Text | Annotated[list[Text | TokenId | _Ids], Meta(min_length=1, max_length=1_000_000)]
    #: ``base64`` = little-endian float32
    encoding_format: Literal["float", "base64"] = "float"
    #: length of the vectors, for models that can shorten them
    dimensions: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    #: a number as vLLM and LiteLLM take it (above 0 = batch), or our word for it
    priority: int | Literal["interactive", "batch"] | None = None
    # --- our own ---
    task_id: Uuid | None = None
    session_id: Uuid | None = None
    engine: str | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | None = None
    cancel_on_disconnect: bool | None = None
    placement: PlacementRequest | None = None


KNOWN: Final = fields_of(EmbeddingRequest)
#: OpenAI's names of what errors name by a task's fields
NAMES: Final = {"model_ref": "model", "inputs": "input", "workload": "model"}


class EmbeddingBody(Struct, frozen=True, kw_only=True):
    """The vector of one input."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingUsageBody(Struct, frozen=True, kw_only=True):
    """Tokens that it took."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsBody(Struct, frozen=True, kw_only=True):
    """OpenAI's list of embeddings."""

    object: str
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingUsageBody


def encoded(vector: list[float]) -> str:
    """A vector as base64 of little-endian float32."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


@resource("/v1/embeddings", tag="openai", shape="openai")
class EmbeddingsResource(Resource):
    """Embeddings."""

    @operation(
        "Embed texts.",
        errors=(*SUBMIT_ERRORS, BudgetExhaustedError),
        request_headers=REQUEST_HEADERS,
        answer_headers=ANSWER_HEADERS,
    )
    async def on_post(self, call: Call, body: EmbeddingRequest, raw: bytes) -> EmbeddingsBody | Answer:
        """One vector per input. Token ids are taken where the engine can tell their text and reads it back as the same ids."""
        headers = name_or_refuse(
            call, ignored_parameters(raw, KNOWN), strict=self.context.settings.api.strict_parameters
        )
        with named(NAMES):
            request = TaskRequest(
                workload="embedding",
                model_ref=body.model,
                inputs=await self._texts(call, body),
                dimensions=body.dimensions,
                priority=priority_of(body.priority),
                task_id=body.task_id,
                engine=body.engine,
                deadline_ms=body.deadline_ms,
                cancel_on_disconnect=body.cancel_on_disconnect,
                placement=body.placement,
            )
            require_sound(request)
        task = await submit(
            self,
            call,
            request,
            api="openai.embeddings",
            conversation=conversation_of(call, self.services, session_id=body.session_id),
            idempotency_key=idempotency_key(call),
            names=NAMES,
        )
        headers |= {"x-task-id": task.task_id, **task.budget}
        info = await wait_for_end(self.services, call, task.task_id)
        if info.state == "failed":
            raise failure_of_info(info)
        if info.embeddings is None:
            raise without_result(info.state)
        wants_text = body.encoding_format == "base64"
        data: list[dict[str, Any]] = [
            {"object": "embedding", "index": at, "embedding": encoded(vector) if wants_text else vector}
            for at, vector in enumerate(info.embeddings)
        ]
        usage = {"prompt_tokens": info.usage.prompt_tokens, "total_tokens": info.usage.prompt_tokens}
        said = {"object": "list", "data": data, "model": body.model, "usage": usage}
        return Answer(said, headers=headers)

    async def _texts(self, call: Call, body: EmbeddingRequest) -> list[str]:
        """The inputs as texts.

        :raises InvalidParamsError: they are mixed or too many, or token ids that no text stands for.
        """
        given = body.input
        if isinstance(given, str):
            return [given]
        kind = type(given[0])
        for at, one in enumerate(given):
            if type(one) is not kind:
                msg = f"input.{at}: texts, token ids and lists of token ids cannot be mixed"
                raise InvalidParamsError(msg, field=f"input.{at}", got=type(one).__name__, expected=kind.__name__)
        if kind is int:
            return [await self._text(call, body.model, "input", [one for one in given if isinstance(one, int)])]
        if len(given) > INPUTS:
            msg = f"input: got {len(given)} inputs, at most {INPUTS} are taken at once"
            raise InvalidParamsError(msg, field="input", got=len(given), expected=f"at most {INPUTS} inputs")
        return [
            one if isinstance(one, str) else await self._text(call, body.model, f"input.{at}", one)
            for at, one in enumerate(given)
            if not isinstance(one, int)
        ]

    async def _text(self, call: Call, model: str, where: str, ids: list[int]) -> str:
        """The text that the ids stand for, if the engine reads it as these very ids."""
        call.caller.require_model(model)
        group = self.services.admission.group_of(model)
        tokens = self.services.tokens
        with named({"tokens": where}):
            text: str = await tokens.detokenize(group, ids)
        again = await tokens.tokenize(group, text, add_special=False, parse_special=True)
        if again != ids:
            msg = f"{where}: these token ids are not how the model's tokenizer writes their text"
            remedy = "Send the text. Special tokens are added by the engine."
            raise InvalidParamsError(msg, field=where, got=f"{len(ids)} token ids", remedy=remedy)
        return text


def without_result(state: str) -> PoolUnreadyError | InternalError:
    """The error for a task that ended without vectors or scores."""
    if state == "cancelled":
        msg = "the task was cancelled before it had a result"
        return PoolUnreadyError(msg, remedy="Send the request again.", retry_after_ms=1000)
    return InternalError("the task ended without a result")
