"""Pools: what is configured, and what was observed of their engines."""

from __future__ import annotations

from ..registry import event


@event("pool.declared", stream="pool", key="pool_id", durable=True)
class PoolDeclared:
    """Configuration names this pool."""

    pool_id: str
    engine: str
    #: serving group
    model_ref: str
    aliases: list[str] = []
    device_mask: str = ""
    #: most tasks at once; 0 = as the engine says
    slots: int = 0
    ctx: int = 0
    queue_capacity: int = 0
    full_policy: str = "reject"
    wall_ms: int = 0
    idle_ms: int = 0
    provisioning: str = "external"


@event("pool.retired", stream="pool", key="pool_id", durable=True)
class PoolRetired:
    """Configuration no longer names this pool."""

    pool_id: str


@event("pool.ready", stream="pool", key="pool_id")
class PoolReady:
    """The engine loaded, is healthy and decoded a token."""

    pool_id: str
    replica_id: str
    #: counts starts of the engine process
    generation: int
    engine_version: str
    model_digest: str = ""
    slots: int
    #: context per slot, tokens
    ctx: int
    flags: str = ""
    load_ms: int = 0
    #: measured at preload, thousandths of a token per second
    decode_mtok_s: int = 0


@event("pool.unready", stream="pool", key="pool_id")
class PoolUnready:
    """The pool cannot take tasks."""

    pool_id: str
    #: stable cause, e.g. "starting", "engine-exited", "unreachable", "bad-model", "port-taken", "shutdown"
    cause: str
    #: what the engine or the system said
    detail: str = ""
    #: what a person can do
    advice: str = ""
    #: when the next attempt is due, milliseconds from now; 0 = none planned
    retry_ms: int = 0


@event("pool.draining", stream="pool", key="pool_id")
class PoolDraining:
    """The pool takes no new tasks; running ones may end until the deadline."""

    pool_id: str
    deadline_ms: int
