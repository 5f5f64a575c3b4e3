"""Drives one stream: everything that is ready goes out in one write, and nothing is fetched that the reader cannot take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import msgspec

from ..core.errors import InternalError, JournalUnavailableError, OrchError
from ..core.journal.live import Segment
from ..core.services.streams import LiveItems
from .connection import Connection, Send
from .problems import told

EVENT_STREAM = "text/event-stream"
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_log = logging.getLogger("llama_orch.api")


def stopping() -> JournalUnavailableError:
    """What is told to who reads a stream, or waits for an answer, when the server stops: tasks outlive that."""
    return JournalUnavailableError(
        "the server stops",
        retry_after_ms=1000,
        remedy="When it is back, follow the task after the last id that was seen, or send the request again: with the "
        "same Idempotency-Key it is the same task.",
    )


class Renderer(Protocol):
    """A pure rendering of a task's stream."""

    def render(self, items: Sequence[Any]) -> tuple[bytes, bool]:
        """Bytes for items that became ready together, and whether the stream ends with them."""
        ...

    def broken(self, error: OrchError) -> bytes:
        """Bytes that tell that the transport breaks off; the task is not ended by it."""
        ...


class StreamPlan(msgspec.Struct, frozen=True):
    """A stream that begins once its headers are out."""

    items: AsyncIterator[Sequence[Any]]
    renderer: Renderer
    #: called once, with whether the reader left before the end
    closed: Callable[[bool], None]
    #: written at once, before anything of the task is there
    opening: bytes = b""


def _direct(
    render: Callable[[Sequence[Any]], tuple[bytes, bool]], connection: Connection
) -> Callable[[list[Segment]], bool]:
    """Writes segments the moment they are committed, while the reader takes them without waiting."""

    def write(segments: list[Segment]) -> bool:
        if not connection.writable():
            return False
        data, _ = render(segments)
        if data:
            connection.write_now(data)
        return True

    return write


async def drive(plan: StreamPlan, connection: Connection, send: Send) -> None:
    """Send a stream until its end, or until the reader leaves."""
    task = asyncio.current_task()
    assert task is not None
    renderer = plan.renderer
    render, write = renderer.render, connection.write
    final = b""
    try:
        connection.begin()
        connection.on_lost(task.cancel)
        if plan.opening:
            await write(plan.opening)
        if isinstance(plan.items, LiveItems):
            plan.items.fast = _direct(render, connection)
        async for items in plan.items:
            data, last = render(items)
            if last:
                final = data
                break
            if data:
                await write(data)
    except asyncio.CancelledError:
        task.uncancel()
        if not connection.lost:
            # The server stops: the reader comes back with its last id.
            final = renderer.broken(stopping())
    except OrchError as error:
        final = renderer.broken(told(error))
    except Exception:
        _log.exception("a stream broke off")
        final = renderer.broken(InternalError("a defect in the server broke this stream off"))
    finally:
        connection.on_lost(None)
        try:
            close = getattr(plan.items, "aclose", None)
            if close is not None:
                await close()
        finally:
            plan.closed(connection.lost)
    if not connection.lost:
        await send({"type": "http.response.body", "body": final, "more_body": False})
