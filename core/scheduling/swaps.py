"""Which models are loaded where: the pure swap planner (PLC-5)."""

from __future__ import annotations

from .swap_types import SwapPlan, SwapSnapshot


def plan_swaps(snapshot: SwapSnapshot) -> SwapPlan:
    """What to load, drain and unload now. Same snapshot, same plan."""
    return SwapPlan()
