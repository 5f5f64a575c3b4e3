"""Pools: what is configured and what was last observed."""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import WorkerResetError
from ..events.pool import PoolDeclared, PoolDraining, PoolReady, PoolRetired, PoolUnready
from ..events.task import TaskAttemptFailed, TaskEnded, TaskPlaced
from .projection import Projection, Recorded, on


class PoolState(msgspec.Struct, kw_only=True):
    """One pool."""

    declared: PoolDeclared
    ready: bool = False
    draining: bool = False
    observed: PoolReady | None = None
    cause: str = "starting"
    detail: str = ""
    advice: str = ""
    since_ns: int = 0
    restarts: int = 0
    #: learnt decode rate, thousandths of a token per second
    decode_mtok_s: int = 0
    #: learnt time from placement to the first token, microseconds
    first_token_us: int = 0
    #: learnt tokens per task, thousandths
    output_mtok: int = 0
    #: attempts that broke off since one ended well
    failures: int = 0
    #: until when it is passed over for that, Unix ns
    suspect_until_ns: int = 0

    @property
    def slots(self) -> int:
        """Tasks at once: the engine's slots, at most the configured bound."""
        if self.observed is None:
            return 0
        return min(self.declared.slots or self.observed.slots, self.observed.slots)


#: how long a pool is passed over after an attempt on it broke off; doubles with each failure in a row
_SUSPECT_NS = 50_000_000
_SUSPECT_MAX_NS = 5_000_000_000
#: reasons of broken attempts that are no fault of the engine
_NO_FAULT = frozenset({"restart", "diverged"})


class Pools(Projection):
    """Pools by id, and which serve a model."""

    name = "pools"
    version = 2

    def __init__(self) -> None:
        self.by_id: dict[str, PoolState] = {}
        #: pool of each placed task, to learn from its end
        self._running: dict[str, str] = {}

    def group_of(self, model_ref: str) -> str | None:
        """The serving group that answers to a model's name or alias."""
        for pool in self.by_id.values():
            if model_ref == pool.declared.model_ref:
                return model_ref
        for pool in self.by_id.values():
            if model_ref in pool.declared.aliases:
                return pool.declared.model_ref
        return None

    def serving(self, group: str) -> list[PoolState]:
        """Pools of a serving group, by id."""
        return [p for _, p in sorted(self.by_id.items()) if p.declared.model_ref == group]

    @on(PoolDeclared)
    def _declared(self, record: Recorded) -> None:
        event: PoolDeclared = record.payload
        old = self.by_id.get(event.pool_id)
        self.by_id[event.pool_id] = PoolState(
            declared=event,
            since_ns=record.time_ns,
            decode_mtok_s=old.decode_mtok_s if old else 0,
            first_token_us=old.first_token_us if old else 0,
            output_mtok=old.output_mtok if old else 0,
        )

    @on(PoolRetired)
    def _retired(self, record: Recorded) -> None:
        self.by_id.pop(record.payload.pool_id, None)

    @on(PoolReady)
    def _ready(self, record: Recorded) -> None:
        event: PoolReady = record.payload
        pool = self.by_id.get(event.pool_id)
        if pool is None:
            return
        if pool.observed is not None and pool.observed.generation != event.generation:
            pool.restarts += 1
        pool.ready, pool.draining, pool.observed = True, False, event
        pool.cause = pool.detail = pool.advice = ""
        pool.since_ns = record.time_ns
        pool.decode_mtok_s = pool.decode_mtok_s or event.decode_mtok_s

    @on(PoolUnready)
    def _unready(self, record: Recorded) -> None:
        event: PoolUnready = record.payload
        pool = self.by_id.get(event.pool_id)
        if pool is None:
            return
        pool.ready = False
        pool.cause, pool.detail, pool.advice = event.cause, event.detail, event.advice
        pool.since_ns = record.time_ns

    @on(PoolDraining)
    def _draining(self, record: Recorded) -> None:
        pool = self.by_id.get(record.payload.pool_id)
        if pool is not None:
            pool.draining = True

    @on(TaskPlaced)
    def _task_placed(self, record: Recorded) -> None:
        self._running[record.payload.task_id] = record.payload.pool_id

    @on(TaskAttemptFailed)
    def _attempt_failed(self, record: Recorded) -> None:
        event: TaskAttemptFailed = record.payload
        if event.code not in _NO_FAULT:
            self._suspect(event.pool_id, record.time_ns)

    def _suspect(self, pool_id: str, now_ns: int) -> None:
        pool = self.by_id.get(pool_id)
        if pool is not None:
            pause = min(_SUSPECT_NS << min(pool.failures, 10), _SUSPECT_MAX_NS)
            pool.failures += 1
            pool.suspect_until_ns = now_ns + pause

    @on(TaskEnded)
    def _task_ended(self, record: Recorded) -> None:
        event: TaskEnded = record.payload
        pool = self.by_id.get(self._running.pop(event.task_id, ""))
        if pool is not None and event.outcome == "completed":
            pool.failures = 0
        elif pool is not None and event.code == WorkerResetError.code:
            self._suspect(pool.declared.pool_id, record.time_ns)
        if pool is not None and event.tokens_out:
            tokens = event.tokens_out * 1000
            pool.output_mtok = tokens if not pool.output_mtok else (pool.output_mtok * 7 + tokens) // 8
        if pool is None or event.decode_ms <= 0 or event.tokens_out < 2 or event.outcome != "completed":
            return
        rate = event.tokens_out * 1_000_000 // event.decode_ms
        # Fixed point: an eighth of each new observation, integers only (ADM-5, JRN-9).
        pool.decode_mtok_s = rate if not pool.decode_mtok_s else (pool.decode_mtok_s * 7 + rate) // 8
        first = event.prefill_ms * 1000
        pool.first_token_us = first if not pool.first_token_us else (pool.first_token_us * 7 + first) // 8

    def dump(self) -> Any:
        """Pools in order of their ids, then the pools of running tasks."""
        return {
            "pools": [msgspec.to_builtins(self.by_id[k]) for k in sorted(self.by_id)],
            "running": dict(sorted(self._running.items())),
        }

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.by_id = {p["declared"]["pool_id"]: msgspec.convert(p, PoolState) for p in data["pools"]}
        self._running = dict(data["running"])
