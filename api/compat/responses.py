"""``/v1/responses``: OpenAI's Responses API, through the same queue and journal as every task (API-2)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ...core.errors import (
    BudgetExhaustedError,
    ConflictError,
    InvalidParamsError,
    JournalUnavailableError,
    NotFoundError,
)
from ...core.services.responses import API
from ..conversations import conversation_of
from ..operations import Answer, Call, Resource, operation, resource
from ..render.responses import ResponseRenderer
from ..resources.tasks import SUBMIT_ERRORS
from ..streaming import EVENT_STREAM, STREAM_HEADERS, StreamPlan
from ..waiting import wait_for_end
from ..workloads import idempotency_key
from .failures import failure_of_info
from .openai_chat import ANSWER_HEADERS, REQUEST_HEADERS
from .parameters import ignored_parameters, name_or_refuse
from .responses_request import KNOWN, NAMES, WITHIN, ResponsesRequest, asked
from .responses_stored import Stored, as_it_stands, conversation_before, input_items, stored
from .submission import created_s, follow, submit

_STORED_ERRORS = (NotFoundError, JournalUnavailableError)


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's ``response``."""

    id: str
    object: str
    #: Unix time, seconds
    created_at: int
    #: queued, in_progress, completed, incomplete, cancelled or failed
    status: str
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    model: str
    #: items of type ``reasoning``, ``message`` and ``function_call``
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: str


class DeletedBody(msgspec.Struct, frozen=True, kw_only=True):
    """A response that is not shown any more."""

    id: str
    object: str = "response"
    deleted: bool = True


class InputItemsBody(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the items that a response was sent."""

    object: str = "list"
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class ResponseQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a stored response is read."""

    #: as the events of its stream
    stream: bool = False
    #: of a stream: the last ``sequence_number`` that was seen; only what came after it is sent
    starting_after: Annotated[int, Meta(ge=0)] | None = None
    #: accepted; log-probabilities are shown when the response was asked for them
    include: Annotated[str, Meta(max_length=512)] = ""
    include_array: Annotated[str, Meta(max_length=512)] = msgspec.field(default="", name="include[]")
    #: accepted; nothing is padded
    include_obfuscation: bool = False


class ItemsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of the items a page holds."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    #: id of the last item of the page before
    after: Annotated[str, Meta(max_length=128)] = ""
    #: accepted, without effect
    include: Annotated[str, Meta(max_length=512)] = ""
    include_array: Annotated[str, Meta(max_length=512)] = msgspec.field(default="", name="include[]")


async def _streamed(resource: Resource, call: Call, one: Stored, headers: dict[str, str], after: int = -1) -> Answer:
    """The answer that streams one response."""
    task_id = one.task_id
    shown = one.shown(await created_s(resource.services, call, task_id))
    renderer = ResponseRenderer(shown, correlation=call.correlation, after=after)
    items = await follow(resource, call, task_id)
    readers, caller = resource.services.readers, call.caller

    def closed(gone: bool) -> None:
        readers.detach(task_id, caller, gone=gone)

    plan = StreamPlan(items, renderer, closed, renderer.opening())
    return Answer(headers={**headers, **STREAM_HEADERS}, media_type=EVENT_STREAM, stream=plan)


@resource("/v1/responses", tag="openai", shape="openai")
class ResponsesResource(Resource):
    """Responses."""

    @operation(
        "Create a response.",
        errors=(*SUBMIT_ERRORS, BudgetExhaustedError, NotFoundError),
        request_headers=REQUEST_HEADERS,
        answer_headers=ANSWER_HEADERS,
    )
    async def on_post(self, call: Call, body: ResponsesRequest, raw: bytes) -> ResponseBody | Answer:
        """Text, thoughts and function calls: in one piece, as a stream of events (`stream: true`), or in the background
        (`background: true`), to be read, followed or cancelled under its id. `previous_response_id` goes on from a stored
        response. What is not served is refused by name where it would change the answer, else named in
        `X-Ignored-Parameters`."""
        earlier = await conversation_before(self, call, body.previous_response_id)
        wanted = asked(body, earlier)
        ignored = ignored_parameters(raw, KNOWN, wanted.ignored, WITHIN)
        headers = name_or_refuse(call, ignored, strict=self.context.settings.api.strict_parameters)
        task = await submit(
            self,
            call,
            wanted.task,
            api=API,
            conversation=conversation_of(
                call, self.services, session_id=body.session_id, hint=body.prompt_cache_key or ""
            ),
            idempotency_key=idempotency_key(call),
            shown=wanted.shown,
            names=NAMES,
        )
        headers |= {"x-task-id": task.task_id, **task.budget}
        services = self.services
        # A repetition shows what the first one asked for.
        admitted, kept = await services.tasks.request_of(task.task_id, call.caller)
        if admitted.api != API:
            field = "task_id" if idempotency_key(call) is None else "Idempotency-Key"
            msg = f"this {field} was used for a request of another API, whose task is no response"
            raise ConflictError(msg, field=field, got=admitted.api, remedy="Send another one.")
        one = Stored(task.task_id, admitted, kept)
        if body.stream:
            return await _streamed(self, call, one, headers)
        if not body.background:
            # The end is durable only after the admission is, so the answer waits for both.
            info = await wait_for_end(services, call, task.task_id)
            if info.state == "failed":
                raise failure_of_info(info)
        else:
            await services.journal.synced(services.journal.head.next_seq)
        return Answer(await as_it_stands(self, call, one), headers=headers)


@resource("/v1/responses/{response_id}", tag="openai", shape="openai")
class ResponseResource(Resource):
    """One stored response."""

    @operation("Get a response.", errors=_STORED_ERRORS, answer_headers={"x-task-id": "The task behind it."})
    async def on_get(self, call: Call, query: ResponseQuery, response_id: str) -> ResponseBody | Answer:
        """As it stands; with `stream=true` its events from the start, or after `starting_after`. The same numbers name the
        same events each time, also after a crash of the server."""
        one = await stored(self, call, response_id)
        headers = {"x-task-id": one.task_id}
        if query.stream:
            after = query.starting_after if query.starting_after is not None else -1
            return await _streamed(self, call, one, headers, after)
        if query.starting_after is not None:
            msg = "starting_after: it says where a stream goes on"
            raise InvalidParamsError(msg, field="starting_after", got=query.starting_after, remedy="Send stream=true.")
        return Answer(await as_it_stands(self, call, one), headers=headers)

    @operation("Delete a response.", errors=_STORED_ERRORS)
    async def on_delete(self, call: Call, response_id: str) -> DeletedBody:
        """It is not shown and not gone on from any more; one that runs is cancelled. The journal keeps its task, and who
        deleted the response when."""
        one = await stored(self, call, response_id)
        await self.services.responses.delete(one.task_id, call.caller, correlation=call.correlation)
        return DeletedBody(id=response_id)


@resource("/v1/responses/{response_id}/cancel", tag="openai", shape="openai")
class ResponseCancelResource(Resource):
    """The cancel of a response."""

    @operation("Cancel a response.", errors=_STORED_ERRORS)
    async def on_post(self, call: Call, response_id: str) -> ResponseBody | Answer:
        """Idempotent: the response once the cancel is durable, or as it ended before."""
        one = await stored(self, call, response_id)
        await self.services.cancel.cancel(one.task_id, call.caller, reason="client", correlation=call.correlation)
        return Answer(await as_it_stands(self, call, one), headers={"x-task-id": one.task_id})


@resource("/v1/responses/{response_id}/input_items", tag="openai", shape="openai")
class ResponseItemsResource(Resource):
    """The items that a response was sent."""

    @operation("List a response's input items.", errors=_STORED_ERRORS)
    async def on_get(self, call: Call, query: ItemsQuery, response_id: str) -> InputItemsBody:
        """Those of its own request, newest first unless `order=asc`, in pages."""
        items: list[dict[str, Any]] = input_items(await stored(self, call, response_id))
        if query.order == "desc":
            items.reverse()
        if query.after:
            at = next((n for n, item in enumerate(items) if item["id"] == query.after), None)
            if at is None:
                msg = f"after: there is no item {query.after!r} in {response_id}"
                raise InvalidParamsError(msg, field="after", got=query.after, expected="the last_id of a page before")
            items = items[at + 1 :]
        page = items[: query.limit]
        return InputItemsBody(
            data=page,
            first_id=page[0]["id"] if page else "",
            last_id=page[-1]["id"] if page else "",
            has_more=len(items) > len(page),
        )
