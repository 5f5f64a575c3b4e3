"""One decoded token before a pool says ready, and a first measurement of its rate (POOL-1).

An engine that does not say texts does once what it does instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from ..core.engine_ports import AttemptEnd, AttemptFailure, AttemptStart, ChatJob, Engine, GenerateJob
from ..core.entries import EntryBatch

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


async def preload(engine: Engine, *, workloads: Sequence[str], slot: int, timeout_s: float) -> int:
    """Decode a few tokens; answers the decode rate in thousandths of a token per second, 0 when it cannot be told.

    Args:
        engine: whose.
        workloads: what it says that it does.
        slot: to use; -1 = any.
        timeout_s: it must not take longer.

    Raises:
        PreloadError: it failed or took too long.
    """
    ear = _Ear()
    job = _job(workloads, slot)
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
    if job.inputs:
        return 0
    if outcome.tokens < 1:
        msg = "the engine ended without a token"
        raise PreloadError(msg)
    return (outcome.tokens - 1) * 10**9 // outcome.decode_us if outcome.decode_us else 0


def _job(workloads: Sequence[str], slot: int) -> GenerateJob:
    job = GenerateJob(task_id="preload", attempt=1, slot=slot, seed=1)
    if "completion" in workloads or not workloads:
        return msgspec.structs.replace(job, prompt="Hello", max_tokens=PRELOAD_TOKENS)
    if "chat" in workloads:
        chat = ChatJob(messages=[{"role": "user", "content": "Hello"}])
        return msgspec.structs.replace(job, workload="chat", chat=chat, max_tokens=PRELOAD_TOKENS)
    if "rerank" in workloads:
        return msgspec.structs.replace(job, workload="rerank", query="Hello", inputs=["Hello"])
    return msgspec.structs.replace(job, workload="embedding", inputs=["Hello"])
