"""What comes before an engine's start: its program and its model are made available, and it is looked whether they fit.

Preparing may take hours (a download, a build). It runs in a worker thread, tells how far it came, and can be given up.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ..core.settings import ManagerSettings, PoolSettings, QueueSettings, TimeoutSettings, TuningSettings
from . import causes
from .lifecycle import Trouble
from .models.locks import Locks

Progress = Callable[[str, int, int, str], None]
"""``(phase, done, total, unit)``; total 0 = not known."""

#: memory of an engine that ended a moment ago may still be told as taken
SETTLE_S = 3.0
_LOOK_S = 0.2


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides which process is started: the same order is the same engine."""

    settings: PoolSettings
    #: where the model comes from
    model: str
    #: GPUs by UUID, or "cpu"
    devices: tuple[str, ...] = ("cpu",)


def order_of(settings: PoolSettings, model: str, devices: Sequence[str]) -> Order:
    """An order without what is none of the engine's business: queues, watchdogs, names, placement."""
    plain = msgspec.structs.replace(
        settings,
        aliases=[],
        queue=QueueSettings(),
        timeouts=TimeoutSettings(),
        tuning=TuningSettings(),
        preload=True,
        pinned=False,
        keep_alive_ms=0,
        memory_permille=1_000,
        host="local",
        sampler_profile_version="",
    )
    return Order(settings=plain, model=model, devices=tuple(devices))


def order_digest(order: Order) -> str:
    """Names an order in the record of its engine."""
    return hashlib.sha256(msgspec.json.encode(order, order="deterministic")).hexdigest()


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What a start needs."""

    #: what engine factory and launcher get, but for ``url`` and ``port``
    config: Mapping[str, Any] = {}
    #: predicted bytes per device: GPUs by UUID, "cpu" = memory of the host; empty = not known
    predicted_bytes: Mapping[str, int] = {}
    #: what was found out on the way, as events for the journal
    facts: tuple[Any, ...] = ()
    #: keeps the model in the cache; the engine's process inherits it, and here it is let go of after the start
    held: Locks | None = None


class StartError(Exception):
    """There will be no engine from this try."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.detail)
        self.trouble = trouble


class Preparer(Protocol):
    """Makes an engine's program and its model available. Called in a worker thread; may block for long."""

    def prepare(self, order: Order, *, progress: Progress, cancelled: threading.Event) -> Prepared:
        """Bring all about that a start needs; what is there already is not fetched again.

        :raises StartError: it cannot be, with the cause; also when ``cancelled`` was set meanwhile.
        """
        ...

    def size(self, order: Order) -> Any:
        """What the order would take, with the event that tells it as ``event``, without fetching; ``None`` = not known."""
        ...

    def configure(self, manager: ManagerSettings) -> None:
        """What holds from now on."""
        ...


class Memory(Protocol):
    """What memory there is, and who takes it. Called in a worker thread."""

    def free_bytes(self, devices: Sequence[str], /) -> Mapping[str, int]:
        """Free bytes now, of those devices that can be told; "cpu" is the host's memory."""
        ...

    def taken_bytes(self, pids: Sequence[int], devices: Sequence[str], /) -> Mapping[str, int]:
        """What these processes take now, per device that can be told."""
        ...

    def trouble(self, devices: Sequence[str], /) -> Trouble | None:
        """Why these devices cannot be used now; ``None`` = nothing is known against it."""
        ...


def shortage(predicted: Mapping[str, int], free: Mapping[str, int]) -> Trouble | None:
    """What is too small for what is predicted, with the numbers; ``None`` = it fits, as far as can be told."""
    for device, need in sorted(predicted.items()):
        have = free.get(device)
        if have is not None and need > have:
            where = "of host memory" if device == "cpu" else f"on GPU {device}"
            detail = f"needs {mib(need)} MiB {where}, {mib(have)} MiB are free"
            return causes.trouble("ram-short" if device == "cpu" else "vram-short", detail)
    return None


def fits(
    predicted: Mapping[str, int], memory: Memory, *, settle_s: float, cancelled: threading.Event
) -> Mapping[str, int]:
    """Look whether it fits, for up to ``settle_s`` seconds; answers what is free.

    :raises StartError: it does not.
    """
    devices = sorted(predicted)
    left_s = settle_s
    while True:
        free = memory.free_bytes(devices)
        short = shortage(predicted, free)
        if short is None:
            return free
        if left_s <= 0 or cancelled.wait(_LOOK_S):
            raise StartError(short)
        left_s -= _LOOK_S


def mib(count: int) -> int:
    """Bytes as whole MiB, rounded up."""
    return -(-count // 1_048_576)
