"""A task as OpenAI's ``response``: the object, and the stream of its events.

Which event has which ``sequence_number``, and what is in it, is a function of the request and of the task's entries in their
order. So the same numbers name the same events whenever and however often a stream is read, also after the server was
killed; ``starting_after`` goes on from there by reading from the start and leaving out what was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ...core.entries import EntryBatch
from ...core.errors import OrchError, ResumeLostError
from ...core.events.task import TaskEnded
from ...core.journal.live import Segment
from ...core.logprobs import unpack_logprobs
from ...core.services.outcomes import call_id
from ...core.services.streams import Ended, Heartbeat, Queued, Started
from ...core.types import Entry
from ..problems import openai_body
from .blocks import Block, Blocks, Kind, Step
from .openai_parts import chat_logprobs
from .sse import HEARTBEAT, frame

_encode = msgspec.json.Encoder().encode
_Object = dict[str, Any]
#: OpenAI's codes for errors of responses, by ours
_CODES: Final = {
    "CONTEXT_EXCEEDED": "invalid_prompt",
    "INVALID_PARAMS": "invalid_prompt",
    "RATE_LIMITED": "rate_limit_exceeded",
    "BUDGET_EXHAUSTED": "rate_limit_exceeded",
    "QUEUE_FULL_DROP_LRU": "rate_limit_exceeded",
}
_ITEM_IDS: Final = {Kind.TEXT: "msg", Kind.REASONING: "rs", Kind.CALL: "fc"}


class Shown(msgspec.Struct, frozen=True):
    """What a response shows of its request."""

    task_id: str
    #: Unix time of its admission, seconds
    created: int
    model: str
    #: instructions, tools, metadata and so on, as they were sent or meant
    echo: _Object

    @property
    def response_id(self) -> str:
        """The response's id."""
        return response_id(self.task_id)


def response_id(task_id: str) -> str:
    """The id of a task's response."""
    return f"resp_{task_id.replace('-', '')}"


def item_id(task_id: str, block: Block) -> str:
    """The id of an item, which its place decides."""
    return f"{_ITEM_IDS[block.kind]}_{task_id.replace('-', '')}{block.index:04x}"


def response_object(
    shown: Shown,
    status: str,
    *,
    output: Sequence[_Object] = (),
    usage: _Object | None = None,
    error: _Object | None = None,
    incomplete: str = "",
) -> _Object:
    """A ``response`` object."""
    return {
        "id": shown.response_id,
        "object": "response",
        "created_at": shown.created,
        "status": status,
        "error": error,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "model": shown.model,
        "output": list(output),
        "usage": usage,
        **shown.echo,
    }


def status_of(state: str) -> str:
    """The status of a task that has not ended."""
    return "queued" if state == "queued" else "in_progress"


def _status(event: TaskEnded) -> str:
    if event.outcome != "completed":
        return event.outcome
    return "incomplete" if event.finish_reason == "length" else "completed"


def _usage(event: TaskEnded, reasoning_tokens: int) -> _Object:
    return {
        "input_tokens": event.prompt_tokens,
        "input_tokens_details": {"cached_tokens": event.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": event.tokens_out,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": event.prompt_tokens + event.tokens_out,
    }


def _error(event: TaskEnded) -> _Object | None:
    if event.outcome != "failed":
        return None
    code = event.code or "INTERNAL"
    return {"code": _CODES.get(code, "server_error"), "message": event.message or code, "type": code}


def _part(block: Block) -> _Object:
    if block.kind is Kind.REASONING:
        return {"type": "reasoning_text", "text": block.text}
    logprobs = chat_logprobs(block.logprobs)["content"]
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}


def item_of(task_id: str, block: Block, status: str) -> _Object:
    """A block as an item of a response's output."""
    head: _Object = {"id": item_id(task_id, block), "status": status}
    if block.kind is Kind.TEXT:
        return {**head, "type": "message", "role": "assistant", "content": [_part(block)] if block.pieces else []}
    if block.kind is Kind.REASONING:
        content = [_part(block)] if block.pieces else []
        return {**head, "type": "reasoning", "summary": [], "content": content}
    call = call_id(task_id, 0, block.call)
    return {**head, "type": "function_call", "call_id": call, "name": block.name, "arguments": block.text}


def _whole(event: TaskEnded) -> str:
    """The status of the last item of an answer that ended so."""
    return "completed" if _status(event) == "completed" else "incomplete"


def output_of(task_id: str, blocks: Blocks, event: TaskEnded) -> list[_Object]:
    """The output of an ended task."""
    last = len(blocks.all) - 1
    return [item_of(task_id, b, _whole(event) if b.index == last else "completed") for b in blocks.all]


def ended_response(shown: Shown, blocks: Blocks, event: TaskEnded) -> _Object:
    """The ``response`` of an ended task."""
    status = _status(event)
    return response_object(
        shown,
        status,
        output=output_of(shown.task_id, blocks, event),
        usage=_usage(event, blocks.reasoning_tokens),
        error=_error(event),
        incomplete="max_output_tokens" if status == "incomplete" else "",
    )


def blocks_of(batches: Sequence[EntryBatch]) -> Blocks:
    """The blocks that entries make."""
    blocks = Blocks()
    blocks.add_all(batches)
    return blocks


class ResponseRenderer:
    """Renders one task's events, for one reader.

    :param after: the last ``sequence_number`` that the reader has seen; -1 = none.
    """

    def __init__(self, shown: Shown, *, correlation: str, after: int = -1) -> None:
        self._shown = shown
        self._correlation = correlation
        self._after = after
        self._next = 0
        self._opened = False
        self._blocks = Blocks()

    def opening(self) -> bytes:
        """The first events, which come before anything is known of the task but that it was admitted."""
        out: list[bytes] = []
        self._open(out)
        return b"".join(out)

    def render(self, items: Sequence[Any]) -> tuple[bytes, bool]:
        """Bytes for items that became ready together, and whether the stream ends with them."""
        out: list[bytes] = []
        self._open(out)
        for item in items:
            kind = type(item)
            if kind is Segment:
                self._said(item.batch, out)
            elif kind is Started:
                self._emit("response.in_progress", out, response=response_object(self._shown, "in_progress"))
            elif kind is Ended:
                self._end(item.payload, out)
                return b"".join(out), True
            elif kind is Heartbeat:
                out.append(HEARTBEAT)
            elif kind is Queued:
                out.append(b": queued position=%d predicted_start_ms=%d\n\n" % (item.position, item.predicted_start_ms))
        return b"".join(out), False

    def _emit(self, name: str, out: list[bytes], /, **data: Any) -> None:
        number = self._next
        self._next += 1
        if number > self._after:
            out.append(frame(name, {"type": name, "sequence_number": number, **data}))

    def _open(self, out: list[bytes]) -> None:
        if self._opened:
            return
        self._opened = True
        background = bool(self._shown.echo.get("background"))
        status = "queued" if background else "in_progress"
        self._emit("response.created", out, response=response_object(self._shown, status))
        if background:
            self._emit("response.queued", out, response=response_object(self._shown, status))

    def _said(self, batch: EntryBatch, out: list[bytes]) -> None:
        plain = self._blocks.plain(batch)
        if plain is None:
            for step, block, entry in self._blocks.add(batch):
                self._step(step, block, entry, out)
            return
        block, texts = plain
        name = b"response.output_text.delta"
        place = b'"item_id":"%b","output_index":%d,"content_index":0' % (
            item_id(self._shown.task_id, block).encode(),
            block.index,
        )
        for number, text in enumerate(texts, self._next):
            if number > self._after:
                out.append(
                    b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b,"delta":%b,"logprobs":[]}\n\n'
                    % (name, name, number, place, _encode(text))
                )
        self._next += len(texts)

    def _step(self, step: Step, block: Block, entry: Entry, out: list[bytes]) -> None:
        if step is Step.PIECE:
            self._piece(block, entry, out)
        elif step is Step.OPEN:
            item = item_of(self._shown.task_id, block, "in_progress")
            self._emit("response.output_item.added", out, output_index=block.index, item=item)
            if block.kind is not Kind.CALL:
                self._emit("response.content_part.added", out, **self._place(block), part=_part(block))
        else:
            self._done(block, "completed", out)

    def _place(self, block: Block) -> _Object:
        return {"item_id": item_id(self._shown.task_id, block), "output_index": block.index, "content_index": 0}

    def _piece(self, block: Block, entry: Entry, out: list[bytes]) -> None:
        place = self._place(block)
        if block.kind is Kind.CALL:
            del place["content_index"]
            self._emit("response.function_call_arguments.delta", out, **place, delta=entry.text)
        elif block.kind is Kind.REASONING:
            self._emit("response.reasoning_text.delta", out, **place, delta=entry.text)
        else:
            told = chat_logprobs(unpack_logprobs(entry.text, entry.logprob))["content"] if entry.logprob else []
            self._emit("response.output_text.delta", out, **place, delta=entry.text, logprobs=told)

    def _done(self, block: Block, status: str, out: list[bytes]) -> None:
        place = self._place(block)
        if block.kind is Kind.CALL:
            del place["content_index"]
            name, arguments = "response.function_call_arguments.done", block.text
            self._emit(name, out, **place, name=block.name, arguments=arguments)
        else:
            part = _part(block)
            if block.kind is Kind.REASONING:
                self._emit("response.reasoning_text.done", out, **place, text=part["text"])
            else:
                self._emit("response.output_text.done", out, **place, text=part["text"], logprobs=part["logprobs"])
            self._emit("response.content_part.done", out, **place, part=part)
        item = item_of(self._shown.task_id, block, status)
        self._emit("response.output_item.done", out, output_index=block.index, item=item)

    def _end(self, event: TaskEnded, out: list[bytes]) -> None:
        last = self._blocks.close()
        if last is not None:
            self._done(last, _whole(event), out)
        status = _status(event)
        # There is no event for a cancel; the response in it says what it was.
        name = "response.incomplete" if status == "cancelled" else f"response.{status}"
        self._emit(name, out, response=ended_response(self._shown, self._blocks, event))
        if self._after >= self._next:
            msg = f"starting_after: this stream ended with {self._next - 1}, and {self._after} was never in it"
            remedy = "Read it from the start; what was seen of it was lost, or belongs to another response."
            lost = ResumeLostError(msg, field="starting_after", got=self._after, remedy=remedy)
            self._after = self._next - 1
            out.append(self.broken(lost))

    def broken(self, error: OrchError) -> bytes:
        """The transport breaks off, which clients raise; the response goes on, from the number that it names."""
        told = openai_body(error, self._correlation)
        plain = {"code": error.code, "message": error.message, "param": None}
        last = max(self._next - 1, self._after)
        return frame("error", {"type": "error", "sequence_number": last, **plain, **told})
