"""What shall run on a host: the full desired state that orchestratord sends, and that pool-managerd brings about."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..core.settings import PoolSettings

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
    devices: list[str] = ["cpu"]
    #: generations of its engine begin above this one, so that none is told twice
    generation_floor: int = 0
    #: counts how often somebody asked to try again at once, whatever failed before
    attempt: int = 0
    next: PoolSettings | None = None
    next_model: str = ""
    handover: Handover = ""
