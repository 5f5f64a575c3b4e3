"""What a host's pools shall be, and what is asked of whoever makes them so.

The decisions are orchestratord's; a host's pool-managerd hears all of them at each change, and its
:class:`Pools` works towards them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from ..core.engine_ports import EngineProperties
from ..core.settings import ManagerSettings, PoolSettings

Handover = Literal["", "new-first", "stop-first"]


class DesiredPool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One pool as it shall be; the same value twice asks for nothing new.

    While ``next`` is set the pool is being changed to it: with ``new-first`` a second engine comes up beside the first,
    which stays until ``settings`` name the new ones; with ``stop-first`` the first one ends before the second starts.
    """

    settings: PoolSettings
    #: where its model comes from, aliases of the configuration resolved
    model: str
    #: its engine shall run; else it is unloaded
    wanted: bool = True
    #: GPUs by UUID, or "cpu"
    devices: list[str] = msgspec.field(default_factory=lambda: ["cpu"])
    #: generations of its engine begin above this one, so that none is told twice
    generation_floor: int = 0
    #: counts how often somebody asked to try again at once, whatever failed before
    attempt: int = 0
    next: PoolSettings | None = None
    next_model: str = ""
    handover: Handover = ""


class PoolSink(Protocol):
    """Who hears what happens to pools; all on the event loop, and they return at once."""

    def fact(self, event: Any, properties: EngineProperties | None = None) -> None:
        """It happened: an event for the journal, once; ``properties`` of the engine beside a ``pool.ready``.

        What is told without the event loop running on in between goes to the journal in one batch.
        """
        ...

    def progress(self, pool_id: str, phase: str, done: int, total: int, unit: str) -> None:
        """So far it is, ``total`` 0 = not known; nobody may be listening."""
        ...


class Pools(Protocol):
    """Works towards what is wanted."""

    async def apply(self, pools: Sequence[DesiredPool], *, epoch: int, manager: ManagerSettings) -> None:
        """From now on this is wanted. Returns at once; what follows is told to the sink.

        A living engine that is still the one that is wanted is adopted: when it was told ready to this ``epoch``
        already, a health check is all that happens to it, it may be busy, and nothing is told in between. Told ready to
        an older epoch (or not yet), it is told ready to this one once its slots are idle, since what they do is nobody's
        work any more; if they stay busy it is started again (``stuck``). That holds for engines that this object has
        running, too, when the epoch rises.
        """
        ...

    def states(self) -> list[tuple[Any, EngineProperties | None]]:
        """Every pool as it stands now: its ``pool.ready`` with properties, or its ``pool.unready``."""
        ...

    async def stop(self, *, kill_engines: bool) -> None:
        """End looking after pools; with ``kill_engines`` every engine of this data directory is gone behind it."""
        ...
