"""What each host shall run, as it follows from the journal's head and the configuration. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..core.projections.pools import PoolState
from ..core.settings import PoolSettings, Settings
from .desired import DesiredPool, Handover
from .outfitting import config_of, is_launched
from .preparing import order_of

#: wire names of the events after which something else may be wanted
MOVING = frozenset(
    {
        "pool.declared",
        "pool.retired",
        "pool.loading",
        "pool.unloading",
        "pool.reloading",
        "pool.reloaded",
        "pool.reload_failed",
        "pool.handed_over",
        "pool.undrained",
    }
)


def wanted_pools(
    pools: Mapping[str, PoolState], settings: Settings, launched: Collection[str]
) -> dict[str, list[DesiredPool]]:
    """The pools of each host, by their ids.

    Args:
        pools: as the journal's head has them.
        settings: the configuration in force.
        launched: engines that are started as processes; pools of others are always wanted.
    """
    found: dict[str, list[DesiredPool]] = {}
    for configured in sorted(settings.pools, key=lambda pool: pool.id):
        state = pools.get(configured.id)
        if state is not None:
            found.setdefault(configured.host, []).append(_wanted(configured, state, settings, launched))
    return found


def client_config(desired: DesiredPool, url: str, launched: Collection[str]) -> dict[str, Any]:
    """What an engine's factory gets to make a client for a pool's engine."""
    order = order_of(desired.settings, desired.model, desired.devices)
    config = config_of(order, launched=is_launched(order, launched))
    return {**config, "url": url} if url else config


def _wanted(configured: PoolSettings, state: PoolState, settings: Settings, launched: Collection[str]) -> DesiredPool:
    declared = state.declared
    model = declared.source or settings.models.get(declared.model_ref, declared.model_ref)
    following, following_model, handover = None, "", ""
    if state.reloaded_from:
        # Tasks still run on the engine of the model before: both are wanted.
        model, following, following_model, handover = state.reloaded_from, configured, model, "new-first"
    elif state.reloading_to and state.handover != "drain":
        following, following_model, handover = configured, state.reload_source, state.handover
    managed = configured.provisioning.mode != "external" and configured.engine in launched
    return DesiredPool(
        settings=configured,
        model=model,
        wanted=state.wanted if managed else True,
        devices=list(state.devices) or ["cpu"],
        generation_floor=state.observed.generation if state.observed is not None else 0,
        attempt=state.attempts,
        next=following,
        next_model=following_model,
        handover=_handover(handover),
    )


def _handover(told: str) -> Handover:
    match told:
        case "new-first" | "stop-first":
            return told
        case _:
            return ""
