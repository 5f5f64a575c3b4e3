"""A task's stream as Anthropic's events, and its result as a ``message``.

``message_start`` comes when the engine takes the task; while it waits there are ``ping`` events, and comments that tell its
place in the queue. Everything between the first event and the last is a function of the task's entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from ...core.entries import EntryBatch
from ...core.errors import InvalidParamsError, OrchError
from ...core.events.task import TaskEnded
from ...core.journal.live import Segment
from ...core.services.outcomes import call_id
from ...core.services.streams import Ended, Heartbeat, Queued, Started
from ...core.types import REASONING
from ..problems import anthropic_body
from ..workloads import require_plain
from .blocks import Block, Blocks, Kind, Step
from .sse import HEARTBEAT, frame

_encode = msgspec.json.Encoder().encode
_PING: Final = frame("ping", {"type": "ping"})
_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_DELTAS: Final = {
    Kind.TEXT: b'"text_delta","text":',
    Kind.REASONING: b'"thinking_delta","thinking":',
    Kind.CALL: b'"input_json_delta","partial_json":',
}


def message_id(task_id: str) -> str:
    """The id of a task's message."""
    return f"msg_{task_id.replace('-', '')}"


def tool_use_id(task_id: str, call: int) -> str:
    """The id of a tool call, the same whenever the answer is read."""
    return "toolu_" + call_id(task_id, 0, call).removeprefix("call_")


def stop_reason(event: TaskEnded) -> str:
    """Anthropic's word for why an answer ended."""
    if event.stop_sequence:
        return "stop_sequence"
    return _REASONS.get(event.finish_reason, "end_turn")


def signature(thoughts: str) -> str:
    """What stands for the signature of thoughts: their digest. Nothing here checks it when they come back."""
    return hashlib.sha256(thoughts.encode()).hexdigest()


def usage_of(event: TaskEnded, thinking_tokens: int) -> dict[str, Any]:
    """Anthropic's ``usage``: tokens of the prompt that came from a cache are counted apart."""
    return {
        "input_tokens": max(0, event.prompt_tokens - event.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": event.cached_tokens,
        "output_tokens": event.tokens_out,
        "output_tokens_details": {"thinking_tokens": thinking_tokens},
    }


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments as an object; what the model left unfinished, or no answer can hold, is shown as it is."""
    if not arguments:
        return {}
    try:
        found = msgspec.json.decode(arguments)
        require_plain(found, "input")
    except (ValueError, RecursionError, InvalidParamsError):
        found = None
    return found if isinstance(found, dict) else {"_invalid_json": arguments}


def _content(block: Block, task_id: str, *, omitted: bool) -> dict[str, Any]:
    if block.kind is Kind.TEXT:
        return {"type": "text", "text": block.text}
    if block.kind is Kind.REASONING:
        thoughts = block.text
        return {"type": "thinking", "thinking": "" if omitted else thoughts, "signature": signature(thoughts)}
    use = {"type": "tool_use", "id": tool_use_id(task_id, block.call), "name": block.name}
    return {**use, "input": _input(block.text)}


def message(
    batches: Sequence[EntryBatch], event: TaskEnded, *, model: str, thinking: bool, omitted: bool
) -> dict[str, Any]:
    """The ``message`` of a completed task.

    :param thinking: thoughts are shown.
    :param omitted: their blocks are shown without their text.
    """
    blocks = Blocks(() if thinking else (REASONING,))
    blocks.add_all(batches)
    return {
        "id": message_id(event.task_id),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [_content(block, event.task_id, omitted=omitted) for block in blocks.all],
        "stop_reason": stop_reason(event),
        "stop_sequence": event.stop_sequence or None,
        "usage": usage_of(event, blocks.reasoning_tokens),
    }


class MessageRenderer:
    """Renders one task's events.

    :param failure: the error that stands for an end that is no answer.
    """

    def __init__(
        self,
        *,
        task_id: str,
        model: str,
        thinking: bool,
        omitted: bool,
        correlation: str,
        failure: Callable[[TaskEnded], OrchError],
    ) -> None:
        self._task_id = task_id
        self._model = model
        self._omitted = omitted
        self._correlation = correlation
        self._failure = failure
        self._blocks = Blocks(() if thinking else (REASONING,))

    def render(self, items: Sequence[Any]) -> tuple[bytes, bool]:
        """Bytes for items that became ready together, and whether the stream ends with them."""
        out: list[bytes] = []
        for item in items:
            kind = type(item)
            if kind is Segment:
                self._said(item.batch, out)
            elif kind is Started:
                out.append(self._start(item.payload.prompt_tokens))
            elif kind is Ended:
                self._end(item.payload, out)
                return b"".join(out), True
            elif kind is Heartbeat:
                out += (HEARTBEAT, _PING)
            elif kind is Queued:
                out += (
                    b": queued position=%d predicted_start_ms=%d\n\n" % (item.position, item.predicted_start_ms),
                    _PING,
                )
        return b"".join(out), False

    def _start(self, prompt_tokens: int) -> bytes:
        head: dict[str, Any] = {
            "id": message_id(self._task_id),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": prompt_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 0,
            },
        }
        return frame("message_start", {"type": "message_start", "message": head})

    def _said(self, batch: EntryBatch, out: list[bytes]) -> None:
        plain = self._blocks.plain(batch)
        if plain is not None:
            block, texts = plain
            out += [self._delta(block, _DELTAS[Kind.TEXT], text) for text in texts]
            return
        for step, block, entry in self._blocks.add(batch):
            if step is Step.PIECE:
                if not (self._omitted and block.kind is Kind.REASONING):
                    out.append(self._delta(block, _DELTAS[block.kind], entry.text))
            elif step is Step.OPEN:
                out.append(self._opened(block))
            else:
                self._closed(block, out)

    @staticmethod
    def _delta(block: Block, head: bytes, text: str) -> bytes:
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b%b}}\n\n'
            % (block.index, head, _encode(text))
        )

    def _opened(self, block: Block) -> bytes:
        empty: dict[str, Any] = {"type": "text", "text": ""}
        if block.kind is Kind.REASONING:
            empty = {"type": "thinking", "thinking": "", "signature": ""}
        elif block.kind is Kind.CALL:
            use = {"type": "tool_use", "id": tool_use_id(self._task_id, block.call), "name": block.name}
            empty = {**use, "input": {}}
        data = {"type": "content_block_start", "index": block.index, "content_block": empty}
        return frame("content_block_start", data)

    def _closed(self, block: Block, out: list[bytes]) -> None:
        if block.kind is Kind.REASONING:
            out.append(self._delta(block, b'"signature_delta","signature":', signature(block.text)))
        out.append(frame("content_block_stop", {"type": "content_block_stop", "index": block.index}))

    def _end(self, event: TaskEnded, out: list[bytes]) -> None:
        if event.outcome != "completed":
            out.append(self.broken(self._failure(event)))
            return
        last = self._blocks.close()
        if last is not None:
            self._closed(last, out)
        delta = {"stop_reason": stop_reason(event), "stop_sequence": event.stop_sequence or None}
        usage = usage_of(event, self._blocks.reasoning_tokens)
        out.append(frame("message_delta", {"type": "message_delta", "delta": delta, "usage": usage}))
        out.append(frame("message_stop", {"type": "message_stop"}))

    def broken(self, error: OrchError) -> bytes:
        """An error in the stream, which Anthropic's clients raise."""
        return frame("error", anthropic_body(error, self._correlation))
