"""Pools: configuration and observations become events; views of them for routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..errors import NotFoundError
from ..events.manager import ManagerConnected, ManagerLost, OutboxReceived
from ..events.model import EngineInstalled, ModelStaged
from ..events.pool import PoolDeclared, PoolReady, PoolReloaded, PoolRetired, PoolUnready
from ..journal.journal import Journal
from ..projections.pools import PoolState
from ..settings import PoolSettings, Settings
from ..types import PoolView
from .dispatch import Dispatcher
from .placement import pool_view

#: facts that name the host they happened on
_OF_HOSTS = (EngineInstalled, ModelStaged)


def declaration(pool: PoolSettings, aliases: list[str], source: str) -> PoolDeclared:
    """What configuration says of a pool, as an event; ``source`` is its model with aliases resolved."""
    return PoolDeclared(
        pool_id=pool.id,
        engine=pool.engine,
        model_ref=pool.model,
        aliases=sorted({*pool.aliases, *aliases}),
        device_mask=pool.devices,
        slots=pool.slots,
        ctx=pool.ctx,
        queue_capacity=pool.queue.capacity,
        full_policy=pool.queue.full_policy,
        wall_ms=pool.timeouts.wall_ms,
        idle_ms=pool.timeouts.idle_ms,
        provisioning=pool.provisioning.mode,
        host=pool.host,
        source=source if source != pool.model else "",
        on_demand=not pool.preload,
        keep_alive_ms=pool.keep_alive_ms,
        pinned=pool.pinned,
        same_version=pool.require_same_engine_version,
        slots_min=pool.tuning.slots_min if pool.tuning.mode == "auto" else 0,
        slots_max=pool.tuning.slots_max if pool.tuning.mode == "auto" else 0,
    )


class PoolService:
    """Hears of the pools' engines and answers for them."""

    def __init__(self, journal: Journal, dispatcher: Dispatcher) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._settings: Settings | None = None

    def declare(self, settings: Settings) -> None:
        """Bring the journal's pools in line with configuration; all of them begin unready."""
        self._settings = settings
        known = self._journal.head.pools.by_id
        models = settings.models
        wanted = {
            p.id: declaration(p, [a for a, m in models.items() if m == p.model], models.get(p.model, p.model))
            for p in settings.pools
        }
        events: list[object] = [PoolRetired(pool_id=name) for name in sorted(known) if name not in wanted]
        for name, declared in sorted(wanted.items()):
            # A reload lasts until the pool's configuration is another one.
            if name not in known or (known[name].configured or known[name].declared) != declared:
                events.append(declared)
            events.append(PoolUnready(pool_id=name, cause="starting"))
        self._journal.append(events, actor="config", correlation="")

    def received(self, host: str, boot_id: str, incarnation: str, facts: Sequence[tuple[int, object]]) -> int:
        """Facts of a host's outbox, ``(n, event)`` in order; each is appended once, however often it is told (RCV-3).

        Returns:
            The seq behind them: once it is committed, the last of them may be acknowledged.

        Raises:
            JournalUnavailableError: nothing was appended; tell them again later.
        """
        head = self._journal.head
        last = head.outboxes.last(host, incarnation)
        fresh = [(n, event) for n, event in facts if n > last]
        if not fresh:
            return head.next_seq
        received = OutboxReceived(host=host, boot_id=boot_id, incarnation=incarnation, n=fresh[-1][0])
        events = [_told_by(host, event) for _, event in fresh]
        seq = self._journal.append([*events, received], actor=f"host:{host}", correlation="", internal=True)
        for event in events:
            if isinstance(event, PoolReady | PoolReloaded):
                self._pump(event.pool_id)
        return seq

    def connected(self, host: str, boot_id: str, incarnation: str, version: str) -> None:
        """A host's program took this server's epoch."""
        event = ManagerConnected(host=host, boot_id=boot_id, incarnation=incarnation, version=version)
        self._journal.append([event], actor=f"host:{host}", correlation="", internal=True)

    def lost(self, host: str, detail: str, *, grace_over: bool) -> None:
        """The connection to a host's program is gone; once the grace is over, nobody knows how its engines are."""
        events: list[object] = []
        if host in self._journal.head.outboxes.connected:
            events.append(ManagerLost(host=host, detail=detail[:500]))
        if grace_over:
            events += [
                PoolUnready(
                    pool_id=name,
                    cause="manager-lost",
                    detail=detail[:500],
                    advice="The program that looks after the pool's engine is started again; its log may say more.",
                )
                for name, pool in sorted(self._journal.head.pools.by_id.items())
                if pool.declared.host == host and pool.cause != "manager-lost"
            ]
        if events:
            self._journal.append(events, actor=f"host:{host}", correlation="", internal=True)

    def _pump(self, pool_id: str) -> None:
        pool = self._journal.head.pools.by_id.get(pool_id)
        if pool is not None:
            self._dispatcher.pump(pool.declared.model_ref)

    # --- views -----------------------------------------------------------------------------------------------

    def views(self) -> list[PoolView]:
        """All pools, by id."""
        head = self._journal.head
        return [pool_view(p, head.leases.count(name)) for name, p in sorted(head.pools.by_id.items())]

    def state(self, pool_id: str) -> PoolState:
        """One pool. :raises NotFoundError: there is none of this name."""
        pool = self._journal.head.pools.by_id.get(pool_id)
        if pool is None:
            msg = f"there is no pool {pool_id!r}"
            raise NotFoundError(msg, field="pool_id", got=pool_id, remedy="GET /v1/pools lists the pools.")
        return pool

    def health(self, pool_id: str) -> dict[str, Any]:
        """Liveness, readiness, leases, memory and the last error with its advice (POOL-2)."""
        pool = self.state(pool_id)
        now_ns = self._journal.now_ns()
        leases = self._journal.head.leases.count(pool_id)
        observed = pool.observed
        measured = pool.measured
        return {
            "pool_id": pool_id,
            "state": standing(pool),
            "live": pool.ready or pool.on_its_way,
            "ready": pool.ready,
            "draining": pool.draining,
            "engine": pool.declared.engine,
            "engine_version": observed.engine_version if observed else "",
            "model_ref": pool.declared.model_ref,
            "model_source": pool.declared.source or pool.declared.model_ref,
            "model_digest": observed.model_digest if observed else "",
            "host": pool.declared.host,
            "devices": pool.devices,
            "memory": {
                device: {
                    "predicted_bytes": (measured.predicted_bytes if measured else pool.reserved_bytes).get(device, 0),
                    "observed_bytes": measured.observed_bytes.get(device, 0) if measured else 0,
                }
                for device in sorted({*pool.reserved_bytes, *(measured.observed_bytes if measured else ())})
            },
            "slots": pool.slots,
            "slots_free": max(0, pool.slots - leases) if pool.ready and not pool.draining else 0,
            "active_leases": leases,
            "ctx": observed.ctx if observed else 0,
            "generation": observed.generation if observed else 0,
            "restarts": pool.restarts,
            "load_ms": pool.load_ms,
            "decode_mtok_s": pool.decode_mtok_s,
            "since_ms": pool.since_ns // 1_000_000,
            "drain": None
            if not pool.draining
            else {
                "cause": pool.drain_cause,
                "since_ms": pool.drain_since_ns // 1_000_000,
                "until_ms": pool.drain_until_ns // 1_000_000,
            },
            "reload": _reload(pool),
            "last_error": None
            if pool.ready or not pool.failed
            else {
                "cause": pool.cause,
                "detail": pool.detail,
                "advice": pool.advice,
                "last_cause": pool.last_cause,
                "permanent": pool.permanent,
                "retry_ms": max(0, pool.retry_ns - now_ns) // 1_000_000,
            },
        }


def standing(pool: PoolState) -> str:
    """How a pool stands, in a word."""
    if pool.ready:
        return "draining" if pool.draining else "reloading" if pool.reloading_to else "ready"
    if pool.failed:
        return "failed"
    if pool.draining and pool.drain_cause == "operator" and not pool.wanted:
        return "drained" if not pool.holds else "unloading"
    return pool.cause or "starting"


def _reload(pool: PoolState) -> dict[str, Any] | None:
    if pool.reloading_to:
        return {"to": pool.reloading_to, "handover": pool.handover, "trouble": "", "advice": ""}
    if pool.reloaded_from:
        return {"to": pool.declared.source, "handover": "handing-over", "trouble": "", "advice": ""}
    if pool.reload_trouble:
        return {"to": "", "handover": "", "trouble": pool.reload_trouble, "advice": pool.reload_advice}
    return None


def _told_by(host: str, event: Any) -> Any:
    """A host does not know by which name it goes here."""
    if not isinstance(event, _OF_HOSTS):
        return event
    struct: Any = event  # a type checker does not see that events are structs
    return msgspec.structs.replace(struct, host=host)
