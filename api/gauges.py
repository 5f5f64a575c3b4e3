"""Gauges of memory and GPUs, read when somebody scrapes: what is not known, or not any more, has no series (OBS-1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..core.services.container import Services

#: engine, engine_version, pool_id, replica_id
PoolLabels = tuple[str, str, str, str]
_NO_POOL: PoolLabels = ("", "", "", "")


class Gauge(Protocol):
    """A number per combination of label values."""

    def set(self, *values: str, to: float) -> None: ...

    def clear(self) -> None: ...


def read_kv_cache(services: Services, gauge: Gauge, labels: Callable[[str], PoolLabels]) -> None:
    """Share of each ready pool's slots and context that running tasks hold: their prompts and what they said.

    Counted here and not asked of the engines: llama.cpp does not tell it any more, and what is counted has no age.
    """
    head = services.journal.head
    held: dict[str, int] = {}
    for task_id in services.dispatcher.attempts:
        state = head.tasks.live.get(task_id)
        if state is not None and state.started is not None:
            held[state.pool_id] = held.get(state.pool_id, 0) + state.started.prompt_tokens + state.tokens_out
    gauge.clear()
    for pool_id, pool in sorted(head.pools.by_id.items()):
        room = pool.engine_slots * pool.observed.ctx if pool.ready and pool.observed is not None else 0
        if room:
            gauge.set(*labels(pool_id), to=min(1.0, held.get(pool_id, 0) / room))


def read_gpus(services: Services, busy: Gauge, used: Gauge, labels: Callable[[str], PoolLabels]) -> None:
    """Utilisation of each GPU under each pool that is on it; its memory by what pools were measured to take, and the rest
    without a pool, so that the sum over a device is what it has in use."""
    busy.clear()
    used.clear()
    by_id = services.journal.head.pools.by_id
    for host in services.gpus.views():
        for gpu in host.gpus if host.trouble is None else ():
            if gpu.trouble is not None:
                continue
            if gpu.utilization_percent is not None:
                for on_it in [labels(pool_id) for pool_id in gpu.pools] or [_NO_POOL]:
                    busy.set(*on_it, gpu.uuid, to=gpu.utilization_percent / 100)
            if gpu.used_bytes is None:
                continue
            rest = gpu.used_bytes
            for pool_id in gpu.pools:
                measured = by_id[pool_id].measured
                taken = min(rest, measured.observed_bytes.get(gpu.uuid, 0)) if measured is not None else 0
                if taken:
                    used.set(*labels(pool_id), gpu.uuid, to=taken)
                    rest -= taken
            used.set(*_NO_POOL, gpu.uuid, to=rest)
