"""The default placement policy: the pool that ends the task first (PLC-1 to PLC-3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .. import (
    DecisionRecord,
    FilterRecord,
    InvalidParamsError,
    PlacementPolicy,
    PlacementSnapshot,
    PoolView,
    TaskView,
    hookimpl,
)

#: thousandths of a token per second, for a pool that was not measured yet
ASSUMED_MTOK_S: Final = 20_000
#: tokens that a task without max_tokens is taken to say
ASSUMED_TOKENS: Final = 512

#: predictions that differ by less, in per cent of the earliest, count as equal: they are not better than that
TIE_PERCENT: Final = 5

#: free memory that differs by less counts as equal: caches breathe
_SAME_BYTES: Final = 256 * 1024 * 1024

#: a filter: its name, and why it excludes a pool ("" = it does not)
Filter = tuple[str, Callable[[PoolView], str]]


class DefaultPolicy:
    """Filters by what a pool can do, then takes the earliest predicted end, then breaks ties in a fixed order."""

    name = "default"
    version = "2"

    def decide(self, snapshot: PlacementSnapshot, task: TaskView) -> DecisionRecord | None:
        """Where a task goes now; ``None``: it waits, for a slot or for a pool to be ready.

        Raises:
            InvalidParamsError: it is pinned to a pool that does not serve its model.
        """
        wanted = task.placement
        pools = sorted(snapshot.pools, key=lambda pool: pool.pool_id)
        pinned = wanted.mode == "pin"
        if pinned:
            _check_pin(wanted.pin_pool_id, pools)
        filters: list[FilterRecord] = []
        left = pools
        for name, reason in _filters(task):
            excluded = {pool.pool_id: why for pool in left if (why := reason(pool))}
            if excluded:
                filters.append(FilterRecord(name=name, excluded=excluded))
                left = [pool for pool in left if pool.pool_id not in excluded]
        # A preference that cannot be had now falls back only where that is allowed.
        fallback = False
        if wanted.mode == "prefer" and wanted.prefer_pools:
            preferred = [pool for pool in left if pool.pool_id in wanted.prefer_pools]
            if preferred or not wanted.allow_fallback:
                others = {p.pool_id: "another pool is preferred" for p in left if p not in preferred}
                if others:
                    filters.append(FilterRecord(name="prefer", excluded=others))
                left = preferred
            else:
                fallback = True
        if not left:
            return None
        scores = {pool.pool_id: _end_ms(pool, task) for pool in left}
        chosen, ties = _choose(left, scores, task)
        return DecisionRecord(
            selected_pool_id=chosen.pool_id,
            candidates_considered=[pool.pool_id for pool in pools],
            filters_applied=filters,
            scores_ms=scores,
            tie_breakers_applied=ties,
            pinned=pinned,
            fallback_used=fallback,
            decision_reason=_reason(chosen, scores, ties, pinned=pinned, fallback=fallback),
            policy=self.name,
            policy_version=self.version,
        )


def _check_pin(pool_id: str | None, pools: list[PoolView]) -> None:
    if pool_id not in {pool.pool_id for pool in pools}:
        known = ", ".join(pool.pool_id for pool in pools) or "none"
        raise InvalidParamsError(
            f"placement.pin_pool_id: no pool {pool_id!r} serves this model",
            field="placement.pin_pool_id",
            got=pool_id,
            remedy=f"Pin one of: {known}.",
        )


def _filters(task: TaskView) -> list[Filter]:
    """In the order of PLC-1; a pool is excluded by the first that applies."""
    wanted = task.placement
    # max_tokens is a bound, not a need: an engine ends at the end of its context.
    needed = task.ctx_needed
    mask = wanted.require_device_mask
    return [
        ("ready", lambda p: "" if p.ready else f"not ready{f': {p.cause}' if p.cause else ''}"),
        ("draining", lambda p: "it is draining" if p.draining else ""),
        ("model", lambda p: "" if p.model_ref == task.model_ref else f"serves {p.model_ref}"),
        ("engine", lambda p: f"runs {p.engine}" if task.engine and p.engine != task.engine else ""),
        ("context", lambda p: f"{needed} tokens do not fit {p.ctx}" if p.ctx and needed > p.ctx else ""),
        ("device_mask", lambda p: f"runs on {p.device_mask}" if mask is not None and p.device_mask != mask else ""),
        (
            "kv_memory",
            lambda p: (
                f"{needed} tokens do not fit the {p.kv_tokens_free} that its KV cache has left"
                if 0 <= p.kv_tokens_free < needed
                else ""
            ),
        ),
        (
            "pin",
            lambda p: (
                "the task is pinned elsewhere" if wanted.mode == "pin" and p.pool_id != wanted.pin_pool_id else ""
            ),
        ),
        ("avoid", lambda p: "the task avoids it" if p.pool_id in wanted.avoid_pools else ""),
        ("slots", lambda p: "" if p.leases < p.slots else f"{p.leases} of {p.slots} slots are taken"),
    ]


def _rate_mtok_s(pool: PoolView) -> int:
    return pool.decode_mtok_s or ASSUMED_MTOK_S


def _end_ms(pool: PoolView, task: TaskView) -> int:
    """When the task would end there, in milliseconds from now: its own tokens, at the rate that the tasks already
    there leave to it. A measured rate is that of one task alone; each neighbour that still has much to decode takes
    its share of the time that both of them run."""
    own = task.max_tokens or ASSUMED_TOKENS
    shared = min(pool.tokens_outstanding, own * pool.leases)
    return (own + shared) * 1_000_000 // _rate_mtok_s(pool)


def _choose(left: list[PoolView], scores: dict[str, int], task: TaskView) -> tuple[PoolView, list[str]]:
    """The earliest end; among (nearly) equal ones affinity, then load, then memory, then rate, then name. Answers which
    rules were needed. A device whose sample is missing or not believed counts as full: its memory is not guessed."""
    latest = min(scores.values()) * (100 + TIE_PERCENT) // 100
    rest = [pool for pool in left if scores[pool.pool_id] <= latest]
    rules: tuple[tuple[str, Callable[[PoolView], int]], ...] = (
        ("affinity", lambda p: 0 if task.session_pool_id and p.pool_id == task.session_pool_id else 1),
        # As a fraction of its slots, in integers.
        ("least_loaded", lambda p: p.leases * 1_000_000 // max(p.slots, 1)),
        ("most_free_vram", lambda p: -(max(0, p.free_bytes) // _SAME_BYTES)),
        ("tokens_per_second", lambda p: -p.decode_mtok_s),
    )
    used: list[str] = []
    for name, key in rules:
        if len(rest) == 1:
            break
        least = min(key(pool) for pool in rest)
        kept = [pool for pool in rest if key(pool) == least]
        if len(kept) < len(rest):
            used.append(name)
            rest = kept
    if len(rest) > 1:
        used.append("pool_id")
    return rest[0], used


def _reason(chosen: PoolView, scores: dict[str, int], ties: list[str], *, pinned: bool, fallback: bool) -> str:
    if pinned:
        return f"pinned to {chosen.pool_id}"
    if len(scores) == 1:
        why = "the only pool that can take it now"
    elif ties:
        why = f"ends first, in {scores[chosen.pool_id]} ms, as others do; decided by {ties[-1]}"
    else:
        why = f"ends first, in {scores[chosen.pool_id]} ms"
    return f"{why}; no preferred pool could take it" if fallback else why


@hookimpl
def llama_orch_placement_policy() -> PlacementPolicy:
    """The policy that decides where nothing else is configured."""
    return DefaultPolicy()
