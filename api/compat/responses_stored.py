"""Stored responses by their ids: what they asked for, and how they stand (API-2)."""

from __future__ import annotations

import uuid

import msgspec

from ...core.errors import ConflictError, NotFoundError
from ...core.events.task import TaskAdmitted
from ...core.services.bodies import RequestBody
from ...core.types import ChatMessage
from ..operations import Call, Resource
from ..render.responses import (
    Shown,
    blocks_of,
    ended_response,
    output_of,
    response_id,
    response_object,
    status_of,
)
from .responses_items import messages_of
from .responses_request import own_messages
from .spoken import spoken

_ENDED = frozenset({"completed", "cancelled", "failed"})


class Stored(msgspec.Struct, frozen=True):
    """A response and what it asked for."""

    task_id: str
    admitted: TaskAdmitted
    body: RequestBody

    def shown(self, created: int) -> Shown:
        """What it shows of its request."""
        asked = self.body.shown or {}
        return Shown(self.task_id, created, self.admitted.model_ref, asked.get("echo", {}))


def task_of(given: str) -> str:
    """The task behind a response's id. :raises NotFoundError: it is no id of a response."""
    digits = given.removeprefix("resp_")
    if digits != given and len(digits) == 32 and digits.isascii() and digits.isalnum() and digits == digits.lower():
        try:
            return str(uuid.UUID(digits))
        except ValueError:
            pass
    raise no_response(given)


def no_response(given: str) -> NotFoundError:
    """The error for an id without a stored response."""
    return NotFoundError(
        f"there is no stored response {given[:80]!r}",
        field="response_id",
        got=given[:80],
        remedy="Check the id. Responses that were deleted, or made with store: false, cannot be had again.",
    )


async def stored(resource: Resource, call: Call, given: str) -> Stored:
    """A stored response of the caller's. :raises NotFoundError: there is none of this id."""
    task_id = task_of(given)
    try:
        admitted, body = await resource.services.responses.get(task_id, call.caller)
    except NotFoundError:
        raise no_response(given) from None
    return Stored(task_id, admitted, body)


async def as_it_stands(resource: Resource, call: Call, one: Stored) -> dict[str, object]:
    """The ``response`` as it is now; what a running one says shows when it has ended, or in its stream."""
    services = resource.services
    info = await services.tasks.get(one.task_id, call.caller, text=False)
    shown = one.shown(info.created_ms // 1000)
    if info.state not in _ENDED:
        return response_object(shown, status_of(info.state))
    batches, ended = await spoken(services, call.caller.owner, one.task_id)
    return ended_response(shown, blocks_of(batches), ended)


async def conversation_before(resource: Resource, call: Call, given: str | None) -> list[ChatMessage]:
    """The messages of the response that one goes on from, and what it answered.

    :raises NotFoundError: it is not there (any more).
    :raises ConflictError: it has not ended, or failed.
    """
    if given is None:
        return []
    try:
        one = await stored(resource, call, given)
    except NotFoundError as error:
        error.field = "previous_response_id"
        raise
    info = await resource.services.tasks.get(one.task_id, call.caller, text=False)
    if info.state not in _ENDED or info.state == "failed":
        state = status_of(info.state) if info.state not in _ENDED else info.state
        msg = f"previous_response_id: {given} is {state}, and has nothing that could be gone on from"
        remedy = "Wait until it is completed, or cancel it." if info.state not in _ENDED else "Send its request again."
        raise ConflictError(msg, field="previous_response_id", got=given, remedy=remedy)
    batches, ended = await spoken(resource.services, call.caller.owner, one.task_id)
    asked = (one.body.shown or {}).get("echo", {})
    before = own_messages(list(one.body.messages or ()), asked.get("instructions"))
    said = output_of(one.task_id, blocks_of(batches), ended)
    return [*before, *messages_of(said, [], "output")]


def input_items(one: Stored) -> list[dict[str, object]]:
    """The items that a response was sent, in their order, each with an id."""
    digits = response_id(one.task_id).removeprefix("resp_")
    items = (one.body.shown or {}).get("input", [])
    return [{**item, "id": item.get("id") or f"item_{digits}{at:04x}"} for at, item in enumerate(items)]
