"""What the planner is held against: first come, first served, on the same machinery.

The group of the longest-waiting task gets its model at once: whatever was used least recently leaves, whether it has a
queue or not (busy pools are drained here, too, and pinned ones stay). Nobody who came later can hold it up, so the
bound is kept by itself; what it costs are swaps.
"""

from __future__ import annotations

from ..core.scheduling.ledger import OURS, Ledger
from ..core.scheduling.swap_types import (
    Action,
    Drain,
    GroupDemand,
    Load,
    PoolMemory,
    SwapPlan,
    SwapSnapshot,
    Unload,
)


def first_come_first_served(snapshot: SwapSnapshot) -> SwapPlan:
    """Loads in the order of arrival; see the module."""
    ledger = Ledger(snapshot)
    actions: list[Action] = [
        Unload(pool_id=p.pool_id, cause="swap", reason="drained", for_group=p.made_room_for)
        for p in snapshot.pools
        if p.phase == "draining" and p.drain_cause in OURS and not p.leases
    ]
    kept: set[str] = set()
    for demand in sorted(snapshot.groups, key=lambda g: (g.oldest_ns, g.group)):
        if demand.waiting:
            actions += _serve(snapshot, ledger, demand, kept)
    return SwapPlan(actions=tuple(actions))


def _serve(snapshot: SwapSnapshot, ledger: Ledger, demand: GroupDemand, kept: set[str]) -> list[Action]:
    """Load for one group, or make room for it; ``kept``: pools that older tasks wait for, or that leave already."""
    own = [p for p in snapshot.pools if p.group == demand.group]
    serving = {p.pool_id for p in own if p.phase in ("ready", "loading")} - kept
    if serving:
        kept |= serving
        return []
    for pool in own:
        if pool.phase != "unloaded":
            continue
        for wanted in _places(ledger, pool):
            if all(ledger.free((pool.host, d)) >= size for d, size in wanted.items()):
                ledger.promise(pool.host, wanted)
                left = tuple(p.pool_id for p in snapshot.pools if p.made_room_for == demand.group)
                why = "the longest-waiting task is for it"
                return [
                    Load(
                        pool_id=pool.pool_id,
                        devices=tuple(wanted),
                        predicted_bytes=wanted,
                        reason=why,
                        makes_room_by=left,
                    )
                ]
        for wanted in _places(ledger, pool):
            if all(ledger.soon((pool.host, d)) >= size for d, size in wanted.items()):
                ledger.promise(pool.host, wanted)
                return []
        ways = [
            (way, w) for w in _places(ledger, pool) if (way := _victims(snapshot, ledger, pool, w, kept)) is not None
        ]
        if ways:
            victims, wanted = min(ways, key=lambda one: (max((v.last_used_ns for v in one[0]), default=0), len(one[0])))
            ledger.promise(pool.host, wanted)
            return [_out(ledger, kept, victim, demand.group) for victim in victims]
    return []


def _places(ledger: Ledger, pool: PoolMemory) -> list[dict[str, int]]:
    keys = [(pool.host, d) for d in pool.devices if ledger.known((pool.host, d))]
    single = [{key[1]: pool.need_bytes} for key in keys if ledger.capacity(key) >= pool.need_bytes]
    if single or not pool.split_bytes or len(keys) < 2:
        return sorted(single, key=lambda w: -ledger.speed((pool.host, next(iter(w)))))
    return [dict(zip(pool.devices, pool.split_bytes, strict=True))]


def _victims(
    snapshot: SwapSnapshot, ledger: Ledger, pool: PoolMemory, wanted: dict[str, int], kept: set[str]
) -> list[PoolMemory] | None:
    """The least recently used pools that have to leave; ``None``: not enough may."""
    short = {d: size - ledger.soon((pool.host, d)) for d, size in wanted.items()}
    victims: list[PoolMemory] = []
    for other in sorted(snapshot.pools, key=lambda p: (p.last_used_ns, p.pool_id)):
        if not any(missing > 0 for missing in short.values()):
            break
        if other.phase != "ready" or other.pinned or other.pool_id in kept or other.host != pool.host:
            continue
        if any(short.get(d, 0) > 0 for d in other.reserved_bytes):
            victims.append(other)
            for device, size in other.reserved_bytes.items():
                if device in short:
                    short[device] -= size
    return None if any(missing > 0 for missing in short.values()) else victims


def _out(ledger: Ledger, kept: set[str], victim: PoolMemory, group: str) -> Action:
    kept.add(victim.pool_id)
    ledger.leave(victim)
    if victim.leases:
        return Drain(pool_id=victim.pool_id, reason=f"{group} came first", for_group=group)
    return Unload(pool_id=victim.pool_id, cause="swap", reason=f"{group} came first", for_group=group)
