"""``/v1/chat/completions``: OpenAI's chat completions, through the same queue and journal as every task (API-2)."""

from __future__ import annotations

import msgspec

from ...core.errors import InternalError, OrchError, StreamError
from ...core.events.task import TaskEnded
from ...core.services.tasks import TaskInfo
from ..operations import Answer, Call, Resource, operation, resource
from ..problems import STATUS_OF_CODE
from ..render.openai_chat import ChatRenderer, completion, usage_of
from ..resources.tasks import SUBMIT_ERRORS
from ..streaming import EVENT_STREAM, STREAM_HEADERS, StreamPlan
from ..waiting import wait_for_end
from ..workloads import idempotency_key
from .chat_request import ChatCompletionRequest, ignored_parameters, task_of


class ChatMessageBody(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said."""

    role: str
    content: str
    refusal: str | None = None


class ChoiceBody(msgspec.Struct, frozen=True, kw_only=True):
    """One answer."""

    index: int
    message: ChatMessageBody
    logprobs: None = None
    finish_reason: str


class UsageBody(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that it took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class ChatCompletionBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's ``chat.completion``."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChoiceBody]
    usage: UsageBody


class TaskFailedError(StreamError):
    """The task behind a completion failed: under its own code, with that code's status where it has one."""

    def __init__(self, code: str, message: str, *, retriable: bool, task_id: str) -> None:
        super().__init__(
            message or code,
            remedy=f"GET /v1/tasks/{task_id} tells more." + (" Send the request again." if retriable else ""),
            retry_after_ms=1000 if retriable else None,
            task_id=task_id,
        )
        self.code = code or InternalError.code  # type: ignore[misc]
        self.retriable = retriable  # type: ignore[misc]
        known = STATUS_OF_CODE.get(self.code, 500)
        self.status = known if known != 500 or not retriable else 503  # type: ignore[misc]


@resource("/v1/chat/completions", tag="openai", shape="openai")
class ChatCompletionsResource(Resource):
    """Chat completions."""

    @operation(
        "Complete a chat.",
        errors=SUBMIT_ERRORS,
        request_headers={
            "Idempotency-Key": "The same key with the same body attaches to the task that it admitted (24 h)."
        },
        answer_headers={
            "x-task-id": "The task behind the completion; its stream can be resumed under /v1/tasks.",
            "X-Ignored-Parameters": "Parameters of the request that had no effect.",
        },
    )
    async def on_post(self, call: Call, body: ChatCompletionRequest, raw: bytes) -> ChatCompletionBody | Answer:
        """Text, streaming (`stream: true`, as server-sent events) or not. What is not served is refused by name where it
        would change the answer, else named in `X-Ignored-Parameters`."""
        request = task_of(body)
        ignored = ignored_parameters(raw)
        streams = bool(body.stream)
        admission = await self.services.admission.submit(
            request,
            call.caller,
            correlation=call.correlation,
            idempotency_key=idempotency_key(call),
            api="openai.chat",
            durable=False,
        )
        task_id: str = admission.task_id
        headers = {"x-task-id": task_id}
        if ignored:
            headers["X-Ignored-Parameters"] = ", ".join(ignored)
        created = self.context.now_ns() // 1_000_000_000
        if streams:
            return await self._stream(call, body, task_id, created, headers)
        # The end is durable only after the admission is, so the answer waits for both.
        info = await wait_for_end(self.services, call, task_id)
        if info.state == "failed":
            raise failure_of_info(info)
        usage = usage_of(info.usage.prompt_tokens, info.usage.completion_tokens, info.usage.cached_tokens)
        said = completion(
            completion_id=f"chatcmpl-{task_id}",
            model=body.model,
            created=created,
            text=info.text or "",
            reason=info.finish_reason,
            usage=usage,
        )
        return Answer(said, headers=headers)

    async def _stream(
        self, call: Call, body: ChatCompletionRequest, task_id: str, created: int, headers: dict[str, str]
    ) -> Answer:
        services, caller = self.services, call.caller
        items = await services.streams.open(
            task_id,
            owner=caller.owner,
            after=None,
            heartbeat_ms=self.context.settings.streams.heartbeat_ms,
            progress=True,
        )
        services.readers.attach(task_id)

        def closed(gone: bool) -> None:
            services.readers.detach(task_id, caller, gone=gone)

        options = body.stream_options
        renderer = ChatRenderer(
            completion_id=f"chatcmpl-{task_id}",
            model=body.model,
            created=created,
            include_usage=options is not None and options.include_usage,
            correlation=call.correlation,
            failure=failure_of_event,
        )
        return Answer(
            headers={**headers, **STREAM_HEADERS}, media_type=EVENT_STREAM, stream=StreamPlan(items, renderer, closed)
        )


def failure_of_info(info: TaskInfo) -> OrchError:
    """The error behind a failed task."""
    problem = info.error
    if problem is None:
        return InternalError("the task failed without a reason")
    return TaskFailedError(problem.code, problem.message, retriable=problem.retriable, task_id=info.task_id)


def failure_of_event(event: TaskEnded) -> OrchError:
    """The error behind a failed end."""
    return TaskFailedError(event.code, event.message, retriable=event.retriable, task_id=event.task_id)
