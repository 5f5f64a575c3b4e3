"""The effective configuration as frozen values, without I/O (CFG-1). `cli/config.py` loads files and environment into it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Milliseconds = Annotated[int, Meta(ge=0, le=31_536_000_000)]
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class JournalSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the journal is and how it commits."""

    #: SQLAlchemy URL; "" = SQLite in the data directory
    url: str = ""
    #: longest time that tokens wait for each other when many streams run
    commit_window_ms: Annotated[int, Meta(ge=0, le=100)] = 4
    #: bytes of uncommitted events after which engines are paused, while the database cannot be written
    pending_bytes: Annotated[int, Meta(ge=65_536)] = 16_777_216
    #: events between two snapshots; 0 = none
    snapshot_every: Annotated[int, Meta(ge=0)] = 200_000
    #: WAL size above which the writer restarts the log (SQLite)
    wal_bytes: Annotated[int, Meta(ge=65_536)] = 67_108_864


class LimitSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what one client may do."""

    #: largest body of a request
    body_bytes: Annotated[int, Meta(ge=1024, le=1_073_741_824)] = 16_777_216
    #: all headers of a request together
    header_bytes: Annotated[int, Meta(ge=1024, le=1_048_576)] = 65_536
    #: clients connected at once
    connections: Annotated[int, Meta(ge=1)] = 4096
    #: time for a request's headers to arrive; 0 = no limit
    header_timeout_ms: Milliseconds = 10_000
    #: time between two pieces of a request's body; 0 = no limit
    body_timeout_ms: Milliseconds = 30_000
    #: time that an idle connection is kept for another request
    keep_alive_ms: Milliseconds = 75_000


class StreamSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How streams are served."""

    #: silence after which a stream sends a comment, so that nobody takes it for dead
    heartbeat_ms: Annotated[int, Meta(ge=100)] = 15_000
    #: bytes of a live task's entries kept in memory; readers further behind read the journal
    buffer_bytes: Annotated[int, Meta(ge=4096)] = 262_144
    #: whether the last reader's leaving cancels tasks of the OpenAI-compatible routes (STR-6)
    compat_cancel_on_disconnect: bool = True
    #: the same for /v1/tasks
    tasks_cancel_on_disconnect: bool = False


class AdmissionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The queue's rules."""

    #: how long a batch task at the head waits behind interactive ones
    batch_patience_ms: Milliseconds = 60_000
    #: how long a repeated Idempotency-Key or task_id attaches to its task
    idempotency_ms: Milliseconds = 86_400_000
    #: attempts of one task on engines that broke off
    max_attempts: Annotated[int, Meta(ge=1, le=200)] = 5


class SessionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Defaults of sessions (SES-1)."""

    #: idle time after which a session expires
    ttl_ms: Milliseconds = 600_000
    #: tasks that a session may have
    turn_limit: Annotated[int, Meta(ge=1)] = 8


class ProvisioningSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a pool's engine comes to be."""

    #: ``package``: the server of the ``xllamacpp`` wheel, as a process of its own; ``external``: it runs already
    mode: Literal["package", "external"] = "package"
    #: of an external engine
    url: str = ""
    #: of the engine process; 0 = any free one
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    #: processors that the engine uses; 0 = as the engine decides
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    #: keys of the engine's plugin
    options: dict[str, Any] = field(default_factory=dict)


class QueueSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pool's share in its group's queue."""

    #: tasks that may wait
    capacity: Annotated[int, Meta(ge=0, le=10_000_000)] = 100_000
    #: what happens when it is full: refuse the new task, or drop the oldest batch task
    full_policy: Literal["reject", "drop-lru"] = "reject"


class TimeoutSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Watchdogs (CAN-2); 0 = off."""

    #: how long a task may run
    wall_ms: Milliseconds = 0
    #: how long its engine may be silent
    idle_ms: Milliseconds = 300_000


class PoolSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pool: an engine, a model, where it runs."""

    #: name of the pool in answers, metrics and the journal
    id: Identifier
    #: name of an engine plugin
    engine: Identifier = "llamacpp"
    #: ``haiku`` = the bundled model; else a GGUF file, a name of ``models``, or the name that an external engine serves
    model: str = "haiku"
    #: more names under which clients may ask for it
    aliases: list[str] = field(default_factory=list)
    #: "cpu", or GPUs; recorded as the pool's device mask
    devices: str = "cpu"
    #: tokens per slot; 0 = the model's
    ctx: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    #: tasks at once; 0 = as the engine says
    slots: Annotated[int, Meta(ge=0, le=65_535)] = 0
    #: recorded with each task: what ran under one version can be compared
    sampler_profile_version: str = "default-1"
    queue: QueueSettings = field(default_factory=QueueSettings)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    provisioning: ProvisioningSettings = field(default_factory=ProvisioningSettings)


class CapabilitySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configured overrides of what /v1/capabilities says."""

    #: per pool, fields of /v1/capabilities and what they shall say
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)


class PolicySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which policy plugins decide."""

    #: name of the placement policy
    placement: str = "default"


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logs: JSON lines on standard error."""

    #: least severity that is written
    level: Literal["debug", "info", "warning", "error"] = "info"
    #: "json" lines, or "human" sentences; not set = sentences at a terminal
    format: Literal["json", "human"] = "json"


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is configured."""

    #: host:port; loopback only until keys exist (AUTH-1)
    bind: str = "127.0.0.1:8080"
    #: "" = by the platform's rules
    data_dir: str = ""
    #: Host names accepted besides loopback ones
    allowed_hosts: list[str] = field(default_factory=list)
    #: Origins accepted from browsers
    allowed_origins: list[str] = field(default_factory=list)
    journal: JournalSettings = field(default_factory=JournalSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    streams: StreamSettings = field(default_factory=StreamSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    capabilities: CapabilitySettings = field(default_factory=CapabilitySettings)
    policies: PolicySettings = field(default_factory=PolicySettings)
    log: LogSettings = field(default_factory=LogSettings)
    #: more names for models, `{name: model}`; a model may be a file, which then has this name
    models: dict[str, str] = field(default_factory=dict)
    pools: list[PoolSettings] = field(default_factory=lambda: [PoolSettings(id="haiku")])
