"""The native stream: server-sent events `started`, `token`, `metrics`, `end`, `error` (STR-1, STR-4, STR-5).

Every frame of the task has an ``id: <epoch>.<ordinal>`` from which resume is exact; metrics, comments (heartbeats, the place
in the queue) and transport errors have none. A segment is rendered once for all its readers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ...core.entries import EntryBatch
from ...core.errors import OrchError
from ...core.events.task import TaskEnded, TaskStarted
from ...core.journal.live import Segment
from ...core.services.streams import Ended, Heartbeat, Metered, Queued, Started

_encode = msgspec.json.Encoder().encode
_count = itertools.count

#: under which a segment keeps these bytes
KIND: Final = "sse"
HEARTBEAT: Final = b": hb\n\n"


def frame(event: str, data: Any, frame_id: str = "") -> bytes:
    """One server-sent event with JSON data."""
    head = f"event: {event}\nid: {frame_id}\ndata: " if frame_id else f"event: {event}\ndata: "
    return b"%b%b\n\n" % (head.encode(), _encode(data))


def started_data(event: TaskStarted) -> dict[str, Any]:
    """Data of the ``started`` frame."""
    kv: dict[str, bool] = {}
    if event.kv_warmth:
        kv = {"kv_warmth": True}
    elif event.kv_lost:
        # What its session had elsewhere is read again here: nothing of a KV cache is ever moved (SES-2).
        kv = {"kv_warmth": False, "kv_migrated": False}
    return {
        "task_id": event.task_id,
        "queue_position": event.queue_position,
        "predicted_start_ms": event.predicted_start_ms,
        "queue_time_ms": event.queue_time_ms,
        "engine": event.engine,
        "engine_version": event.engine_version,
        "pool_id": event.pool_id,
        "replica_id": event.replica_id,
        "model_digest": event.model_digest,
        "sampler_profile_version": event.sampler_profile_version,
        "seed": event.seed,
        **kv,
    }


def end_data(event: TaskEnded) -> dict[str, Any]:
    """Data of the ``end`` frame."""
    return {
        "tokens_out": event.tokens_out,
        "decode_ms": event.decode_ms,
        "finish_reason": event.finish_reason,
        "usage": {
            "prompt_tokens": event.prompt_tokens,
            "cached_tokens": event.cached_tokens,
            "completion_tokens": event.tokens_out,
            "total_tokens": event.prompt_tokens + event.tokens_out,
        },
        "recovery_used": event.recovery_used,
    }


def error_data(event: TaskEnded, engine: str = "") -> dict[str, Any]:
    """Data of the ``error`` frame that ends a task."""
    return {
        "code": event.code or "INTERNAL",
        "message": event.message,
        "engine": engine,
        "retriable": event.retriable,
        "retry_after_ms": 1000 if event.retriable else 0,
        "tokens_out": event.tokens_out,
    }


def terminal(item: Ended) -> bytes:
    """The one last frame of a task."""
    frame_id = f"{item.epoch}.{item.ordinal}"
    if item.payload.outcome == "failed":
        return frame("error", error_data(item.payload, item.engine), frame_id)
    return frame("end", end_data(item.payload), frame_id)


def tokens(segment: Segment) -> bytes:
    """The ``token`` frames of a segment, one per entry."""
    batch = segment.batch
    head = b"event: token\nid: %d." % segment.epoch
    plain = batch.tokens is None and batch.choices is None and batch.channels is None and batch.logprobs is None
    if plain and batch.id_counts is None:
        ordinal, index = segment.first_ordinal, segment.first_token
        if batch.ids:
            if len(batch.texts) == 1:
                return b'%b%d\ndata: {"t":%b,"i":%d,"id":%d}\n\n' % (
                    head, ordinal, _encode(batch.texts[0]), index, batch.ids[0],
                )  # fmt: skip
            return b"".join([
                b'%b%d\ndata: {"t":%b,"i":%d,"id":%d}\n\n' % (head, o, _encode(text), i, token)
                for o, i, text, token in zip(_count(ordinal), _count(index), batch.texts, batch.ids)  # noqa: B905
            ])  # fmt: skip
        return b"".join([
            b'%b%d\ndata: {"t":%b,"i":%d}\n\n' % (head, o, _encode(text), i)
            for o, i, text in zip(_count(ordinal), _count(index), batch.texts)  # noqa: B905
        ])  # fmt: skip
    return _uneven(head, segment.first_ordinal, segment.first_token, batch)


def _uneven(head: bytes, ordinal: int, index: int, batch: EntryBatch) -> bytes:
    out = []
    for entry in batch.entries():
        data: dict[str, Any] = {"t": entry.text, "i": index}
        if len(entry.ids) == 1 and entry.tokens == 1:
            data["id"] = entry.ids[0]
        elif entry.ids:
            data["ids"] = entry.ids
        if entry.tokens != 1:
            data["n"] = entry.tokens
        if entry.logprob:
            # A decimal as its shortest string is a JSON number already.
            data["logprob"] = msgspec.Raw(entry.logprob.encode())
        if entry.choice:
            data["choice"] = entry.choice
        if entry.channel:
            data["channel"] = entry.channel
        out.append(b"%b%d\ndata: %b\n\n" % (head, ordinal, _encode(data)))
        ordinal += 1
        index += entry.tokens
    return b"".join(out)


class SseRenderer:
    """Renders one reader's stream; holds nothing that depends on the reader but where it came in.

    :param events_while_queued: tell a waiting task's place in ``queued`` events (without id), not in comments.
    """

    def __init__(self, *, events_while_queued: bool = False) -> None:
        self._events_while_queued = events_while_queued
        self._engine = ""

    def render(self, items: Sequence[Any]) -> tuple[bytes, bool]:
        """Bytes for items that became ready together, and whether the stream ends with them."""
        if len(items) == 1 and type(items[0]) is Segment:
            return self._segment(items[0]), False
        out: list[bytes] = []
        for item in items:
            kind = type(item)
            if kind is Segment:
                out.append(self._segment(item))
            elif kind is Started:
                self._engine = item.payload.engine
                out.append(frame("started", started_data(item.payload), f"{item.epoch}.{item.ordinal}"))
            elif kind is Ended:
                out.append(terminal(item))
                return b"".join(out), True
            elif kind is Heartbeat:
                out.append(HEARTBEAT)
            elif kind is Queued:
                out.append(self._queued(item))
            elif kind is Metered:
                out.append(frame("metrics", item.data))
        return b"".join(out), False

    def _queued(self, item: Queued) -> bytes:
        if self._events_while_queued:
            place = {"queue_position": item.position, "predicted_start_ms": item.predicted_start_ms}
            return frame("queued", place)
        return b": queued position=%d predicted_start_ms=%d\n\n" % (item.position, item.predicted_start_ms)

    @staticmethod
    def _segment(segment: Segment) -> bytes:
        known = segment.rendered.get(KIND)
        if known is None:
            known = segment.rendered[KIND] = tokens(segment)
        return known

    def broken(self, error: OrchError) -> bytes:
        """The transport breaks off; the task is not ended by it, so the frame has no id."""
        return frame("error", {**error.to_dict(), "engine": self._engine})
