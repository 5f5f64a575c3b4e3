"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's Messages API, through the one queue and journal (API-2)."""

from __future__ import annotations

from typing import Any

import msgspec

from ...core.errors import (
    BudgetExhaustedError,
    InvalidParamsError,
    ModelNotFoundError,
    OrchError,
    PoolUnreadyError,
    TaskCancelledError,
)
from ...core.events.task import TaskEnded
from ...core.services.abilities import needs_of
from ...core.services.bodies import body_of
from ..budget_headers import BUDGET_HELP
from ..conversations import CONVERSATION_HELP, conversation_of
from ..operations import Answer, Call, Resource, operation, resource
from ..render.anthropic import MessageRenderer, message
from ..resources.tasks import SUBMIT_ERRORS
from ..waiting import wait_for_end
from ..workloads import idempotency_key
from .failures import failure_of_event
from .messages_request import COUNTED, KNOWN, NAMES, WITHIN, Asked, CountRequest, MessagesRequest, asked
from .parameters import IGNORED_HELP, STRICT_HELP, ignored_parameters, name_or_refuse
from .spoken import spoken
from .submission import named, streamed, submit

_HEADERS = {
    "anthropic-version": "Accepted; there is one version.",
    "anthropic-beta": "Accepted; what it asks for beside the parameters below has no effect.",
    **STRICT_HELP,
}


class MessageUsageBody(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that it took."""

    #: of the prompt, without those that came from a cache
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: dict[str, int]


class MessageBody(msgspec.Struct, frozen=True, kw_only=True):
    """Anthropic's ``message``."""

    id: str
    type: str
    role: str
    model: str
    #: blocks of type ``thinking``, ``text`` and ``tool_use``
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None
    usage: MessageUsageBody


class TokenCountBody(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request, by the model's own tokenizer."""

    input_tokens: int


def failure_of(event: TaskEnded) -> OrchError:
    """The error behind an end that is no answer."""
    if event.outcome == "cancelled":
        return TaskCancelledError(f"task {event.task_id} was cancelled", task_id=event.task_id)
    return failure_of_event(event)


def _quieten(resource: Resource, call: Call, wanted: Asked) -> None:
    """Tell a model not to think that would do so by itself: who says nothing of thoughts does not ask for them."""
    if wanted.thinking.wanted or not call.caller.may_use(wanted.task.model_ref):
        return
    services = resource.services
    with named(NAMES):
        pools = services.journal.head.pools.serving(services.admission.group_of(wanted.task.model_ref))
    if any("reasoning" in pool.observed.abilities for pool in pools if pool.observed is not None):
        wanted.task.reasoning_effort = "none"


@resource("/v1/messages", tag="anthropic", shape="anthropic")
class MessagesResource(Resource):
    """Messages."""

    @operation(
        "Create a message.",
        errors=(*SUBMIT_ERRORS, BudgetExhaustedError, TaskCancelledError),
        request_headers={
            "Idempotency-Key": "The same key with the same body attaches to the task that it admitted (24 h).",
            **CONVERSATION_HELP,
            **_HEADERS,
        },
        answer_headers={
            "x-task-id": "The task behind the message; its stream can be resumed under /v1/tasks.",
            "request-id": "The request's correlation id.",
            **IGNORED_HELP,
            **BUDGET_HELP,
        },
    )
    async def on_post(self, call: Call, body: MessagesRequest, raw: bytes) -> MessageBody | Answer:
        """Text, thoughts and tool calls, streaming (`stream: true`, as server-sent events) or not. What is not served is
        refused by name where it would change the answer, else named in `X-Ignored-Parameters`."""
        wanted = asked(body)
        ignored = ignored_parameters(raw, KNOWN, wanted.ignored, WITHIN)
        headers = name_or_refuse(call, ignored, strict=self.context.settings.api.strict_parameters)
        _quieten(self, call, wanted)
        user = (body.metadata or {}).get("user_id")
        task = await submit(
            self,
            call,
            wanted.task,
            api="anthropic.messages",
            conversation=conversation_of(
                call, self.services, session_id=body.session_id, hint=user if isinstance(user, str) else ""
            ),
            idempotency_key=idempotency_key(call),
            names=NAMES,
        )
        headers |= {"x-task-id": task.task_id, "request-id": call.correlation, **task.budget}
        thinking = wanted.thinking
        if body.stream:
            renderer = MessageRenderer(
                task_id=task.task_id,
                model=body.model,
                thinking=thinking.wanted,
                omitted=thinking.omitted,
                correlation=call.correlation,
                failure=failure_of,
            )
            return await streamed(self, call, task.task_id, renderer, headers)
        # The end is durable only after the admission is, so the answer waits for both.
        await wait_for_end(self.services, call, task.task_id)
        batches, ended = await spoken(self.services, call.caller.owner, task.task_id)
        if ended.outcome != "completed":
            raise failure_of(ended)
        said = message(batches, ended, model=body.model, thinking=thinking.wanted, omitted=thinking.omitted)
        return Answer(said, headers=headers)


@resource("/v1/messages/count_tokens", tag="anthropic", shape="anthropic")
class CountTokensResource(Resource):
    """Tokens of messages."""

    @operation(
        "Count a message's tokens.",
        changes=False,
        errors=(ModelNotFoundError, PoolUnreadyError),
        request_headers=_HEADERS,
        answer_headers={"request-id": "The request's correlation id.", **IGNORED_HELP},
    )
    async def on_post(self, call: Call, body: CountRequest, raw: bytes) -> TokenCountBody | Answer:
        """Exact, by the tokenizer and the chat template of an engine that has the model loaded; 503 while there is none.
        Nothing is guessed, and nothing is queued."""
        wanted = asked(body)
        ignored = ignored_parameters(raw, COUNTED, wanted.ignored, WITHIN)
        headers = name_or_refuse(call, ignored, strict=self.context.settings.api.strict_parameters)
        _quieten(self, call, wanted)
        if "images" in needs_of(wanted.task):
            msg = "messages: the tokens of pictures are not known before an engine has read them"
            raise InvalidParamsError(msg, field="messages", got="a picture", remedy="Count the text alone.")
        services = self.services
        with named(NAMES):
            call.caller.require_model(body.model)
            group = services.admission.group_of(body.model)
        prompt = await services.tokens.prompt(group, body_of(wanted.task))
        ids = await services.tokens.tokenize(group, prompt, add_special=True, parse_special=True)
        return Answer(TokenCountBody(input_tokens=len(ids)), headers={**headers, "request-id": call.correlation})
