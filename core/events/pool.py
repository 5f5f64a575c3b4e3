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
    #: name of the host whose pool-managerd looks after it
    host: str = "local"
    #: where its model comes from, when that is not its name
    source: str = ""
    #: it is loaded when a task asks for it, not at start
    on_demand: bool = False
    #: idle time after which it may make room by itself; 0 = only when others need room
    keep_alive_ms: int = 0
    #: it never makes room for others
    pinned: bool = False
    #: it takes tasks only while it runs what the other pools of its model run (PLC-6)
    same_version: bool = False
    #: bounds between which the slots in use are tuned; 0 = not tuned
    slots_min: int = 0
    slots_max: int = 0


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
    #: where its engine answers on its host
    url: str = ""
    #: GPUs by UUID, or "cpu"
    devices: list[str] = []
    #: workloads and features of its engine; empty = not known
    abilities: list[str] = []


@event("pool.unready", stream="pool", key="pool_id")
class PoolUnready:
    """The pool cannot take tasks."""

    pool_id: str
    #: stable cause, e.g. "starting", "unloaded", "engine-exited", "bad-model", "vram-oom", "circuit-open"
    cause: str
    #: what the engine or the system said
    detail: str = ""
    #: what a person can do
    advice: str = ""
    #: when the next attempt is due, milliseconds from now; 0 = none planned
    retry_ms: int = 0
    #: trying again will not help by itself: somebody has to do what the advice says
    permanent: bool = False
    #: failures in a row
    failures: int = 0
    #: of "circuit-open": the cause of the last failure
    last_cause: str = ""


@event("pool.sized", stream="pool", key="pool_id")
class PoolSized:
    """The head of the pool's model was read, and the memory that it needs was predicted (PLC-5)."""

    pool_id: str
    #: predicted bytes on one device, or in memory for "cpu"
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    overhead_bytes: int
    #: beside the device, in host memory
    host_bytes: int = 0
    #: tokens per slot and slots that this was computed for
    ctx: int = 0
    slots: int = 0
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    layers: int = 0
    ctx_train: int = 0
    file_bytes: int = 0
    model_digest: str = ""


@event("pool.loading", stream="pool", key="pool_id", durable=True)
class PoolLoading:
    """It was decided to load the pool's model."""

    pool_id: str
    #: GPUs by UUID, or "cpu"
    devices: list[str]
    #: predicted bytes per device
    predicted_bytes: dict[str, int] = {}
    reason: str = ""
    #: pools that were unloaded to make room
    makes_room_by: list[str] = []


@event("pool.unloading", stream="pool", key="pool_id", durable=True)
class PoolUnloading:
    """It was decided to unload the pool's model; its memory counts as taken until it is seen unloaded."""

    pool_id: str
    #: "swap" | "idle" | "drain" | "reload" | "shutdown"
    cause: str
    reason: str = ""
    #: group that it makes room for; "" = none
    for_group: str = ""


@event("pool.measured", stream="pool", key="pool_id")
class PoolMeasured:
    """What a loaded engine really takes, beside what was predicted."""

    pool_id: str
    generation: int
    #: per device: GPU UUID, or "cpu"
    predicted_bytes: dict[str, int] = {}
    observed_bytes: dict[str, int] = {}


@event("pool.draining", stream="pool", key="pool_id", durable=True)
class PoolDraining:
    """The pool takes no new tasks; running ones may end until the deadline."""

    pool_id: str
    #: for running tasks, from now; 0 = they may end by themselves
    deadline_ms: int
    #: "operator" = it stays out until told otherwise; "swap" | "reload" | "idle" = on the way to something else
    cause: str = "operator"
    reason: str = ""
    #: group that it makes room for; "" = none
    for_group: str = ""


@event("pool.undrained", stream="pool", key="pool_id", durable=True)
class PoolUndrained:
    """The pool takes tasks again."""

    pool_id: str


@event("pool.reloading", stream="pool", key="pool_id", durable=True)
class PoolReloading:
    """The pool is to serve another model; the old one stays until the new one decoded, where memory allows."""

    pool_id: str
    model_ref: str
    source: str = ""
    #: "new-first"; "drain" = the old one's tasks end first, then "stop-first"
    handover: str
    reason: str = ""


@event("pool.reloaded", stream="pool", key="pool_id", durable=True)
class PoolReloaded:
    """The new model decoded and is what the pool serves now; ``pool.ready`` stands before it in the same batch."""

    pool_id: str
    model_ref: str
    generation: int


@event("pool.handed_over", stream="pool", key="pool_id", durable=True)
class PoolHandedOver:
    """No task runs on the engine of the model before any more: it may end."""

    pool_id: str


@event("pool.reload_failed", stream="pool", key="pool_id", durable=True)
class PoolReloadFailed:
    """The new model did not come up; the pool serves what it served before."""

    pool_id: str
    model_ref: str
    cause: str
    detail: str = ""
    advice: str = ""


@event("pool.slots_tuned", stream="pool", key="pool_id")
class PoolSlotsTuned:
    """The number of slots in use was changed, from what was measured (ENG-3)."""

    pool_id: str
    slots: int
    was: int
    reason: str
    first_token_ms: int = 0
    #: microseconds between two tokens of one stream
    inter_token_us: int = 0
    #: share of the KV cache in use, thousandths
    kv_used_permille: int = 0
    waiting: int = 0
