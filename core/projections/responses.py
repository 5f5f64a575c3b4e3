"""Stored responses that were deleted: about 100 bytes in memory for each."""

from __future__ import annotations

from typing import Any

from ..events.response import ResponseDeleted
from .projection import Projection, Recorded, on


class Responses(Projection):
    """Tasks whose responses are not shown any more."""

    name = "responses"

    def __init__(self) -> None:
        self.deleted: set[str] = set()

    @on(ResponseDeleted)
    def _deleted(self, record: Recorded) -> None:
        self.deleted.add(record.payload.task_id)

    def dump(self) -> Any:
        """Their ids, sorted."""
        return sorted(self.deleted)

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.deleted = set(data)
