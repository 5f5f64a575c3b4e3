"""``/v1/tasks/{id}/stream``: a task's stream as server-sent events (STR-1, STR-2)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ...core.errors import JournalUnavailableError, NotFoundError, ResumeLostError
from ..operations import Answer, Call, Resource, operation, resource
from ..render.sse import SseRenderer
from ..streaming import EVENT_STREAM, STREAM_HEADERS, StreamPlan


class StreamQuery(msgspec.Struct, frozen=True, kw_only=True, rename={"after": "from"}, forbid_unknown_fields=True):
    """Where a stream begins and what it shows."""

    #: id of the last frame seen, as Last-Event-ID for clients that cannot set headers; it wins over the header
    after: Annotated[str, Meta(max_length=64)] = ""
    #: while the task waits, tell its place in ``queued`` events, which have no id; else in comments
    progress: bool = False
    #: while the task lives, tell how things are in ``metrics`` events, which have no id
    metrics: bool = False


@resource("/v1/tasks/{task_id}/stream", tag="tasks")
class TaskStreamResource(Resource):
    """One task's stream."""

    @operation(
        "Follow a task's stream.",
        media_type=EVENT_STREAM,
        errors=(NotFoundError, ResumeLostError, JournalUnavailableError),
        request_headers={
            "Last-Event-ID": "Id of the last frame seen: the stream goes on after it, without gap or repetition."
        },
    )
    async def on_get(self, call: Call, query: StreamQuery, task_id: str) -> Answer:
        """Events `started`, `token` (one per token), then exactly one `end` or `error`; see the reference of events.

        With `metrics=1` there are `metrics` events between them, as long as there is nothing better to send. Any number of
        readers may follow a task, at any time, also after it ended. An `error` without an id is of the
        connection, not of the task: come back with the last id.
        """
        after = query.after or call.header("Last-Event-ID") or None
        services, caller = self.services, call.caller
        items = await services.streams.open(
            task_id,
            owner=caller.owner,
            after=after,
            heartbeat_ms=self.context.settings.streams.heartbeat_ms,
            progress=True,
            metrics_ms=self.context.settings.streams.metrics_ms if query.metrics else 0,
        )
        services.readers.attach(task_id)

        def closed(gone: bool) -> None:
            services.readers.detach(task_id, caller, gone=gone)

        renderer = SseRenderer(events_while_queued=query.progress)
        plan = StreamPlan(items, renderer, closed)
        return Answer(headers=STREAM_HEADERS, media_type=EVENT_STREAM, stream=plan)
