"""Stored responses: what their owners want forgotten."""

from __future__ import annotations

from ..registry import event


@event("response.deleted", stream="response", key="task_id", durable=True)
class ResponseDeleted:
    """A stored response is not shown any more; the journal keeps its task."""

    #: whose response it was
    task_id: str
    owner: str
