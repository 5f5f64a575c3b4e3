"""A policy that takes the first pool with a free slot."""

from __future__ import annotations

from llama_orch.plugins import DecisionRecord, FilterRecord, PlacementSnapshot, TaskView


class FirstFit:
    """By the pools' names, without a look at how fast they are."""

    name = "first-fit"
    version = "1"

    def decide(self, snapshot: PlacementSnapshot, task: TaskView) -> DecisionRecord | None:
        pools = sorted(snapshot.pools, key=lambda pool: pool.pool_id)
        full = {pool.pool_id: "no free slot" for pool in pools if not pool.ready or pool.leases >= pool.slots}
        free = [pool.pool_id for pool in pools if pool.pool_id not in full]
        if not free:
            return None
        return DecisionRecord(
            selected_pool_id=free[0],
            candidates_considered=[pool.pool_id for pool in pools],
            filters_applied=[FilterRecord(name="slots", excluded=full)] if full else [],
            scores_ms=dict.fromkeys(free, 0),
            tie_breakers_applied=["pool_id"] if len(free) > 1 else [],
            pinned=False,
            fallback_used=False,
            decision_reason="the first pool with a free slot",
            policy=self.name,
            policy_version=self.version,
        )
