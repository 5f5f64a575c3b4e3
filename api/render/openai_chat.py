"""A task's stream as OpenAI's ``chat.completion.chunk`` objects, and its result as a ``chat.completion``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from ...core.errors import OrchError
from ...core.events.task import TaskEnded
from ...core.journal.live import Segment
from ...core.services.streams import Ended, Heartbeat, Queued, Started
from ..problems import openai_body
from .sse import HEARTBEAT

_encode = msgspec.json.Encoder().encode

#: under which a segment keeps these bytes
KIND: Final = "openai.chat"
DONE: Final = b"data: [DONE]\n\n"


def finish_reason(reason: str) -> str:
    """OpenAI's word for how a task ended; a cancelled one, for which it has none, says so."""
    return reason if reason in ("stop", "length", "cancelled") else "stop"


def usage_of(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """OpenAI's ``usage`` object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


class ChatRenderer:
    """Renders one task's chunks.

    :param completion_id: id of the completion, from the task's.
    :param created: Unix time of the request, seconds.
    :param fingerprint: ``system_fingerprint``: what a changed answer to the same seed may come from.
    :param include_usage: whether a last chunk tells the usage.
    :param failure: the error that stands for a failed end.
    """

    def __init__(
        self,
        *,
        completion_id: str,
        model: str,
        created: int,
        include_usage: bool,
        correlation: str,
        failure: Callable[[TaskEnded], OrchError],
    ) -> None:
        head = {"id": completion_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._head = head
        self._usage = include_usage
        self._null_usage: dict[str, Any] = {"usage": None} if include_usage else {}
        self._correlation = correlation
        self._failure = failure
        self._opened = False
        tail = b'},"finish_reason":null}]' + (b',"usage":null}' if include_usage else b"}") + b"\n\n"
        self._before = b"data: " + _encode(head)[:-1] + b',"choices":[{"index":0,"delta":{"content":'
        self._after = tail
        #: chunks are cached with the segment only for readers that would write the same
        self._kind = f"{KIND}:{completion_id}:{model}:{created}:{include_usage}"

    def _chunk(self, delta: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return b"data: %b\n\n" % _encode({**self._head, "choices": [choice], **self._null_usage})

    def _open(self, out: list[bytes]) -> None:
        if not self._opened:
            self._opened = True
            out.append(self._chunk({"role": "assistant", "content": ""}, None))

    def _segment(self, segment: Segment) -> bytes:
        known = segment.rendered.get(self._kind)
        if known is None:
            before, after = self._before, self._after
            channels = segment.batch.channels
            texts = segment.batch.texts
            if channels is not None:
                texts = [t for t, c in zip(texts, channels, strict=True) if not c]
            known = b"".join([before + _encode(t) + after for t in texts if t])
            segment.rendered[self._kind] = known
        return known

    def render(self, items: Sequence[Any]) -> tuple[bytes, bool]:
        """Bytes for items that became ready together, and whether the stream ends with them."""
        if self._opened and len(items) == 1 and type(items[0]) is Segment:
            return self._segment(items[0]), False
        out: list[bytes] = []
        for item in items:
            kind = type(item)
            if kind is Segment:
                self._open(out)
                out.append(self._segment(item))
            elif kind is Started:
                self._open(out)
            elif kind is Ended:
                self._end(item.payload, out)
                return b"".join(out), True
            elif kind is Heartbeat:
                out.append(HEARTBEAT)
            elif kind is Queued:
                out.append(b": queued position=%d predicted_start_ms=%d\n\n" % (item.position, item.predicted_start_ms))
        return b"".join(out), False

    def _end(self, event: TaskEnded, out: list[bytes]) -> None:
        if event.outcome == "failed":
            out.append(self.broken(self._failure(event)))
            return
        self._open(out)
        out.append(self._chunk({}, finish_reason(event.finish_reason)))
        if self._usage:
            usage = usage_of(event.prompt_tokens, event.tokens_out, event.cached_tokens)
            out.append(b"data: %b\n\n" % _encode({**self._head, "choices": [], "usage": usage}))
        out.append(DONE)

    def broken(self, error: OrchError) -> bytes:
        """An error in the stream, which OpenAI's clients raise."""
        return b"data: %b\n\n" % _encode(openai_body(error, self._correlation))


def completion(
    *, completion_id: str, model: str, created: int, text: str, reason: str, usage: dict[str, Any]
) -> dict[str, Any]:
    """A ``chat.completion`` object."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(reason)}
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }
