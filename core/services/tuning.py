"""Tuning of slots: looks at the pools now and then, and appends what was decided with its reason (ENG-3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ..errors import JournalUnavailableError
from ..events.pool import PoolSlotsTuned
from ..journal.journal import Journal
from ..projections.estimates import Estimates
from ..projections.head import Head
from ..projections.pools import PoolState
from ..scheduling.tuning import SlotsChange, TuningAims, TuningState, tune
from ..settings import PoolSettings, Settings

#: seconds between two looks
LOOK_S: Final = 2.0
Tuner = Callable[[TuningState, TuningAims], SlotsChange | None]


class TuningService:
    """Changes the slots in use of pools whose configuration asks for it (``tuning.mode: auto``).

    Args:
        pump: told a group whose pools may take more tasks now.
        tuner: the pure decision.
    """

    def __init__(self, journal: Journal, settings: Settings, pump: Callable[[str], None], tuner: Tuner = tune) -> None:
        self._journal = journal
        self._pump = pump
        self._tuner = tuner
        self._pools = {pool.id: pool for pool in settings.pools if pool.tuning.mode == "auto"}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look, when there is a pool to look at."""
        if self._pools and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._again)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._again)
        if self._journal.status == "ok":
            self.look()

    def look(self) -> None:
        """Decide for each pool, and append what changes."""
        head, now_ns = self._journal.head, self._journal.now_ns()
        for name, settings in sorted(self._pools.items()):
            pool = head.pools.by_id.get(name)
            if pool is None or not pool.ready or pool.draining:
                continue
            state = state_of(head, pool, now_ns)
            change = self._tuner(state, aims_of(settings, pool))
            if change is not None:
                self._append(pool, state, change)

    def _append(self, pool: PoolState, state: TuningState, change: SlotsChange) -> None:
        event = PoolSlotsTuned(
            pool_id=pool.declared.pool_id,
            slots=change.slots,
            was=state.slots,
            reason=change.reason,
            first_token_ms=state.first_token_ms,
            inter_token_us=state.inter_token_us,
            kv_used_permille=state.kv_used_permille,
            waiting=state.waiting,
        )
        try:
            self._journal.append([event], actor="tuning", correlation="", internal=True)
        except JournalUnavailableError:
            return  # looked at again soon
        if change.slots > state.slots:
            self._pump(pool.declared.model_ref)


def aims_of(settings: PoolSettings, pool: PoolState) -> TuningAims:
    """What the configuration asks for, as far as the engine has slots."""
    tuning = settings.tuning
    most = min(tuning.slots_max or pool.engine_slots, pool.engine_slots)
    return TuningAims(
        slots_min=min(tuning.slots_min, most),
        slots_max=most,
        first_token_ms=tuning.first_token_ms,
        inter_token_us=tuning.inter_token_ms * 1000,
    )


def state_of(head: Head, pool: PoolState, now_ns: int) -> TuningState:
    """A pool as the decision sees it, out of head."""
    name, group = pool.declared.pool_id, pool.declared.model_ref
    rates = head.of(Estimates).pools.get(name)
    queue = head.queue.groups.get(group)
    first = queue.interactive.first() if queue is not None else None
    waits_ms = (now_ns - head.tasks.live[first[1]].admitted_ns) // 1_000_000 if first is not None else 0
    return TuningState(
        slots=pool.slots,
        leases=head.leases.count(name),
        waiting=len(queue) if queue is not None else 0,
        since_change_ms=(now_ns - rates.tuned_ns) // 1_000_000 if rates is not None else 0,
        seen=rates.since_tuned if rates is not None else 0,
        first_token_ms=max(waits_ms, rates.lately_first_ms.mean if rates is not None else 0),
        inter_token_us=rates.lately_token_us.mean if rates is not None else 0,
        kv_used_permille=kv_used_permille(head, pool),
        token_us={n: average.mean // 1000 for n, average in rates.token_ns.items()} if rates is not None else {},
    )


def kv_used_permille(head: Head, pool: PoolState) -> int:
    """Share of the pool's KV cache that prompts and answers of running tasks fill, thousandths."""
    observed = pool.observed
    if observed is None or not observed.ctx or not observed.slots:
        return 0
    held = 0
    for lease_id in head.leases.slots.get(pool.declared.pool_id, {}).values():
        state = head.tasks.live.get(head.leases.by_id[lease_id].task_id)
        if state is not None:
            held += min(observed.ctx, state.admitted.prompt_tokens + state.tokens_out)
    sized = pool.sized
    capacity = sized.ctx * sized.slots if sized is not None and sized.ctx and sized.slots else 0
    return min(1000, 1000 * held // (capacity or observed.ctx * observed.slots))
