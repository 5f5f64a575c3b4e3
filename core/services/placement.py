"""Placement: a snapshot for the policy out of head, and the policy's answer as a decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ..devices import CPU
from ..events.task import DecisionRecord, FilterRecord, PlacementRecord
from ..ports import PlacementPolicy, PlacementSnapshot
from ..projections.head import Head
from ..projections.pools import PoolState
from ..projections.tasks import TaskState
from ..types import PlacementRequest, PoolView, TaskView
from .abilities import missing
from .engines import EngineDirectory

_MIB = 1024 * 1024


def placement_record(request: PlacementRequest | None) -> PlacementRecord | None:
    """A caller's overrides as they are journaled."""
    if request is None:
        return None
    return PlacementRecord(
        mode=request.mode,
        pin_pool_id=request.pin_pool_id or "",
        prefer_pools=request.prefer_pools,
        avoid_pools=request.avoid_pools,
        require_device_mask=request.require_device_mask or "",
        allow_fallback=request.allow_fallback,
    )


def pool_view(
    pool: PoolState, leases: int, *, suspect: bool = False, free_bytes: int = -1, kv_tokens_free: int = -1
) -> PoolView:
    """A pool as a decision sees it."""
    observed = pool.observed
    return PoolView(
        pool_id=pool.declared.pool_id,
        engine=pool.declared.engine,
        model_ref=pool.declared.model_ref,
        ready=pool.ready and not suspect,
        draining=pool.draining,
        slots=pool.slots,
        leases=leases,
        ctx=observed.ctx if observed else 0,
        engine_version=observed.engine_version if observed else "",
        model_digest=observed.model_digest if observed else "",
        device_mask=pool.declared.device_mask,
        replica_id=observed.replica_id if observed else "r0",
        decode_mtok_s=pool.decode_mtok_s,
        tokens_outstanding=leases * (pool.output_mtok // 1000),
        free_bytes=free_bytes,
        kv_tokens_free=kv_tokens_free,
        on_demand=pool.declared.on_demand,
        cause=pool.cause or ("suspect" if suspect else ""),
    )


def free_bytes(head: Head, pool: PoolState) -> int:
    """Free on the fullest of the devices that a pool is on; -1 = not known, or not believed (PLC-3)."""
    seen = head.gpus.by_host.get(pool.declared.host)
    if seen is None or not pool.devices:
        return -1
    if pool.devices == [CPU]:
        return seen.memory_available_mib * _MIB if seen.memory_total_mib else -1
    gpus = {gpu.uuid: gpu for gpu in seen.gpus if not gpu.trouble} if not seen.trouble else {}
    on = [gpus.get(device) for device in pool.devices]
    if any(gpu is None or not gpu.total_mib for gpu in on):
        return -1
    return min(max(0, gpu.total_mib - gpu.used_mib - gpu.reserved_mib) for gpu in on if gpu is not None) * _MIB


def kv_tokens_free(head: Head, pool: PoolState) -> int:
    """Tokens that a KV cache which the slots share still takes, by the prompts and words of those who run there.

    -1: each slot has a context of its own.
    """
    sized, observed = pool.sized, pool.observed
    if sized is None or observed is None or sized.ctx * sized.slots >= observed.ctx * observed.slots:
        return -1
    held = 0
    for lease_id in head.leases.slots.get(pool.declared.pool_id, {}).values():
        state = head.tasks.live.get(head.leases.by_id[lease_id].task_id)
        if state is not None:
            held += (state.started.prompt_tokens if state.started else state.admitted.prompt_tokens) + state.tokens_out
    return max(0, sized.ctx * sized.slots - held)


def task_view(state: TaskState, session_pool_id: str) -> TaskView:
    """A task as a decision sees it."""
    admitted = state.admitted
    overrides = admitted.placement
    return TaskView(
        task_id=admitted.task_id,
        model_ref=admitted.group,
        engine=admitted.engine,
        ctx_needed=max(admitted.ctx, admitted.prompt_tokens if admitted.prompt_tokens_exact else 0),
        max_tokens=admitted.max_tokens,
        priority=admitted.priority,
        session_pool_id=session_pool_id,
        placement=PlacementRequest()
        if overrides is None
        else PlacementRequest(
            mode=overrides.mode,  # type: ignore[arg-type]
            pin_pool_id=overrides.pin_pool_id or None,
            prefer_pools=overrides.prefer_pools,
            avoid_pools=overrides.avoid_pools,
            require_device_mask=overrides.require_device_mask or None,
            allow_fallback=overrides.allow_fallback,
        ),
    )


def unmet_wish(
    pools: Sequence[PoolState], *, engine: str, ctx: int, strict: bool, wanted: PlacementRequest | PlacementRecord
) -> str:
    """Which of a task's wishes leaves none of its group's pools, whatever becomes of them; "" = one may take it.

    What passes by itself (a pool that is not ready, that is full, that was not seen yet) excludes nothing here.
    """
    pins = [wanted.pin_pool_id] if wanted.mode == "pin" else None
    prefers = wanted.prefer_pools if wanted.mode == "prefer" and not wanted.allow_fallback else None
    mask = wanted.require_device_mask
    filters: tuple[tuple[str, Callable[[PoolState], bool]], ...] = (
        ("model_ref", lambda _: True),
        ("engine", lambda p: not engine or p.declared.engine == engine),
        ("placement.pin_pool_id", lambda p: pins is None or p.declared.pool_id in pins),
        ("placement.require_device_mask", lambda p: not mask or p.declared.device_mask == mask),
        ("placement.prefer_pools", lambda p: not prefers or p.declared.pool_id in prefers),
        ("placement.avoid_pools", lambda p: p.declared.pool_id not in wanted.avoid_pools),
        (
            "determinism",
            lambda p: not strict or ((p.slots or p.declared.slots or 1) == 1 and p.declared.slots_max <= 1),
        ),
        ("ctx", lambda p: p.observed is None or not p.observed.ctx or ctx <= p.observed.ctx),
    )
    left = list(pools)
    for field, keeps in filters:
        left = [pool for pool in left if keeps(pool)]
        if not left:
            return field
    return ""


def affinity_keys(state: TaskState) -> list[str]:
    """What a slot works on when it works on this task: its session, else its prompt's beginnings; per owner."""
    admitted = state.admitted
    if admitted.session_id:
        return [f"s:{admitted.session_id}"]
    return [f"p:{admitted.owner}:{admitted.group}:{prefix}" for prefix in admitted.prefixes]


class Placement:
    """Asks the configured policy; what it does not know (suspect pools, strict runs) is filtered before."""

    def __init__(self, policy: PlacementPolicy, engines: EngineDirectory) -> None:
        self.policy = policy
        self._engines = engines

    def snapshot(self, head: Head, group: str, now_ns: int) -> PlacementSnapshot:
        """All that a decision about this group may read."""
        return PlacementSnapshot(
            now_ns=now_ns,
            pools=tuple(
                pool_view(
                    pool,
                    head.leases.count(pool.declared.pool_id),
                    suspect=pool.suspect_until_ns > now_ns,
                    free_bytes=free_bytes(head, pool),
                    kv_tokens_free=kv_tokens_free(head, pool),
                )
                for pool in head.pools.serving(group)
            ),
        )

    def hopeless(self, head: Head, state: TaskState) -> str:
        """Which of a task's wishes no pool of the configuration can meet; "" = it may wait."""
        admitted = state.admitted
        pools = head.pools.serving(admitted.group)
        if pools and all(missing(pool, admitted.needs) for pool in pools):
            return "workload"
        if admitted.determinism == "strict":
            pools = [p for p in pools if not p.ready or not self._why_not_strict(head, pool_view(p, 0))]
            if not pools:
                return "determinism"
        return unmet_wish(
            pools,
            engine=admitted.engine,
            ctx=task_view(state, "").ctx_needed,
            strict=admitted.determinism == "strict",
            wanted=admitted.placement or PlacementRecord(),
        )

    @staticmethod
    def wishes(state: TaskState) -> tuple[str, ...]:
        """All that tells apart where tasks of one group may go."""
        admitted = state.admitted
        view = task_view(state, "")
        return (
            admitted.engine,
            admitted.determinism,
            ",".join(admitted.needs),
            str(view.ctx_needed),
            msgspec.json.encode(admitted.placement).decode(),
        )

    def decide(self, head: Head, state: TaskState, now_ns: int) -> DecisionRecord | None:
        """The decision for one task; ``None``: it waits."""
        snapshot = self.snapshot(head, state.admitted.group, now_ns)
        filters: list[FilterRecord] = []
        others = _unlike(head.pools.serving(state.admitted.group))
        if others:
            filters.append(FilterRecord(name="same_version", excluded=others))
            snapshot = msgspec.structs.replace(
                snapshot, pools=tuple(p for p in snapshot.pools if p.pool_id not in others)
            )
        unable = {
            pool.declared.pool_id: f"its engine does not do {', '.join(lacks)}"
            for pool in head.pools.serving(state.admitted.group)
            if (lacks := missing(pool, state.admitted.needs))
        }
        if unable:
            filters.append(FilterRecord(name="ability", excluded=unable))
            snapshot = msgspec.structs.replace(
                snapshot, pools=tuple(p for p in snapshot.pools if p.pool_id not in unable)
            )
        if state.admitted.determinism == "strict":
            excluded = {p.pool_id: why for p in snapshot.pools if (why := self._why_not_strict(head, p))}
            filters.append(FilterRecord(name="determinism", excluded=excluded))
            snapshot = PlacementSnapshot(
                now_ns=snapshot.now_ns, pools=tuple(p for p in snapshot.pools if p.pool_id not in excluded)
            )
        decision = self.policy.decide(snapshot, task_view(state, self._warm_pool(head, state)))
        if decision is not None and filters:
            decision = msgspec.structs.replace(decision, filters_applied=[*filters, *decision.filters_applied])
        return decision

    def _why_not_strict(self, head: Head, pool: PoolView) -> str:
        properties = self._engines.properties(pool.pool_id)
        if head.pools.by_id[pool.pool_id].declared.slots_max > 1:
            return "its slots are tuned, and others may join its batch"
        if pool.slots != 1 and pool.ready:
            return "its batch is shared"
        return "its engine cannot guarantee it" if properties is not None and not properties.strict_capable else ""

    @staticmethod
    def _warm_pool(head: Head, state: TaskState) -> str:
        """The pool that may hold the task's KV cache; "" = none."""
        warm = head.affinity.warm(affinity_keys(state))
        pool = head.pools.by_id.get(warm.pool_id) if warm is not None else None
        if warm is None or pool is None or pool.observed is None or pool.observed.generation != warm.generation:
            return ""
        return warm.pool_id

    @staticmethod
    def slot(head: Head, pool: PoolState, state: TaskState) -> tuple[int, bool] | None:
        """A free slot of the pool for the task, and whether it may hold its KV cache; ``None``: all are taken.

        Its own, if it is free; else the one that is missed least, so that others find theirs.
        """
        pool_id = pool.declared.pool_id
        free = head.leases.free_slots(pool_id, pool.slots)
        if not free:
            return None
        warm = head.affinity.warm(affinity_keys(state))
        generation = pool.observed.generation if pool.observed else 0
        if warm is not None and (warm.pool_id, warm.generation) == (pool_id, generation) and warm.slot in free:
            return warm.slot, True
        return head.affinity.coldest(pool_id, free), False


def _unlike(pools: Sequence[PoolState]) -> dict[str, str]:
    """Pools that are to run what the others of their model run, and do not, with what tells them apart (PLC-6).

    The first pool by its id that is ready says what is to be run.
    """
    ready = [pool for pool in pools if pool.ready and pool.observed is not None]
    if len(ready) < 2 or not any(pool.declared.same_version for pool in ready):
        return {}
    first = ready[0]
    out = {}
    for pool in ready[1:]:
        if pool.declared.same_version and first.observed is not None and pool.observed is not None:
            own, theirs = pool.observed, first.observed
            if own.engine_version != theirs.engine_version:
                out[pool.declared.pool_id] = (
                    f"runs engine version {own.engine_version}, {first.declared.pool_id} runs {theirs.engine_version}"
                )
            elif own.model_digest != theirs.model_digest:
                out[pool.declared.pool_id] = f"its weights are not those of {first.declared.pool_id}"
    return out
