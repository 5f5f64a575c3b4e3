"""What the log says of pools, their hosts, and what is prepared on these: severity, fields and one sentence each (OBS-2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..core.events.gpu import GpuObserved
from ..core.events.manager import ManagerConnected, ManagerLost
from ..core.events.model import EngineInstalled, ModelStaged
from ..core.events.pool import (
    PoolDraining,
    PoolHandedOver,
    PoolLoading,
    PoolMeasured,
    PoolReady,
    PoolReloaded,
    PoolReloadFailed,
    PoolReloading,
    PoolSized,
    PoolSlotsTuned,
    PoolUndrained,
    PoolUnloading,
    PoolUnready,
)
from ..core.projections.projection import Recorded
from ..core.scheduling.ledger import gib

Fields = dict[str, Any]
Said = tuple[str, Fields, str]

#: causes of a pool that is as it is meant to be
_AS_MEANT: Final = frozenset({"starting", "connecting", "loading", "unloaded", "shutdown"})


def _ready(record: Recorded) -> Said:
    event: PoolReady = record.payload
    fields = {
        "pool_id": event.pool_id,
        "replica_id": event.replica_id,
        "engine_version": event.engine_version,
        "model_digest": event.model_digest,
        "ctx": event.ctx,
    }
    return "info", fields, f"Pool {event.pool_id} is ready with {event.slots} slots of {event.ctx} tokens."


def _unready(record: Recorded) -> Said:
    event: PoolUnready = record.payload
    level = "info" if event.cause in _AS_MEANT else "warning"
    fields: Fields = {"pool_id": event.pool_id, "cause": event.cause}
    if event.cause == "unloaded":
        return level, fields, f"Pool {event.pool_id} is not loaded."
    advice = f" {event.advice}" if event.advice else ""
    again = f" It is tried again in {event.retry_ms} ms." if event.retry_ms else ""
    human = f"Pool {event.pool_id} is not ready ({event.cause}): {event.detail or 'no more is known'}.{advice}{again}"
    return level, fields, human


def _sized(record: Recorded) -> Said:
    event: PoolSized = record.payload
    size = event.weights_bytes + event.kv_bytes + event.compute_bytes + event.overhead_bytes
    human = f"Pool {event.pool_id} is predicted to need {gib(size)} with {event.slots} slots of {event.ctx} tokens."
    return "info", {"pool_id": event.pool_id, "predicted_bytes": size}, human


def _loading(record: Recorded) -> Said:
    event: PoolLoading = record.payload
    fields: Fields = {"pool_id": event.pool_id, "devices": event.devices, "decision_reason": event.reason}
    return "info", fields, f"Pool {event.pool_id} is loaded on {', '.join(event.devices)}: {event.reason}."


def _unloading(record: Recorded) -> Said:
    event: PoolUnloading = record.payload
    fields: Fields = {"pool_id": event.pool_id, "cause": event.cause, "decision_reason": event.reason}
    return "info", fields, f"Pool {event.pool_id} is unloaded ({event.cause}){_why(event.reason)}."


def _measured(record: Recorded) -> Said:
    event: PoolMeasured = record.payload
    predicted, observed = sum(event.predicted_bytes.values()), sum(event.observed_bytes.values())
    fields: Fields = {"pool_id": event.pool_id, "predicted_bytes": predicted, "observed_bytes": observed}
    return "info", fields, f"Pool {event.pool_id} takes {gib(observed)} where {gib(predicted)} were predicted."


def _draining(record: Recorded) -> Said:
    event: PoolDraining = record.payload
    fields: Fields = {"pool_id": event.pool_id, "cause": event.cause, "decision_reason": event.reason}
    return "info", fields, f"Pool {event.pool_id} takes no new tasks ({event.cause}){_why(event.reason)}."


def _undrained(record: Recorded) -> Said:
    event: PoolUndrained = record.payload
    return "info", {"pool_id": event.pool_id}, f"Pool {event.pool_id} takes tasks again."


def _reloading(record: Recorded) -> Said:
    event: PoolReloading = record.payload
    fields: Fields = {"pool_id": event.pool_id, "model_id": event.model_ref, "decision_reason": event.reason}
    return "info", fields, f"Pool {event.pool_id} is to serve {event.model_ref} ({event.handover}){_why(event.reason)}."


def _reloaded(record: Recorded) -> Said:
    event: PoolReloaded = record.payload
    return (
        "info",
        {"pool_id": event.pool_id, "model_id": event.model_ref},
        f"Pool {event.pool_id} serves {event.model_ref} now.",
    )


def _handed_over(record: Recorded) -> Said:
    event: PoolHandedOver = record.payload
    human = f"No task runs on the engine any more that pool {event.pool_id} had before its reload: it is ended."
    return "info", {"pool_id": event.pool_id}, human


def _reload_failed(record: Recorded) -> Said:
    event: PoolReloadFailed = record.payload
    fields: Fields = {"pool_id": event.pool_id, "model_id": event.model_ref, "cause": event.cause}
    human = f"Pool {event.pool_id} could not be changed to {event.model_ref} ({event.cause}){_why(event.detail)}; it serves what it served before."
    return "warning", fields, f"{human} {event.advice}".rstrip()


def _slots_tuned(record: Recorded) -> Said:
    event: PoolSlotsTuned = record.payload
    fields: Fields = {"pool_id": event.pool_id, "slots": event.slots, "decision_reason": event.reason}
    return "info", fields, f"Pool {event.pool_id} uses {event.slots} slots instead of {event.was}{_why(event.reason)}."


def _gpus(record: Recorded) -> Said:
    event: GpuObserved = record.payload
    troubled = [gpu for gpu in event.gpus if gpu.trouble]
    fields: Fields = {"host": event.host, "gpus": len(event.gpus)}
    if event.trouble or troubled:
        causes = ", ".join([event.trouble] * bool(event.trouble) + [f"{gpu.uuid}: {gpu.trouble}" for gpu in troubled])
        return "debug", fields, f"The GPUs of {event.host} are not all known: {causes}."
    return "debug", fields, f"{event.host} has {len(event.gpus)} GPUs."


def _connected(record: Recorded) -> Said:
    event: ManagerConnected = record.payload
    return "debug", {"host": event.host}, f"The pool-managerd of {event.host} takes this server's word."


def _lost(record: Recorded) -> Said:
    event: ManagerLost = record.payload
    return "warning", {"host": event.host}, f"The pool-managerd of {event.host} is gone{_why(event.detail)}."


def _staged(record: Recorded) -> Said:
    event: ModelStaged = record.payload
    fields: Fields = {"host": event.host, "model_id": event.ref, "model_digest": event.digest}
    return "info", fields, f"The model {event.ref} is on {event.host}, {gib(event.size_bytes)}, {event.verification}."


def _installed(record: Recorded) -> Said:
    event: EngineInstalled = record.payload
    fields: Fields = {"host": event.host, "engine": event.engine, "engine_version": event.version}
    return "info", fields, f"The engine {event.engine} {event.version} ({event.build}) is on {event.host}."


def _why(reason: str) -> str:
    return f": {reason.rstrip('.')}" if reason else ""


#: by type of event
SENTENCES: Final[dict[type, Callable[[Recorded], Said]]] = {
    PoolReady: _ready,
    PoolUnready: _unready,
    PoolSized: _sized,
    PoolLoading: _loading,
    PoolUnloading: _unloading,
    PoolMeasured: _measured,
    PoolDraining: _draining,
    PoolUndrained: _undrained,
    PoolReloading: _reloading,
    PoolReloaded: _reloaded,
    PoolHandedOver: _handed_over,
    PoolReloadFailed: _reload_failed,
    PoolSlotsTuned: _slots_tuned,
    GpuObserved: _gpus,
    ManagerConnected: _connected,
    ManagerLost: _lost,
    ModelStaged: _staged,
    EngineInstalled: _installed,
}
#: those that can be warnings
WARNINGS: Final[tuple[type, ...]] = (PoolUnready, PoolReloadFailed, ManagerLost)
