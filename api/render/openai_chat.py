"""A task's stream as OpenAI's ``chat.completion.chunk`` objects, and its result as a ``chat.completion``.

A chunk is a function of one entry and of what the task is, so any cut of the entries into segments gives the same chunks,
and a segment is rendered once for all readers that were told the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from ...core.errors import OrchError
from ...core.events.task import TaskEnded
from ...core.journal.live import Segment
from ...core.logprobs import unpack_logprobs
from ...core.services.outcomes import Choice, call_id, reasoning_tokens
from ...core.services.streams import Ended, Heartbeat, Queued, Started
from ...core.services.tasks import TaskInfo
from ...core.types import CALL, REASONING, TEXT, TOOL, Entry
from ..problems import openai_body
from .openai_parts import DONE, chat_logprobs, finish_reason, reason_of, usage_of, usage_of_tasks
from .sse import HEARTBEAT

_encode = msgspec.json.Encoder().encode

#: under which a segment keeps these bytes; another number when the same entries give other bytes
KIND: Final = "openai.chat.2"


def completion_id(task_id: str) -> str:
    """The id of a task's completion."""
    return f"chatcmpl-{task_id}"


class ChatRenderer:
    """Renders one task's chunks.

    :param created: Unix time of the task's admission, seconds.
    :param include_usage: whether a last chunk tells the usage.
    :param failure: the error that stands for a failed end.
    :param n: answers that the task gives.
    :param logprobs: whether chunks tell log-probabilities.
    """

    def __init__(
        self,
        *,
        task_id: str,
        model: str,
        created: int,
        include_usage: bool,
        correlation: str,
        failure: Callable[[TaskEnded], OrchError],
        n: int = 1,
        logprobs: bool = False,
    ) -> None:
        self._task_id = task_id
        self._head = {
            "id": completion_id(task_id),
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._usage = include_usage
        self._null_usage: dict[str, Any] = {"usage": None} if include_usage else {}
        self._correlation = correlation
        self._failure = failure
        self._n = n
        self._logprobs = logprobs
        self._opened = False
        self._thought = 0
        tail = b'},"finish_reason":null}]' + (b',"usage":null}' if include_usage else b"}") + b"\n\n"
        self._before = b"data: " + _encode(self._head)[:-1] + b',"choices":[{"index":0,"delta":{"content":'
        self._after = tail
        #: chunks are cached with the segment only for readers that would write the same
        self._kind = f"{KIND}:{include_usage}:{created}:{model}"

    def _chunk(self, choice: int, delta: dict[str, Any], reason: str | None, **more: Any) -> bytes:
        one = {"index": choice, "delta": delta, **more, "finish_reason": reason}
        return b"data: %b\n\n" % _encode({**self._head, "choices": [one], **self._null_usage})

    def _open(self, out: list[bytes]) -> None:
        if not self._opened:
            self._opened = True
            out += [self._chunk(n, {"role": "assistant", "content": ""}, None) for n in range(self._n)]

    def _segment(self, segment: Segment) -> bytes:
        batch = segment.batch
        if batch.channels is not None:
            self._thought += reasoning_tokens(batch)
        known = segment.rendered.get(self._kind)
        if known is None:
            if batch.channels is None and batch.choices is None and batch.logprobs is None:
                before, after = self._before, self._after
                known = b"".join([before + _encode(t) + after for t in batch.texts if t])
            else:
                known = b"".join([self._entry(entry) for entry in batch.entries() if entry.choice < self._n])
            segment.rendered[self._kind] = known
        return known

    def _entry(self, entry: Entry) -> bytes:
        text, channel = entry.text, entry.channel
        if channel == TEXT:
            if self._logprobs and entry.logprob:
                told = chat_logprobs(unpack_logprobs(text, entry.logprob))
                return self._chunk(entry.choice, {"content": text}, None, logprobs=told)
            return self._chunk(entry.choice, {"content": text}, None) if text else b""
        if channel == REASONING:
            return self._chunk(entry.choice, {"reasoning_content": text}, None) if text else b""
        call: dict[str, Any]
        if channel.startswith(CALL):
            index = int(channel.removeprefix(CALL))
            name = {"name": text, "arguments": ""}
            call = {"index": index, "id": call_id(self._task_id, entry.choice, index), "type": "function"}
            return self._chunk(entry.choice, {"tool_calls": [{**call, "function": name}]}, None)
        if channel.startswith(TOOL) and text:
            call = {"index": int(channel.removeprefix(TOOL)), "function": {"arguments": text}}
            return self._chunk(entry.choice, {"tool_calls": [call]}, None)
        return b""

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
        out += [self._chunk(n, {}, reason_of(event, n)) for n in range(self._n)]
        if self._usage:
            usage = usage_of(event.prompt_tokens, event.tokens_out, event.cached_tokens, self._thought)
            out.append(b"data: %b\n\n" % _encode({**self._head, "choices": [], "usage": usage}))
        out.append(DONE)

    def broken(self, error: OrchError) -> bytes:
        """An error in the stream, which OpenAI's clients raise."""
        return b"data: %b\n\n" % _encode(openai_body(error, self._correlation))


def completion(info: TaskInfo, *, model: str, created: int, logprobs: bool) -> dict[str, Any]:
    """The ``chat.completion`` object of an ended task."""
    choices = info.choices or [Choice(text=info.text or "", finish_reason=info.finish_reason)]
    return {
        "id": completion_id(info.task_id),
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": choice.index,
                "message": _message(choice),
                "logprobs": chat_logprobs(choice.logprobs) if logprobs else None,
                "finish_reason": finish_reason(choice.finish_reason or info.finish_reason),
            }
            for choice in choices
        ],
        "usage": usage_of_tasks([info.usage]),
    }


def _message(choice: Choice) -> dict[str, Any]:
    said: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text if choice.text or not choice.tool_calls else None,
        "refusal": None,
    }
    if choice.reasoning:
        said["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        said["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return said
