"""When a task may start: a pure estimate from live state (a first model; its errors are journaled)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..projections.pools import PoolState

#: until a pool has ended its first tasks
_DEFAULT_TOKENS = 128
_DEFAULT_MTOK_S = 20_000


class StartEstimate(msgspec.Struct, frozen=True):
    """Milliseconds from now until the start: median and 80 % interval."""

    start_ms: int
    p10_ms: int
    p90_ms: int


def estimate_start(pools: Sequence[PoolState], leases: dict[str, int], ahead: int) -> StartEstimate:
    """Estimate for a task with ``ahead`` tasks before it in a group served by ``pools``.

    A slot frees every (tokens per task / rate) seconds; pools that are not ready count as one that is, since the
    queue waits for them.
    """
    free = sum(max(0, p.slots - leases.get(p.declared.pool_id, 0)) for p in pools if p.ready and not p.draining)
    if ahead < free:
        return StartEstimate(0, 0, 0)
    # tasks per 10^6 seconds that all slots finish together
    throughput = 0
    for pool in pools:
        slots = pool.slots or pool.declared.slots or 1
        task_us = (pool.output_mtok or _DEFAULT_TOKENS * 1000) * 1_000_000 // (pool.decode_mtok_s or _DEFAULT_MTOK_S)
        throughput += slots * 1_000_000_000_000 // max(1, task_us + pool.first_token_us)
    waiting = ahead - free + 1
    start_ms = waiting * 1_000_000_000 // max(1, throughput)
    return StartEstimate(start_ms, start_ms * 6 // 10, start_ms * 16 // 10)
