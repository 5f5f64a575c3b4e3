"""One decoded token before a pool says ready, and a first measurement of its rate (POOL-1)."""

from __future__ import annotations

import asyncio
from typing import Final

from ..core.entries import EntryBatch
from ..core.ports import AttemptEnd, AttemptFailure, AttemptStart, Engine, GenerateJob

#: tokens decoded for the measurement; the first one is prefill
PRELOAD_TOKENS: Final = 8


class PreloadError(Exception):
    """The engine is up, and cannot decode."""


class _Ear:
    """The sink of the preload."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[AttemptEnd | AttemptFailure] = asyncio.get_running_loop().create_future()

    def started(self, start: AttemptStart) -> None: ...

    def entries(self, batch: EntryBatch) -> None: ...

    def ended(self, end: AttemptEnd) -> None:
        if not self.outcome.done():
            self.outcome.set_result(end)

    def failed(self, failure: AttemptFailure) -> None:
        if not self.outcome.done():
            self.outcome.set_result(failure)

    def pressure(self) -> bool:
        return False


async def preload(engine: Engine, *, slot: int, timeout_s: float) -> int:
    """Decode a few tokens; answers the decode rate in thousandths of a token per second, 0 when it cannot be told.

    Raises:
        PreloadError: it failed or took too long.
    """
    ear = _Ear()
    job = GenerateJob(task_id="preload", attempt=1, prompt="Hello", slot=slot, seed=1, max_tokens=PRELOAD_TOKENS)
    handle = engine.generate(job, ear)
    try:
        async with asyncio.timeout(timeout_s):
            outcome = await ear.outcome
    except TimeoutError:
        msg = f"no token within {timeout_s:g} s"
        raise PreloadError(msg) from None
    finally:
        handle.cancel()
    if isinstance(outcome, AttemptFailure):
        raise PreloadError(outcome.message)
    if outcome.tokens < 1:
        msg = "the engine ended without a token"
        raise PreloadError(msg)
    return (outcome.tokens - 1) * 10**9 // outcome.decode_us if outcome.decode_us else 0
