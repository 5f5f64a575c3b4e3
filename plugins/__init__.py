"""The public plugin API: all that a plugin, built-in or third-party, may import.

Implement a hook of :mod:`llama_orch.plugins.hookspecs` with :data:`hookimpl` in a module, and name that module
under the entry point group ``llama_orch``. :mod:`llama_orch.plugins.testing` has the contract suites that a
plugin's own tests inherit.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pluggy

from ..core.engine_ports import (
    FEATURES,
    AttemptEnd,
    AttemptFailure,
    AttemptHandle,
    AttemptSink,
    AttemptStart,
    ChatJob,
    ContainerSpec,
    EmbeddingResult,
    Engine,
    EngineFactory,
    EngineHealth,
    EngineProperties,
    EngineState,
    GenerateJob,
    LauncherFactory,
    LaunchPlan,
    ProvisionedEngine,
    RerankResult,
)
from ..core.entries import EntryBatch, batch_of
from ..core.errors import (
    ConfigError,
    CorruptJournalError,
    FencedError,
    InvalidParamsError,
    JournalLockedError,
    StoreRefusedError,
    StoreUnknownError,
    UnavailableError,
)
from ..core.events.task import DecisionRecord, FilterRecord
from ..core.frames import Frame
from ..core.gguf import GgufError, GgufHead, read_head
from ..core.logprobs import TokenLogprob, pack_logprobs
from ..core.ports import (
    BodyPiece,
    Clock,
    CommitUnit,
    IndexFilter,
    IndexRow,
    JournalStore,
    PlacementPolicy,
    PlacementSnapshot,
    StoreFactory,
    Tail,
)
from ..core.scheduling.tensor_split import tensor_shares
from ..core.types import CALL, REASONING, TEXT, TOOL, Entry, PlacementRequest, PoolView, TaskView

if TYPE_CHECKING:
    from ..core import schema

hookimpl = pluggy.HookimplMarker("llama_orch")

__all__ = [
    "CALL",
    "FEATURES",
    "REASONING",
    "TEXT",
    "TOOL",
    "AttemptEnd",
    "AttemptFailure",
    "AttemptHandle",
    "AttemptSink",
    "AttemptStart",
    "BodyPiece",
    "ChatJob",
    "Clock",
    "CommitUnit",
    "ConfigError",
    "ContainerSpec",
    "CorruptJournalError",
    "DecisionRecord",
    "EmbeddingResult",
    "Engine",
    "EngineFactory",
    "EngineHealth",
    "EngineProperties",
    "EngineState",
    "Entry",
    "EntryBatch",
    "FencedError",
    "FilterRecord",
    "Frame",
    "GenerateJob",
    "GgufError",
    "GgufHead",
    "IndexFilter",
    "IndexRow",
    "InvalidParamsError",
    "JournalLockedError",
    "JournalStore",
    "LaunchPlan",
    "LauncherFactory",
    "PlacementPolicy",
    "PlacementRequest",
    "PlacementSnapshot",
    "PoolView",
    "ProvisionedEngine",
    "RerankResult",
    "StoreFactory",
    "StoreRefusedError",
    "StoreUnknownError",
    "Tail",
    "TaskView",
    "TokenLogprob",
    "UnavailableError",
    "batch_of",
    "hookimpl",
    "pack_logprobs",
    "read_head",
    "schema",
    "tensor_shares",
]


def __getattr__(name: str) -> Any:
    """The tables of the journal: only databases need them, and importing them takes as long as all the rest."""
    if name == "schema":
        return importlib.import_module("llama_orch.core.schema")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
