"""``/v1/chat/completions``: OpenAI's chat completions, through the same queue and journal as every task (API-2)."""

from __future__ import annotations

from typing import Any

import msgspec

from ...core.errors import BudgetExhaustedError
from ..budget_headers import BUDGET_HELP
from ..conversations import CONVERSATION_HELP, conversation_of
from ..operations import Answer, Call, Resource, operation, resource
from ..render.openai_chat import ChatRenderer, completion
from ..resources.tasks import SUBMIT_ERRORS
from ..waiting import wait_for_end
from ..workloads import idempotency_key
from .chat_request import KNOWN, NAMES, ChatCompletionRequest, ignored_in_messages, task_of
from .failures import failure_of_event, failure_of_info
from .parameters import IGNORED_HELP, STRICT_HELP, ignored_parameters, name_or_refuse
from .sampling_request import WITHIN
from .submission import streamed, submit

#: headers that every route of this API takes and gives
REQUEST_HEADERS = {
    "Idempotency-Key": "The same key with the same body attaches to the task that it admitted (24 h).",
    **CONVERSATION_HELP,
    **STRICT_HELP,
}
ANSWER_HEADERS = {
    "x-task-id": "The task behind the answer; its stream can be resumed under /v1/tasks.",
    **IGNORED_HELP,
    **BUDGET_HELP,
}


class FunctionBody(msgspec.Struct, frozen=True, kw_only=True):
    """The function that a tool call calls."""

    name: str
    #: JSON as the model wrote it
    arguments: str


class ToolCallBody(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model wants made."""

    id: str
    type: str
    function: FunctionBody


class ChatMessageBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the model said."""

    role: str
    content: str | None
    refusal: str | None
    #: what it thought before, where its engine tells that apart
    reasoning_content: str = ""
    tool_calls: list[ToolCallBody] = []


class ChoiceBody(msgspec.Struct, frozen=True, kw_only=True):
    """One answer."""

    index: int
    message: ChatMessageBody
    logprobs: dict[str, Any] | None
    finish_reason: str


class UsageBody(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that it took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]


class ChatCompletionBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's ``chat.completion``."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChoiceBody]
    usage: UsageBody


@resource("/v1/chat/completions", tag="openai", shape="openai")
class ChatCompletionsResource(Resource):
    """Chat completions."""

    @operation(
        "Complete a chat.",
        errors=(*SUBMIT_ERRORS, BudgetExhaustedError),
        request_headers=REQUEST_HEADERS,
        answer_headers=ANSWER_HEADERS,
    )
    async def on_post(self, call: Call, body: ChatCompletionRequest, raw: bytes) -> ChatCompletionBody | Answer:
        """Text, thoughts and tool calls, streaming (`stream: true`, as server-sent events) or not. What is not served is
        refused by name where it would change the answer, else named in `X-Ignored-Parameters`."""
        request = task_of(body)
        ignored = ignored_parameters(raw, KNOWN, ignored_in_messages(body.messages), WITHIN)
        headers = name_or_refuse(call, ignored, strict=self.context.settings.api.strict_parameters)
        task = await submit(
            self,
            call,
            request,
            api="openai.chat",
            conversation=conversation_of(
                call, self.services, session_id=body.session_id, hint=body.prompt_cache_key or ""
            ),
            idempotency_key=idempotency_key(call),
            names=NAMES,
        )
        headers |= {"x-task-id": task.task_id, **task.budget}
        if body.stream:
            options = body.stream_options
            renderer = ChatRenderer(
                task_id=task.task_id,
                model=body.model,
                created=task.created,
                include_usage=options is not None and options.include_usage,
                correlation=call.correlation,
                failure=failure_of_event,
                n=body.n or 1,
                logprobs=bool(body.logprobs),
            )
            return await streamed(self, call, task.task_id, renderer, headers)
        # The end is durable only after the admission is, so the answer waits for both.
        info = await wait_for_end(self.services, call, task.task_id)
        if info.state == "failed":
            raise failure_of_info(info)
        said = completion(info, model=body.model, created=task.created, logprobs=bool(body.logprobs))
        return Answer(said, headers=headers)
