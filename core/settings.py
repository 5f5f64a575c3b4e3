"""The effective configuration as frozen values, without I/O (CFG-1). `cli/config.py` loads files and environment into it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from .auth_settings import AuthSettings, TlsSettings

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
    #: least time between two `metrics` events of a stream whose reader asks for them (`?metrics=1`); 0 = there are none
    metrics_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 1_000
    #: bytes of a live task's entries kept in memory; readers further behind read the journal
    buffer_bytes: Annotated[int, Meta(ge=4096)] = 262_144
    #: whether the last reader's leaving cancels tasks of the OpenAI-compatible routes (STR-6)
    compat_cancel_on_disconnect: bool = True
    #: the same for /v1/tasks
    tasks_cancel_on_disconnect: bool = False


class ApiSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests of compatible APIs are taken."""

    #: parameters that would have no effect are refused; else they are named in ``X-Ignored-Parameters``. A request's
    #: ``X-Strict-Parameters`` header wins
    strict_parameters: bool = False


class ObjectiveSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How soon interactive tasks shall have their first token; while they do not, batch tasks are refused (ADM-7)."""

    #: 95 of 100 interactive tasks shall have their first token within this time from admission; 0 = no objective
    first_token_p95_ms: Milliseconds = 0
    #: tasks of so long count
    window_ms: Annotated[int, Meta(ge=1_000, le=86_400_000)] = 60_000
    #: how long the objective has to be missed before batch tasks are refused
    breach_ms: Milliseconds = 30_000
    #: batch tasks are taken again once it is met by this much: thousandths of the objective
    recover_permille: Annotated[int, Meta(ge=1, le=1_000)] = 800
    #: fewer tasks than this in the window say nothing
    samples: Annotated[int, Meta(ge=1, le=100_000)] = 20


class AdmissionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The queue's rules."""

    #: how long a batch task at the head waits behind interactive ones
    batch_patience_ms: Milliseconds = 60_000
    #: how long a repeated Idempotency-Key or task_id attaches to its task
    idempotency_ms: Milliseconds = 86_400_000
    #: how long an interactive task waits for a model whose pools only a person can mend, before it is told so; batch
    #: tasks wait; 0 = all do
    mend_patience_ms: Milliseconds = 10_000
    #: attempts of one task on engines that broke off
    max_attempts: Annotated[int, Meta(ge=1, le=200)] = 5
    #: when batch tasks are refused for the sake of interactive ones
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)


class SessionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Defaults of sessions (SES-1)."""

    #: idle time after which a session expires, unless it asks for another
    ttl_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] = 600_000
    #: tasks that a session may have, unless it asks for another number
    turn_limit: Annotated[int, Meta(ge=1)] = 8
    #: the longest idle time that one may ask for
    max_ttl_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] = 86_400_000
    #: the most tasks that one may ask for
    max_turn_limit: Annotated[int, Meta(ge=1)] = 10_000
    #: idle sessions of a pool whose KV cache its engine keeps, the last used ones; 0 = as many as it has slots
    kv_per_pool: Annotated[int, Meta(ge=0)] = 0


#: decimals as they are written: prices, "" where another counts, sums
PRICE = r"^[0-9]{1,9}(\.[0-9]{1,6})?$"
PRICE_OR_NONE = r"^([0-9]{1,9}(\.[0-9]{1,6})?)?$"
MONEY = r"^[0-9]{1,12}(\.[0-9]{1,12})?$"
Price = Annotated[str, Meta(pattern=PRICE)]


class PriceSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model costs, as decimals with at most six places, in quotes: ``"0.15"``."""

    #: a million tokens of the prompt
    input: Price = "0"
    #: a million tokens of the prompt that the engine had in its cache; "" = as ``input``
    cached: Annotated[str, Meta(pattern=PRICE_OR_NONE)] = ""
    #: a million tokens of the answer
    output: Price = "0"
    #: a second of decoding
    second: Price = "0"


class BudgetCapSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be spent in a window; what is left out is counted and not bounded."""

    #: ``none``: one that never ends
    window: Literal["none", "day", "month"] = "none"
    #: where days and months begin
    timezone: str = "UTC"
    #: of prompts and answers together
    tokens: Annotated[int, Meta(ge=0, le=9_007_199_254_740_991)] | None = None
    #: time of decoding
    decode_ms: Annotated[int, Meta(ge=0, le=9_007_199_254_740)] | None = None
    #: in the currency of ``prices``, a decimal in quotes
    cost: Annotated[str, Meta(pattern=MONEY)] | None = None


class BudgetSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Defaults of budgets (BUD-1)."""

    #: of each key that has no budget of the same window of its own
    keys: list[BudgetCapSettings] = field(default_factory=list)


class ProvisioningSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a pool's engine comes to be (ENG-2)."""

    #: ``package``: the server of the ``xllamacpp`` wheel, as a process of its own; ``external``: it runs already;
    #: ``binary``: fetched from ``url`` and checked; ``source``: built from ``git``; ``container``: run from ``image``
    mode: Literal["package", "external", "binary", "source", "container"] = "package"
    #: of an external engine, or of the archive or program of ``binary``
    url: str = ""
    #: of what ``url`` brings, 64 hex digits; required for ``binary``
    sha256: Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{64})?$")] = ""
    #: repository of ``source``: a URL or a directory
    git: str = ""
    #: commit, tag or branch of ``source``
    ref: str = ""
    #: definitions for CMake, e.g. ``-DGGML_CUDA=ON``
    cmake_flags: list[str] = field(default_factory=list)
    #: of ``container``, best with its digest
    image: str = ""
    #: "podman" or "docker"; "" = which is there
    runtime: Literal["", "podman", "docker"] = ""
    #: more environment of the engine process
    env: dict[str, str] = field(default_factory=dict)
    #: of the engine process; 0 = any free one
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    #: processors that the engine uses; 0 = as the engine decides
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    #: keys of the engine's plugin
    options: dict[str, Any] = field(default_factory=dict)


class TuningSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the number of slots in use is tuned while the pool runs (ENG-3)."""

    #: ``fixed``: never; ``auto``: between ``slots_min`` and ``slots_max``
    mode: Literal["fixed", "auto"] = "fixed"
    #: fewest slots in use
    slots_min: Annotated[int, Meta(ge=1, le=65_535)] = 1
    #: most slots in use; 0 = as many as the engine has
    slots_max: Annotated[int, Meta(ge=0, le=65_535)] = 0
    #: median time to the first token that is aimed at
    first_token_ms: Milliseconds = 2_000
    #: median time between two tokens of a stream that is aimed at
    inter_token_ms: Milliseconds = 100


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
    #: ``haiku`` = the bundled model; else a GGUF file, a reference (``hf:``, ``https:``, ``s3:`` …), a name of ``models``,
    #: or the name that an external engine serves
    model: str = "haiku"
    #: more names under which clients may ask for it
    aliases: list[str] = field(default_factory=list)
    #: "cpu", "auto" (one GPU that it fits, else several), or GPUs by UUID, index or name, separated by commas
    devices: str = "cpu"
    #: shares of the listed GPUs, as whole numbers; empty = by their memory
    tensor_split: list[Annotated[int, Meta(ge=0)]] = field(default_factory=list)
    #: name of one of ``hosts``, or "local"
    host: Identifier = "local"
    #: load it at start; else when a task asks for its model
    preload: bool = True
    #: idle time after which it is unloaded; 0 = only when others need its memory
    keep_alive_ms: Milliseconds = 0
    #: it never makes room for other models
    pinned: bool = False
    #: predicted memory is taken this many thousandths; 1000 = as computed
    memory_permille: Annotated[int, Meta(ge=100, le=10_000)] = 1_000
    #: tokens per slot; 0 = the model's
    ctx: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    #: tasks at once; 0 = as the engine says
    slots: Annotated[int, Meta(ge=0, le=65_535)] = 0
    #: take no tasks while another pool of the same model runs another version of the engine or other weights
    require_same_engine_version: bool = False
    #: recorded with each task: what ran under one version can be compared
    sampler_profile_version: str = "default-1"
    queue: QueueSettings = field(default_factory=QueueSettings)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    provisioning: ProvisioningSettings = field(default_factory=ProvisioningSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)


class ModelPoolSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pools that ``models`` implies: a model that no pool names gets one of its own, which is loaded when it is asked for."""

    #: name of an engine plugin
    engine: Identifier = "llamacpp"
    #: as in ``pools[].devices``; "cpu" only by saying so
    devices: str = "auto"
    #: tokens per slot; 0 = the model's
    ctx: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    #: tasks at once; 0 = as the engine says
    slots: Annotated[int, Meta(ge=0, le=65_535)] = 0
    #: idle time after which it is unloaded; 0 = only when others need its memory
    keep_alive_ms: Milliseconds = 0
    #: how its engine comes to be
    provisioning: ProvisioningSettings = field(default_factory=ProvisioningSettings)


class CapabilitySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configured overrides of what /v1/capabilities says."""

    #: per pool, fields of /v1/capabilities and what they shall say
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)


class PolicySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which policy plugins decide."""

    #: name of the placement policy
    placement: str = "default"


class SwapSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How models take turns on the memory that there is (PLC-5)."""

    #: no waiting task is passed over for longer than this, in favour of tasks that came after it
    bound_ms: Milliseconds = 300_000
    #: a loaded model stays at least so long while it has work
    residence_ms: Milliseconds = 5_000
    #: memory of each GPU that is never planned with, MiB
    gpu_reserve_mib: Annotated[int, Meta(ge=0)] = 512
    #: memory of the host that CPU pools may take together, MiB; 0 = what is available
    host_memory_mib: Annotated[int, Meta(ge=0)] = 0
    #: a GPU's sample older than this is not believed
    sample_age_ms: Milliseconds = 10_000
    #: how long running tasks may go on when their pool has to make room; 0 = until they end
    drain_ms: Milliseconds = 0


class HostSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another machine that runs engines."""

    #: name, as ``pools[].host`` has it
    id: Identifier
    #: host:port of its pool-managerd
    address: str
    #: file with the key that it asks for
    key_file: str
    #: certificate that it shows, or of who signed it; "" = the system's
    ca_file: str = ""


class ManagerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The program that looks after engines, pool-managerd."""

    #: ``auto``: start one when none runs; ``never``: somebody else does
    start: Literal["auto", "never"] = "auto"
    #: one that was started here ends itself, and its engines, when no server came back for so long
    linger_ms: Milliseconds = 600_000
    #: what an orderly stop of the server does with one that was started here, and with its engines
    on_stop: Literal["stop", "keep"] = "stop"
    #: between two looks at the GPUs
    sample_ms: Annotated[int, Meta(ge=100, le=60_000)] = 1_000
    #: nothing is fetched or built; what is needed has to be there
    forbid_downloads: bool = False
    #: size limit of the model cache, MiB; 0 = none
    model_cache_mib: Annotated[int, Meta(ge=0)] = 0
    #: models that are here are read again at each start and held against their digests; what is damaged comes again
    strict_verification: bool = False


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logs: JSON lines on standard error."""

    #: least severity that is written
    level: Literal["debug", "info", "warning", "error"] = "info"
    #: "json" lines, or "human" sentences; not set = sentences at a terminal
    format: Literal["json", "human"] = "json"


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is configured."""

    #: host:port; loopback only, unless callers have to say who they are (AUTH-1)
    bind: str = "127.0.0.1:8080"
    #: "" = by the platform's rules
    data_dir: str = ""
    #: Host names accepted besides loopback ones
    allowed_hosts: list[str] = field(default_factory=list)
    #: Origins accepted from browsers
    allowed_origins: list[str] = field(default_factory=list)
    auth: AuthSettings = field(default_factory=AuthSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    journal: JournalSettings = field(default_factory=JournalSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    streams: StreamSettings = field(default_factory=StreamSettings)
    api: ApiSettings = field(default_factory=ApiSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    budgets: BudgetSettings = field(default_factory=BudgetSettings)
    #: by the name of a model; "*" = those that are not named; a model without prices costs nothing
    prices: dict[str, PriceSettings] = field(default_factory=dict)
    capabilities: CapabilitySettings = field(default_factory=CapabilitySettings)
    policies: PolicySettings = field(default_factory=PolicySettings)
    log: LogSettings = field(default_factory=LogSettings)
    swap: SwapSettings = field(default_factory=SwapSettings)
    manager: ManagerSettings = field(default_factory=ManagerSettings)
    hosts: list[HostSettings] = field(default_factory=list)
    #: more names for models, `{name: model}`; a model may be a file or a reference, which then has this name
    models: dict[str, str] = field(default_factory=dict)
    model_pools: ModelPoolSettings = field(default_factory=ModelPoolSettings)
    pools: list[PoolSettings] = field(default_factory=lambda: [PoolSettings(id="haiku")])
