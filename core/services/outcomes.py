"""What a task said, put together from its entries: one answer per choice, with thoughts, tool calls, probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ..entries import EntryBatch
from ..logprobs import TokenLogprob, unpack_logprobs
from ..types import CALL, REASONING, TEXT, TOOL


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model wants called."""

    #: made of the task's id: the same after a regeneration
    call_id: str
    name: str
    #: JSON as the model wrote it
    arguments: str


class Choice(msgspec.Struct, kw_only=True):
    """One answer."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    finish_reason: str = ""
    #: of its text's tokens, as far as they were asked for
    logprobs: list[TokenLogprob] = []


def call_id(task_id: str, choice: int, index: int) -> str:
    """The id of a tool call, which nothing but its place decides."""
    return f"call_{task_id.replace('-', '')[:20]}{choice:x}{index:03x}"


def reasoning_tokens(batch: EntryBatch) -> int:
    """Tokens of a batch that were thought and not said."""
    if batch.channels is None:
        return 0
    counts = batch.tokens if batch.tokens is not None else [1] * len(batch)
    return sum(count for count, channel in zip(counts, batch.channels, strict=True) if channel == REASONING)


def choices_of(
    task_id: str, batches: Iterable[EntryBatch], *, count: int, finish_reason: str, finish_reasons: Sequence[str] = ()
) -> list[Choice]:
    """The answers that entries make.

    :param count: how many answers were asked for.
    :param finish_reasons: of each, where they are known one by one.
    """
    texts: list[dict[str, list[str]]] = [{} for _ in range(count)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
    for batch in batches:
        if batch.choices is None and batch.channels is None and batch.logprobs is None:
            texts[0].setdefault(TEXT, []).extend(batch.texts)
            continue
        for entry in batch.entries():
            if entry.choice >= count:
                continue
            texts[entry.choice].setdefault(entry.channel, []).append(entry.text)
            if entry.logprob and entry.channel == TEXT:
                logprobs[entry.choice] += unpack_logprobs(entry.text, entry.logprob)
    out = []
    for index, said in enumerate(texts):
        calls = sorted(int(channel.removeprefix(CALL)) for channel in said if channel.startswith(CALL))
        out.append(
            Choice(
                index=index,
                text="".join(said.get(TEXT, ())),
                reasoning="".join(said.get(REASONING, ())),
                tool_calls=[
                    ToolCall(
                        call_id=call_id(task_id, index, call),
                        name="".join(said[f"{CALL}{call}"]),
                        arguments="".join(said.get(f"{TOOL}{call}", ())),
                    )
                    for call in calls
                ],
                finish_reason=finish_reasons[index] if index < len(finish_reasons) else finish_reason,
                logprobs=logprobs[index],
            )
        )
    return out
