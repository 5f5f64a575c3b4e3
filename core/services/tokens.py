"""Questions to a model's engine that are no tasks: tokens of a text, text of tokens, the prompt of a chat (ADM-2, API-2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ..engine_ports import Engine
from ..errors import OrchError, PoolUnreadyError
from ..journal.journal import Journal
from ..projections.pools import PoolState
from .bodies import RequestBody
from .engines import EngineDirectory
from .jobs import render

T = TypeVar("T")


class Tokens:
    """Asks the first ready engine of a model."""

    def __init__(self, journal: Journal, engines: EngineDirectory) -> None:
        self._journal = journal
        self._engines = engines

    async def count(self, body: RequestBody, pools: Sequence[PoolState]) -> int | None:
        """Tokens of a request by the tokenizer of a ready engine; ``None`` when there is none to ask."""
        for pool in pools:
            engine = self._engines.engine(pool.declared.pool_id) if pool.ready else None
            if engine is None:
                continue
            try:
                if body.inputs is not None:
                    texts = [f"{body.query or ''}{text}" for text in body.inputs]
                    return max([len(await _tokenize(engine, text)) for text in texts], default=0)
                return len(await _tokenize(engine, await render(engine, body)))
            except (OrchError, OSError, ValueError):
                continue
        return None

    async def tokenize(self, group: str, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text. :raises PoolUnreadyError: no pool of the model is ready."""
        return await self._ask(group, lambda e: e.tokenize(text, add_special=add_special, parse_special=parse_special))

    async def detokenize(self, group: str, ids: Sequence[int]) -> str:
        """The text of token ids. :raises PoolUnreadyError: no pool of the model is ready."""
        return await self._ask(group, lambda engine: engine.detokenize(ids))

    async def prompt(self, group: str, body: RequestBody) -> str:
        """The prompt that a chat becomes. :raises PoolUnreadyError: no pool of the model is ready."""
        return await self._ask(group, lambda engine: render(engine, body))

    async def _ask(self, group: str, question: Callable[[Engine], Awaitable[T]]) -> T:
        for pool in self._journal.head.pools.serving(group):
            engine = self._engines.engine(pool.declared.pool_id) if pool.ready else None
            if engine is not None:
                return await question(engine)
        msg = f"no pool that serves {group!r} is loaded now, and only a loaded engine can tell this"
        raise PoolUnreadyError(msg, retry_after_ms=1000)


async def _tokenize(engine: Engine, text: str) -> list[int]:
    return await engine.tokenize(text, add_special=True, parse_special=True)
