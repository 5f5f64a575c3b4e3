"""``/v1/journal/tail``: the newest events."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ...core.journal.listing import events_in, newest
from ..operations import Call, Resource, operation, resource

#: frames that one answer of a follower holds at most
_FRAMES = 256


class TailQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    #: only this stream, such as ``task:<id>`` or ``pool:<id>``
    stream: Annotated[str, Meta(max_length=256)] = ""
    #: all events of the frames after this one instead of the newest: ``last_frame`` of the answer before
    after_frame: Annotated[int, Meta(ge=0, le=9_007_199_254_740_991)] | None = None


class TailBody(msgspec.Struct, frozen=True):
    """Events in the order of their seq, without what was said."""

    events: list[dict[str, Any]]
    #: for ``after_frame``
    last_frame: int


@resource("/v1/journal/tail", tag="journal")
class JournalTailResource(Resource):
    """The end of the journal."""

    @operation("Show the newest events.")
    async def on_get(self, call: Call, query: TailQuery) -> TailBody:
        """Committed events with their envelopes; poll with ``after_frame`` to follow the journal."""
        store, last = self.services.journal.store, self.services.journal.committed_frame

        def read() -> TailBody:
            if query.after_frame is None:
                return TailBody(newest(store, last, limit=query.limit, stream=query.stream), last)
            first = query.after_frame + 1
            until = min(last, query.after_frame + _FRAMES)
            events = [
                event
                for frame in (store.frames_at(range(first, until + 1)) if until >= first else [])
                for event in events_in(frame)
                if not query.stream or event.get("stream") == query.stream
            ]
            return TailBody(events, max(until, query.after_frame))

        return await asyncio.to_thread(read)
