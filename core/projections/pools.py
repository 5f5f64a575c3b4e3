"""Pools: what is configured and what was last observed."""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import WorkerResetError
from ..events.pool import (
    PoolDeclared,
    PoolDraining,
    PoolHandedOver,
    PoolLoading,
    PoolMeasured,
    PoolReady,
    PoolReloaded,
    PoolReloadFailed,
    PoolReloading,
    PoolRetired,
    PoolSized,
    PoolSlotsTuned,
    PoolUndrained,
    PoolUnloading,
    PoolUnready,
)
from ..events.task import TaskAttemptFailed, TaskEnded, TaskPlaced
from .projection import Projection, Recorded, on

#: causes of a pool that is not loaded, and is not meant to be
UNLOADED = "unloaded"
#: causes of a pool that is on its way, by itself
_ON_ITS_WAY = frozenset({"starting", "loading", "connecting", "provisioning", "staging", "reloading"})


class PoolState(msgspec.Struct, kw_only=True):
    """One pool."""

    #: what the pool is now
    declared: PoolDeclared
    #: what configuration says of it, where a reload changed its model since
    configured: PoolDeclared | None = None
    ready: bool = False
    #: no new tasks; see ``drain_cause``
    draining: bool = False
    #: "operator" | "swap" | "reload" | "idle", while it drains or stays drained
    drain_cause: str = ""
    #: when draining began, Unix ns
    drain_since_ns: int = 0
    #: until when running tasks may go on, Unix ns; 0 = until they end
    drain_until_ns: int = 0
    #: its engine shall run: it was decided to load it, and not to unload it since
    wanted: bool = False
    #: its engine may still hold memory: it was decided to load it, and not seen unloaded since
    holds: bool = False
    #: devices that the last decision to load named
    devices: list[str] = []
    #: what it counts for on each of them, bytes: predicted, or observed where that is more
    reserved_bytes: dict[str, int] = {}
    #: what the memory model says of it
    sized: PoolSized | None = None
    measured: PoolMeasured | None = None
    #: what observed memory was of the predicted one, thousandths; 0 = not observed yet
    memory_permille: int = 0
    #: when a task last began or ended on it, Unix ns
    used_ns: int = 0
    #: until when it last took tasks, for one that does not now, Unix ns; 0 = it never did
    served_until_ns: int = 0
    #: group that it left for; "" = none
    made_room_for: str = ""
    #: what the last decision to load it predicted, bytes per device
    predicted_bytes: dict[str, int] = {}
    #: since when it fails, Unix ns; 0 = it does not
    failing_since_ns: int = 0
    #: why it was last loaded, and why it was last unloaded, in words
    load_reason: str = ""
    unload_reason: str = ""
    #: when it was decided to load it, Unix ns
    loading_since_ns: int = 0
    #: learnt time of a load, milliseconds
    load_ms: int = 0
    #: when it may be tried again, Unix ns; 0 = now
    retry_ns: int = 0
    #: nothing but a person can mend it
    permanent: bool = False
    #: how often somebody asked to try again at once
    attempts: int = 0
    #: model that it is being changed to, and how; "" = it is not
    reloading_to: str = ""
    reload_source: str = ""
    handover: str = ""
    #: why the last reload did not work, or ""
    reload_trouble: str = ""
    reload_advice: str = ""
    #: where the model came from that it served before, while tasks run on that one's engine; "" = none does
    reloaded_from: str = ""
    #: slots in use as tuned; 0 = not tuned
    tuned_slots: int = 0
    observed: PoolReady | None = None
    cause: str = "starting"
    detail: str = ""
    advice: str = ""
    #: of "circuit-open": the cause of the last failure
    last_cause: str = ""
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
        most = min(self.declared.slots or self.observed.slots, self.observed.slots)
        return min(self.tuned_slots, most) if self.tuned_slots else most

    @property
    def engine_slots(self) -> int:
        """Slots that the engine has, whatever is in use."""
        return 0 if self.observed is None else self.observed.slots

    @property
    def on_its_way(self) -> bool:
        """It is not ready, and will be by itself as far as anybody knows."""
        return not self.ready and self.cause in _ON_ITS_WAY

    @property
    def failed(self) -> bool:
        """It does not run, is not on its way and was not meant to end: something is wrong."""
        return not self.ready and self.cause not in _ON_ITS_WAY and self.cause not in (UNLOADED, "unloading")


#: how long a pool is passed over after an attempt on it broke off; doubles with each failure in a row
_SUSPECT_NS = 50_000_000
_SUSPECT_MAX_NS = 5_000_000_000
#: causes that show a prediction of memory to have been too small
_TOO_LARGE = frozenset({"vram-oom", "host-oom"})
#: reasons of broken attempts that are no fault of the engine
_NO_FAULT = frozenset({"restart", "diverged", "drained"})


class Pools(Projection):
    """Pools by id, and which serve a model."""

    name = "pools"
    version = 4

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
            # What was learnt of an engine, and what it may still hold, outlives a change of its settings.
            decode_mtok_s=old.decode_mtok_s if old else 0,
            first_token_us=old.first_token_us if old else 0,
            output_mtok=old.output_mtok if old else 0,
            wanted=old.wanted if old else False,
            holds=old.holds if old else False,
            devices=old.devices if old else [],
            reserved_bytes=old.reserved_bytes if old else {},
            load_ms=old.load_ms if old else 0,
            used_ns=old.used_ns if old else 0,
            served_until_ns=old.served_until_ns if old else 0,
            made_room_for=old.made_room_for if old else "",
            memory_permille=old.memory_permille if old else 0,
        )

    @on(PoolRetired)
    def _retired(self, record: Recorded) -> None:
        self.by_id.pop(record.payload.pool_id, None)

    @on(PoolSized)
    def _sized(self, record: Recorded) -> None:
        pool = self.by_id.get(record.payload.pool_id)
        if pool is not None:
            pool.sized = record.payload

    @on(PoolLoading)
    def _loading(self, record: Recorded) -> None:
        event: PoolLoading = record.payload
        pool = self.by_id.get(event.pool_id)
        if pool is None:
            return
        pool.wanted = pool.holds = True
        pool.devices = event.devices
        pool.reserved_bytes = pool.predicted_bytes = event.predicted_bytes
        pool.loading_since_ns = pool.used_ns = pool.since_ns = record.time_ns
        pool.retry_ns = 0
        pool.permanent = False
        pool.made_room_for = ""
        pool.load_reason = event.reason
        if pool.drain_cause != "operator":
            self._undrain(pool)
        if not pool.ready:
            pool.cause, pool.detail, pool.advice = "loading", event.reason, ""

    @on(PoolUnloading)
    def _unloading(self, record: Recorded) -> None:
        pool = self.by_id.get(record.payload.pool_id)
        if pool is not None:
            self._stops_serving(pool, record)
            pool.wanted = pool.ready = False
            pool.unload_reason = record.payload.reason
            pool.made_room_for = record.payload.for_group or pool.made_room_for
            pool.cause, pool.detail, pool.advice = "unloading", record.payload.reason, ""
            pool.since_ns = record.time_ns
            if pool.drain_cause != "operator":
                self._undrain(pool)

    @on(PoolReady)
    def _ready(self, record: Recorded) -> None:
        event: PoolReady = record.payload
        pool = self.by_id.get(event.pool_id)
        if pool is None:
            return
        if pool.observed is not None and pool.observed.generation != event.generation:
            pool.restarts += 1
        if event.load_ms:
            pool.load_ms = event.load_ms if not pool.load_ms else (pool.load_ms * 3 + event.load_ms) // 4
        pool.observed, pool.holds = event, True
        if pool.cause == "unloading":
            return  # it came up after it was decided to unload it
        pool.ready = True
        pool.cause = pool.detail = pool.advice = ""
        pool.retry_ns, pool.permanent, pool.failing_since_ns = 0, False, 0
        pool.reserved_bytes = pool.reserved_bytes or pool.predicted_bytes
        pool.since_ns = record.time_ns
        pool.used_ns = max(pool.used_ns, record.time_ns)
        if event.devices:
            pool.devices = event.devices
        pool.decode_mtok_s = pool.decode_mtok_s or event.decode_mtok_s

    @on(PoolUnready)
    def _unready(self, record: Recorded) -> None:
        event: PoolUnready = record.payload
        pool = self.by_id.get(event.pool_id)
        if pool is None:
            return
        self._stops_serving(pool, record)
        pool.ready = False
        pool.cause, pool.detail, pool.advice = event.cause, event.detail, event.advice
        pool.permanent = event.permanent
        pool.last_cause = event.last_cause
        pool.retry_ns = record.time_ns + event.retry_ms * 1_000_000 if event.retry_ms else 0
        pool.since_ns = record.time_ns
        if event.cause in _TOO_LARGE:
            # It did not fit where it was predicted to: from now on it counts for more.
            pool.memory_permille = min(max(1_000, pool.memory_permille) * 115 // 100, 4_000)
        pool.failing_since_ns = (pool.failing_since_ns or record.time_ns) if pool.failed else 0
        if event.cause == UNLOADED:
            pool.holds, pool.reserved_bytes = False, {}
        elif event.permanent or event.cause == "circuit-open":
            # Its engine is gone, and is not started again soon: others may have the memory.
            pool.reserved_bytes = {}

    @on(PoolMeasured)
    def _measured(self, record: Recorded) -> None:
        event: PoolMeasured = record.payload
        pool = self.by_id.get(event.pool_id)
        if pool is None:
            return
        pool.measured = event
        predicted, observed = sum(event.predicted_bytes.values()), sum(event.observed_bytes.values())
        if predicted and observed:
            pool.memory_permille = observed * 1000 // predicted
        pool.reserved_bytes = {
            device: max(pool.reserved_bytes.get(device, 0), event.observed_bytes.get(device, 0))
            for device in sorted({*pool.reserved_bytes, *event.observed_bytes})
        }

    @on(PoolDraining)
    def _draining(self, record: Recorded) -> None:
        event: PoolDraining = record.payload
        pool = self.by_id.get(event.pool_id)
        if pool is not None:
            self._stops_serving(pool, record)
            pool.draining = True
            pool.made_room_for = event.for_group
            pool.drain_cause = event.cause
            pool.drain_since_ns = record.time_ns
            pool.drain_until_ns = record.time_ns + event.deadline_ms * 1_000_000 if event.deadline_ms else 0

    @on(PoolUndrained)
    def _undrained(self, record: Recorded) -> None:
        pool = self.by_id.get(record.payload.pool_id)
        if pool is not None:
            self._undrain(pool)
            pool.attempts += 1

    @staticmethod
    def _stops_serving(pool: PoolState, record: Recorded) -> None:
        if pool.ready and not pool.draining:
            pool.served_until_ns = record.time_ns

    @staticmethod
    def _undrain(pool: PoolState) -> None:
        pool.draining, pool.drain_cause, pool.drain_since_ns, pool.drain_until_ns = False, "", 0, 0

    @on(PoolReloading)
    def _reloading(self, record: Recorded) -> None:
        event: PoolReloading = record.payload
        pool = self.by_id.get(event.pool_id)
        if pool is not None:
            pool.reloading_to, pool.reload_source, pool.handover = event.model_ref, event.source, event.handover
            pool.reload_trouble = pool.reload_advice = ""

    @on(PoolReloaded)
    def _reloaded(self, record: Recorded) -> None:
        """The pool keeps its name and its group, so that no queued task is stranded; the new name leads to it, too."""
        event: PoolReloaded = record.payload
        pool = self.by_id.get(event.pool_id)
        if pool is None or not pool.reloading_to:
            return
        declared: Any = pool.declared  # a type checker does not see that events are structs
        names = sorted({*declared.aliases, pool.reloading_to} - {declared.model_ref})
        if pool.handover == "new-first":
            pool.reloaded_from = declared.source or declared.model_ref
        pool.configured = pool.configured or declared
        pool.declared = msgspec.structs.replace(declared, source=pool.reload_source, aliases=names)
        pool.reloading_to = pool.reload_source = pool.handover = ""
        if pool.drain_cause == "reload":
            self._undrain(pool)

    @on(PoolHandedOver)
    def _handed_over(self, record: Recorded) -> None:
        pool = self.by_id.get(record.payload.pool_id)
        if pool is not None:
            pool.reloaded_from = ""

    @on(PoolReloadFailed)
    def _reload_failed(self, record: Recorded) -> None:
        event: PoolReloadFailed = record.payload
        pool = self.by_id.get(event.pool_id)
        if pool is not None and pool.reloading_to:
            pool.reloading_to = pool.reload_source = pool.handover = ""
            pool.reload_trouble = f"{event.cause}: {event.detail}" if event.detail else event.cause
            pool.reload_advice = event.advice
            if pool.drain_cause == "reload":
                self._undrain(pool)

    @on(PoolSlotsTuned)
    def _slots_tuned(self, record: Recorded) -> None:
        pool = self.by_id.get(record.payload.pool_id)
        if pool is not None:
            pool.tuned_slots = record.payload.slots

    @on(TaskPlaced)
    def _task_placed(self, record: Recorded) -> None:
        self._running[record.payload.task_id] = record.payload.pool_id
        pool = self.by_id.get(record.payload.pool_id)
        if pool is not None:
            pool.used_ns = record.time_ns

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
        if pool is not None:
            pool.used_ns = record.time_ns
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
