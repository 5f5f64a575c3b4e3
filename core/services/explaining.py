"""Placement that explains itself: why a model is where it is, or is not, in words with numbers (PLC-2, PLC-5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..devices import CPU
from ..errors import ModelNotFoundError
from ..journal.journal import Journal
from ..projections.head import Head
from ..projections.pools import PoolState
from ..scheduling.ledger import gib
from ..settings import Settings
from .device_memory import devices_of, mask_of, whole_of
from .loading import LoadingService, phase_of


class Explaining:
    """Answers why. Reads head only."""

    def __init__(self, journal: Journal, settings: Settings, loading: LoadingService) -> None:
        self._journal = journal
        self._settings = settings
        self._loading = loading
        self._pools = {pool.id: pool for pool in settings.pools}

    def model(self, model_ref: str) -> dict[str, Any]:
        """Where a model's pools stand, what they need, what else is on those devices, and who waits.

        Raises:
            ModelNotFoundError: no pool serves it.
        """
        head, now_ns = self._journal.head, self._journal.now_ns()
        group = head.pools.group_of(model_ref)
        if group is None:
            msg = f"no pool serves the model {model_ref!r}"
            raise ModelNotFoundError(msg, field="model_ref", got=model_ref, remedy="GET /v1/models lists the models.")
        pools = [self._pool(head, pool) for pool in head.pools.serving(group)]
        queue = head.queue.groups.get(group)
        first = [lane.first() for lane in (queue.interactive, queue.batch)] if queue is not None else []
        oldest_ns = min((head.tasks.live[one[1]].admitted_ns for one in first if one is not None), default=now_ns)
        said = {
            "model_ref": group,
            "pools": pools,
            "devices": self._devices(head),
            "queue": {
                "interactive": len(queue.interactive) if queue is not None else 0,
                "batch": len(queue.batch) if queue is not None else 0,
                "oldest_wait_ms": (now_ns - oldest_ns) // 1_000_000,
            },
            "waits": self._loading.waits.get(group, ""),
        }
        return {**said, "words": _words(said)}

    def waits(self, task_id: str) -> str:
        """Why a queued task's model is not loaded for it; "" when that is not what it waits for."""
        state = self._journal.head.tasks.live.get(task_id)
        return self._loading.waits.get(state.admitted.group, "") if state is not None else ""

    def _pool(self, head: Head, pool: PoolState) -> dict[str, Any]:
        declared, settings = pool.declared, self._pools.get(pool.declared.pool_id)
        sized, measured = pool.sized, pool.measured
        return {
            "pool_id": declared.pool_id,
            "engine": declared.engine,
            "host": declared.host,
            "phase": phase_of(pool) if self._loading.manages(pool) else ("ready" if pool.ready else "unready"),
            "device_mask": declared.device_mask,
            "may_run_on": list(mask_of(head, pool)),
            "devices": list(pool.devices) if pool.holds else [],
            "leases": head.leases.count(declared.pool_id),
            "slots": pool.slots,
            "needs_bytes": whole_of(pool, settings) if settings is not None else 0,
            "weights_bytes": sized.weights_bytes if sized else 0,
            "kv_bytes": sized.kv_bytes if sized else 0,
            "compute_bytes": sized.compute_bytes if sized else 0,
            "overhead_bytes": sized.overhead_bytes if sized else 0,
            "reserved_bytes": dict(sorted(pool.reserved_bytes.items())),
            "observed_bytes": dict(sorted(measured.observed_bytes.items())) if measured else {},
            "load_reason": pool.load_reason,
            "unload_reason": pool.unload_reason,
            "made_room_for": pool.made_room_for,
            "pinned": declared.pinned,
            "cause": pool.cause,
            "detail": pool.detail,
            "advice": pool.advice,
            "restarts": pool.restarts,
        }

    def _devices(self, head: Head) -> list[dict[str, Any]]:
        out = []
        for device in devices_of(head, self._settings):
            holders = {
                name: pool.reserved_bytes[device.device]
                for name, pool in sorted(head.pools.by_id.items())
                if pool.declared.host == device.host and device.device in pool.reserved_bytes
            }
            seen = head.gpus.by_host.get(device.host)
            name = next((gpu.name for gpu in seen.gpus if gpu.uuid == device.device), "") if seen is not None else ""
            if device.device == CPU and seen is None and not self._settings.swap.host_memory_mib:
                continue  # nothing is known of it
            out.append(
                {
                    "device": device.device,
                    "name": name or ("memory" if device.device == CPU else ""),
                    "host": device.host,
                    "total_bytes": device.total_bytes,
                    "reserve_bytes": device.reserve_bytes,
                    "observed_free_bytes": device.free_bytes,
                    "stale": device.stale,
                    "held_bytes": holders,
                }
            )
        return out


def _words(said: Mapping[str, Any]) -> list[str]:
    """The same in sentences."""
    names = {device["device"]: device["name"] or device["device"] for device in said["devices"]}
    out = []
    for pool in said["pools"]:
        on = ", ".join(names.get(device, device) for device in pool["devices"])
        where = f" on {on}" if on else ""
        match pool["phase"]:
            case "ready":
                state = f"is ready{where}; {pool['leases']} of {pool['slots']} slots are taken"
            case "loading":
                state = f"is being loaded{where}"
            case "draining":
                state = f"ends its {pool['leases']} running tasks{where} and then makes room"
            case "unloading":
                state = f"is being unloaded{where}"
            case "unloaded":
                state = "is not loaded"
            case _:
                state = f"is not ready: {pool['cause']}" + (f" ({pool['detail']})" if pool["detail"] else "")
        out.append(f"Pool {pool['pool_id']} {state}.")
        if pool["advice"]:
            out.append(pool["advice"])
        if pool["needs_bytes"]:
            parts = ", ".join(
                f"{gib(pool[key])} {name}"
                for key, name in (
                    ("weights_bytes", "weights"),
                    ("kv_bytes", "KV cache"),
                    ("compute_bytes", "computing"),
                    ("overhead_bytes", "overhead"),
                )
                if pool[key]
            )
            out.append(f"It needs {gib(pool['needs_bytes'])} ({parts}).")
        if pool["observed_bytes"]:
            took = ", ".join(f"{gib(size)} on {names.get(d, d)}" for d, size in pool["observed_bytes"].items())
            out.append(f"Once loaded it took {took}.")
        reason = pool["unload_reason"] if pool["phase"] in ("unloaded", "unloading") else pool["load_reason"]
        if reason:
            out.append(f"Why: {reason}.")
    for device in said["devices"]:
        held = ", ".join(f"{name} {gib(size)}" for name, size in device["held_bytes"].items()) or "no pool"
        free = device["observed_free_bytes"]
        seen = "not sampled" if free is None else f"{gib(free)} free by the last sample"
        stale = ", which is too old to be believed" if device["stale"] else ""
        name = device["name"] if device["name"] in ("", device["device"]) else f"{device['name']} ({device['device']})"
        out.append(
            f"{name or device['device']} on {device['host']}: {gib(device['total_bytes'])}, {seen}{stale}; held by {held}."
        )
    queue = said["queue"]
    if queue["interactive"] or queue["batch"]:
        out.append(
            f"{queue['interactive']} interactive and {queue['batch']} batch tasks wait, the first one for "
            f"{queue['oldest_wait_ms'] // 1000} s."
        )
    if said["waits"]:
        out.append(f"They wait because {said['waits']}.")
    return out
