"""From a request of a compatible API to its task, and to a reader of it: the same for all of them (API-2, STR-6)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from ...core.errors import OrchError
from ...core.services.container import Services
from ...core.types import TaskRequest
from ..budget_headers import budget_headers
from ..conversations import Conversation
from ..operations import Answer, Call, Resource
from ..streaming import EVENT_STREAM, STREAM_HEADERS, Renderer, StreamPlan


class Submitted(msgspec.Struct, frozen=True, gc=False):
    """The task behind a request."""

    task_id: str
    #: Unix time of its admission, seconds: every reader of the task is told the same
    created: int
    #: it was admitted before, under the same key
    attached: bool
    #: headers that say what is left of the budgets
    budget: dict[str, str] = {}


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name the API's own parameters instead of a task's fields.

    :param names: the API's name of a field.
    """
    try:
        yield
    except OrchError as error:
        if error.field is not None and error.field in names:
            error.field = names[error.field]
        raise


async def submit(
    resource: Resource,
    call: Call,
    request: TaskRequest,
    *,
    api: str,
    conversation: Conversation,
    idempotency_key: str | None,
    shown: dict[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> Submitted:
    """Admit the task, or attach to the one that the key names. Its acceptance is durable before its end is.

    :param names: the API's name of a field of tasks, for errors.
    :raises OrchError: why it was refused.
    """
    services = resource.services
    if conversation.session_id is not None:
        request.session_id = conversation.session_id
    with named(names or {}):
        admission = await services.admission.submit(
            request,
            call.caller,
            correlation=call.correlation,
            idempotency_key=idempotency_key,
            api=api,
            durable=False,
            shown=shown,
            affinity=conversation.affinity,
        )
    created = await created_s(services, call, admission.task_id)
    budget = budget_headers(services, call.caller, request.session_id)
    return Submitted(admission.task_id, created, admission.attached, budget)


async def created_s(services: Services, call: Call, task_id: str) -> int:
    """Unix time of a task's admission, seconds."""
    state = services.journal.task(task_id)
    if state is not None:
        return int(state.admitted_ns // 1_000_000_000)
    info = await services.tasks.get(task_id, call.caller, text=False)
    return info.created_ms // 1000


async def follow(resource: Resource, call: Call, task_id: str) -> AsyncIterator[Sequence[Any]]:
    """A task's stream from its start, whose reader counts from now on, until it is detached.

    :raises OrchError: it cannot be read; nobody counts then.
    """
    services = resource.services
    services.readers.attach(task_id)
    try:
        return await services.streams.open(
            task_id,
            owner=call.caller.owner,
            after=None,
            heartbeat_ms=resource.context.settings.streams.heartbeat_ms,
            progress=True,
        )
    except BaseException:
        services.readers.detach(task_id, call.caller, gone=False)
        raise


async def streamed(
    resource: Resource, call: Call, task_id: str, renderer: Renderer, headers: Mapping[str, str]
) -> Answer:
    """The answer that streams one task."""
    items = await follow(resource, call, task_id)
    readers, caller = resource.services.readers, call.caller

    def closed(gone: bool) -> None:
        readers.detach(task_id, caller, gone=gone)

    return Answer(
        headers={**headers, **STREAM_HEADERS}, media_type=EVENT_STREAM, stream=StreamPlan(items, renderer, closed)
    )
