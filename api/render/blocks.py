"""What a task says, as blocks that come one after another: thoughts, text, and each call of a tool (API-2).

APIs that show an answer as a list of items read it from here. The steps are a function of the entries alone, in their order,
so that any cut of a stream into segments, and any later reading of it, gives the same ones.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator

import msgspec

from ...core.entries import EntryBatch
from ...core.logprobs import TokenLogprob, unpack_logprobs
from ...core.types import CALL, REASONING, TEXT, TOOL, Entry


class Kind(enum.StrEnum):
    """What a block is."""

    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"


class Block(msgspec.Struct, kw_only=True, gc=False):
    """One block as far as it was said."""

    #: place among the answer's blocks
    index: int
    kind: Kind
    #: of a call: which of the answer's calls, and the function's name
    call: int = -1
    name: str = ""
    pieces: list[str] = []
    logprobs: list[TokenLogprob] = []
    closed: bool = False

    @property
    def text(self) -> str:
        """All that was said of it: text, thoughts, or the JSON of a call's arguments."""
        return "".join(self.pieces)


class Step(enum.Enum):
    """What happened to a block."""

    OPEN = enum.auto()
    PIECE = enum.auto()
    CLOSE = enum.auto()


class Blocks:
    """Puts an answer together from its entries.

    :param hidden: channels whose entries are counted and not shown.
    """

    def __init__(self, hidden: Collection[str] = ()) -> None:
        self._hidden = hidden
        self.all: list[Block] = []
        self._open: Block | None = None
        self._calls: dict[int, Block] = {}
        #: tokens of thoughts
        self.reasoning_tokens = 0

    def add(self, batch: EntryBatch) -> Iterator[tuple[Step, Block, Entry]]:
        """Take entries; what each of them does, in order. Only the first choice is looked at."""
        for entry in batch.entries():
            if not entry.choice:
                yield from self._add(entry)

    def plain(self, batch: EntryBatch) -> tuple[Block, list[str]] | None:
        """Take entries that only go on with the text that is being said, the usual ones: its block, and their texts.

        ``None``: they are something else, and nothing was taken.
        """
        block = self._open
        if block is None or block.kind is not Kind.TEXT:
            return None
        if batch.channels is not None or batch.choices is not None or batch.logprobs is not None:
            return None
        texts = [text for text in batch.texts if text]
        block.pieces += texts
        return block, texts

    def add_all(self, batches: Iterable[EntryBatch]) -> None:
        """Take entries without looking at the steps."""
        for batch in batches:
            for _ in self.add(batch):
                pass

    def close(self) -> Block | None:
        """The answer is over: the block that was open until now; ``None`` = there was none."""
        last, self._open = self._open, None
        if last is not None:
            last.closed = True
        return last

    def _add(self, entry: Entry) -> Iterator[tuple[Step, Block, Entry]]:
        channel = entry.channel
        if channel == REASONING:
            self.reasoning_tokens += entry.tokens
        if channel in self._hidden:
            return
        if channel.startswith(CALL):
            yield from self._called(entry, int(channel.removeprefix(CALL)), entry.text)
        elif channel.startswith(TOOL):
            number = int(channel.removeprefix(TOOL))
            if number not in self._calls:
                yield from self._called(entry, number, "")
            yield from self._piece(self._calls[number], entry)
        elif channel in (TEXT, REASONING):
            kind = Kind.TEXT if channel == TEXT else Kind.REASONING
            block = self._open
            if entry.text and (block is None or block.kind is not kind):
                block = Block(index=len(self.all), kind=kind, pieces=[], logprobs=[])
                yield from self._switch(block, entry)
            if block is not None and block.kind is kind:
                yield from self._piece(block, entry)

    def _called(self, entry: Entry, number: int, name: str) -> Iterator[tuple[Step, Block, Entry]]:
        if number in self._calls:
            return
        block = Block(index=len(self.all), kind=Kind.CALL, call=number, name=name, pieces=[], logprobs=[])
        self._calls[number] = block
        yield from self._switch(block, entry)

    def _switch(self, block: Block, entry: Entry) -> Iterator[tuple[Step, Block, Entry]]:
        before = self.close()
        if before is not None:
            yield Step.CLOSE, before, entry
        self.all.append(block)
        self._open = block
        yield Step.OPEN, block, entry

    @staticmethod
    def _piece(block: Block, entry: Entry) -> Iterator[tuple[Step, Block, Entry]]:
        if entry.logprob and block.kind is Kind.TEXT:
            block.logprobs += unpack_logprobs(entry.text, entry.logprob)
        if entry.text:
            block.pieces.append(entry.text)
            yield Step.PIECE, block, entry
