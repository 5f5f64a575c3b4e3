"""When a slot counts as free again on a server that tells no slots, only how much it has to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal

from .. import ConfigError
from ._slots import SlotAnswer, SlotWatch

#: A server that others use too is never seen idle. It has a scheduler of its own, so that a slot which is given away
#: too early costs a wait inside the server and nothing else; in seconds.
RELEASE_MS: Final = 3_000


def patience(options: Mapping[str, Any]) -> float:
    """How long to look at most, in seconds, by the option ``release_ms``. :raises ConfigError: it is no such number."""
    told = options.get("release_ms")
    try:
        found = RELEASE_MS if told is None else int(told)
    except (TypeError, ValueError):
        found = -1
    if found < 0:
        msg = "a time in milliseconds is a number, 0 or more"
        raise ConfigError(msg, field="provisioning.options.release_ms", got=told)
    return found / 1000


#: no server does more at once: a larger count is none
MAX_IN_USE: Final = 65_536


class SharedSlots:
    """Waits until a server has no more to do than it should.

    Args:
        in_use: how many requests the server is busy with, or ``None`` when that cannot be told now. Raises
            :class:`~._slots.EngineGoneError` when nobody answers.
        patience_s: a slot counts as free after so long, whatever the server says.
    """

    def __init__(self, in_use: Callable[[], Awaitable[int | None]], *, patience_s: float) -> None:
        self._in_use = in_use
        self._patience_s = patience_s
        self._watch = SlotWatch(self._look)

    async def free(self, others: Callable[[], int]) -> SlotAnswer | Literal["not-seen"]:
        """Wait until the server has no more requests than ``others`` says, or is gone, or the patience is at its end."""
        try:
            async with asyncio.timeout(self._patience_s):
                return await self._watch.free(-1, others=others)
        except TimeoutError:
            return "not-seen"

    async def close(self) -> None:
        """Everybody who waits hears that the engine is gone."""
        await self._watch.close()

    async def _look(self) -> Mapping[int, bool] | None:
        count = await self._in_use()
        return None if count is None else dict.fromkeys(range(count), True)
