"""Why nobody serves a model: the causes of its pools as the error that a client gets (ADM-8)."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import OrchError, PoolUnavailableError, PoolUnreadyError
from ..projections.pools import PoolState


def trouble_of(pool: PoolState, now_ns: int) -> OrchError:
    """What is wrong with one pool, with its advice and when it is tried again."""
    name, cause = pool.declared.pool_id, pool.cause
    detail = f": {pool.detail}" if pool.detail else ""
    retry_ms = max(0, pool.retry_ns - now_ns) // 1_000_000 if pool.retry_ns else None
    return PoolUnreadyError(
        f"pool {name!r} is not ready ({cause}){detail}",
        pool_id=name,
        engine=pool.declared.engine,
        remedy=pool.advice or None,
        retry_after_ms=retry_ms,
        cause=cause,
        detail=pool.detail,
        **({"last_cause": pool.last_cause} if pool.last_cause else {}),
    )


def trouble_of_group(pools: Sequence[PoolState], now_ns: int) -> OrchError | None:
    """Why a task of this group would wait for somebody to mend something; ``None`` = one of its pools serves or may yet.

    A pool that failed in a way that may pass by itself is waited for; one that only a person can mend, or whose circuit
    is open, is not. A drained pool comes back when whoever drained it says so: its tasks wait.
    """
    if not pools or not all(_hopeless(pool) for pool in pools):
        return None
    if len(pools) == 1:
        return trouble_of(pools[0], now_ns)
    told = "; ".join(
        f"{pool.declared.pool_id}: {pool.cause}" + (f" ({pool.detail})" if pool.detail else "") for pool in pools
    )
    first = pools[0]
    return PoolUnavailableError(
        f"none of the {len(pools)} pools of {first.declared.model_ref!r} serves: {told}",
        remedy=first.advice or None,
        cause=first.cause,
        pools=[
            {"pool_id": pool.declared.pool_id, "cause": pool.cause, "detail": pool.detail, "advice": pool.advice}
            for pool in pools
        ],
    )


def _hopeless(pool: PoolState) -> bool:
    if pool.ready:
        return False
    return pool.failed and (pool.permanent or pool.cause == "circuit-open")
