"""Which models are loaded where: the pure swap planner (PLC-5).

Work is grouped per model: a loaded model serves its queue before another takes its place, and the room of an idle one
is taken once those who wait for it have waited about as long as the loads cost. Nobody is passed over for more than
the bound: a group has to be served again ``bound_ms`` after it was served last (or began to wait), and its loads and
drains are begun early enough for that; then even a model with a queue gives way, once it had its turn.

Busy pools are drained, never killed; pinned ones never give way. A model that fits one of its devices is never spread.
Nothing here knows a clock or a random number, and nothing depends on hash order: same snapshot, same plan. A plan is
made anew at each look; what an earlier plan began (a pool that drains) is seen in the snapshot and taken into account.
"""

from __future__ import annotations

from itertools import combinations

from msgspec import Struct

from .ledger import OURS, Key, Ledger, gib
from .swap_types import (
    Action,
    Drain,
    GroupDemand,
    Load,
    PoolMemory,
    SwapPlan,
    SwapSnapshot,
    Undrain,
    Unload,
)

_MS = 1_000_000
#: the idle time after which a loaded model is worth half of what loading it again costs
_HALF_VALUE_MS = 120_000
#: candidates on one device of which all combinations are looked at
_COMBINED = 6
#: a batch task's waiting counts for a part of an interactive one's
_BATCH_PART = 4

#: per cent of the bound that is planned with; the rest is for what nobody foresaw
_PLANNED = 90
#: bytes a millisecond that a load is taken to read until one was measured, and what comes beside
_LOAD_BYTES_MS, _LOAD_BASE_MS = 1_000_000, 1_500

#: time that the running tasks of a pool are taken to need where nobody estimated it
_BUSY_MS = 5_000

# How hard it is on a pool to leave.
_IDLE, _AT_WORK, _IN_DEMAND = 0, 1, 2


class Place(Struct, frozen=True):
    """A way to load a pool."""

    pool: PoolMemory
    wanted: dict[str, int]

    @property
    def keys(self) -> list[Key]:
        """The devices that it takes."""
        return [(self.pool.host, device) for device in self.wanted]


class Eviction(Struct, frozen=True):
    """Pools that would have to leave for a place, and what that costs."""

    place: Place
    victims: tuple[PoolMemory, ...]
    hardship: int
    #: waiting, in task-milliseconds, that justifies it
    price: int


class Need(Struct, kw_only=True):
    """A group that waits and that no pool serves."""

    demand: GroupDemand
    #: pools that could be loaded for it
    pools: list[PoolMemory]
    #: since when it has been passed over
    since_ns: int
    #: by when it has to be served again
    due_ns: int
    #: time to get there once it is begun: drain and load
    cost_ms: int
    #: when that has to begin, fair turns of others with the same devices considered; and the shortest turns
    latest_ns: int = 0
    pressing_ns: int = 0

    @property
    def group(self) -> str:
        """Name of the group."""
        return self.demand.group


def plan_swaps(snapshot: SwapSnapshot) -> SwapPlan:
    """What to load, drain and unload now, and when to look again. Same snapshot, same plan."""
    return _Desk(snapshot).plan()


class _Desk:
    """One plan in the making."""

    def __init__(self, snapshot: SwapSnapshot) -> None:
        self.now = snapshot.now_ns
        self.limits = snapshot.limits
        self.ledger = Ledger(snapshot)
        self.pools = sorted(snapshot.pools, key=lambda p: p.pool_id)
        self.demand = {g.group: g for g in sorted(snapshot.groups, key=lambda g: g.group) if g.waiting}
        self.of_group: dict[str, list[PoolMemory]] = {}
        for pool in self.pools:
            self.of_group.setdefault(pool.group, []).append(pool)
        #: pools that are not loaded and could be in one way only
        self.only_there = [
            places[0]
            for pool in self.pools
            if pool.phase in ("unloaded", "failed") and len(places := self._places(pool)) == 1
        ]
        self.actions: list[Action] = []
        self.waits: dict[str, str] = {}
        self.looks: list[int] = []
        #: pools that leave by this plan
        self.gone: set[str] = set()
        self.loads: set[str] = set()

    def plan(self) -> SwapPlan:
        self._correct()
        self._expire()
        for need in self._needs():
            self._serve(need)
        self._end_drains()
        self._preload()
        self._spread()
        later = [at for at in self.looks if at > self.now]
        return SwapPlan(actions=tuple(self.actions), next_look_ns=min(later, default=0), waits=self.waits)

    # --- pools that leave by themselves --------------------------------------------------------------------------

    def _correct(self) -> None:
        """A pool that failed and is now known to need more than its place was planned with is placed anew."""
        for pool in self.pools:
            planned = max(pool.reserved_bytes.values(), default=0)
            if pool.phase == "failed" and len(pool.reserved_bytes) == 1 and pool.need_bytes > planned:
                self._leave(pool)
                self.actions.append(
                    Unload(
                        pool_id=pool.pool_id,
                        cause="swap",
                        reason=f"it needs {gib(pool.need_bytes)}, not {gib(planned)} as was planned",
                    )
                )

    def _expire(self) -> None:
        """Idle pools whose keep-alive has passed go."""
        for pool in self.pools:
            until = pool.keep_alive_until_ns
            if pool.phase != "ready" or pool.leases or pool.pinned or not until or pool.group in self.demand:
                continue
            if until > self.now:
                self.looks.append(until)
                continue
            idle = (self.now - pool.last_used_ns) // _MS
            self._leave(pool)
            self.actions.append(
                Unload(pool_id=pool.pool_id, cause="idle", reason=f"idle for {idle} ms, its keep-alive has passed")
            )

    def _end_drains(self) -> None:
        """Drained pools are unloaded; one whose room nobody needs any more takes tasks again."""
        for pool in self.pools:
            if pool.phase != "draining" or pool.drain_cause not in OURS:
                continue
            if self.ledger.may_stay(pool):
                self.ledger.stay(pool)
                self.actions.append(Undrain(pool_id=pool.pool_id, reason="nobody waits for its room any more"))
            elif not pool.leases:
                self.actions.append(
                    Unload(
                        pool_id=pool.pool_id,
                        cause="idle" if pool.drain_cause == "idle" else "swap",
                        reason="drained: its last task has ended",
                        for_group=pool.made_room_for,
                    )
                )

    def _leave(self, pool: PoolMemory) -> None:
        self.gone.add(pool.pool_id)
        self.ledger.leave(pool)

    # --- who waits -------------------------------------------------------------------------------------------------

    def _served(self, group: str) -> bool:
        own = self.of_group.get(group, ())
        return any(p.phase in ("ready", "loading") and p.pool_id not in self.gone for p in own)

    def _may_load(self, pool: PoolMemory) -> bool:
        if pool.phase == "unloaded":
            return True
        if pool.phase != "failed" or not pool.retry_at_ns or pool.reserved_bytes:
            return False  # one that holds its place is tried again by its host
        if pool.retry_at_ns > self.now:
            self.looks.append(pool.retry_at_ns)
            return False
        return True

    def _needs(self) -> list[Need]:
        """Groups to be served, in their order: the urgent ones, interactive ones, those due first."""
        needs = []
        for group, demand in self.demand.items():
            own = self.of_group.get(group, [])
            if not own or self._served(group):
                continue
            pools = [p for p in own if self._may_load(p)]
            if not pools:
                said = ", ".join(f"{p.pool_id} is {p.phase}" for p in own)
                self.waits[group] = f"none of its pools can be loaded now: {said}"
                continue
            since = max(demand.oldest_ns, *(p.served_until_ns for p in own))
            on = {(p.host, device) for p in pools for device in p.devices}
            drain = max((self._drain_ms(p) for p in self._loaded_on(on)), default=0)
            needs.append(
                Need(
                    demand=demand,
                    pools=pools,
                    since_ns=since,
                    due_ns=since + self.limits.bound_ms * _PLANNED // 100 * _MS,
                    cost_ms=min(self._load_ms(p) for p in pools) + drain,
                )
            )
        self._plan_back(needs)
        for need in needs:
            self.looks += [need.latest_ns, need.pressing_ns]
        return sorted(needs, key=lambda n: (not self._urgent(n), not n.demand.interactive, n.due_ns, n.group))

    def _plan_back(self, needs: list[Need]) -> None:
        """When each has to begin so that it and those due after it on the same devices are served in time.

        Those in between get turns that serve their queues, at most their share of the bound; when even that is too late
        (``pressing_ns``), the shortest turns that are worth a load.
        """
        full: list[tuple[set[Key], int]] = []
        short: list[tuple[set[Key], int]] = []
        for need in sorted(needs, key=lambda n: (n.due_ns, n.group), reverse=True):
            on = {(p.host, device) for p in need.pools for device in p.devices}
            least = min(self._least_turn_ms(p) for p in need.pools)
            turn = max(least, min(need.demand.work_ms, self._share_ms(need.pools[0])))
            need.latest_ns = self._begin_ns(need, on, full, turn)
            need.pressing_ns = self._begin_ns(need, on, short, least)

    @staticmethod
    def _begin_ns(need: Need, on: set[Key], later: list[tuple[set[Key], int]], turn_ms: int) -> int:
        behind = min((begin - turn_ms * _MS for keys, begin in later if keys & on), default=need.due_ns)
        begin = min(need.due_ns, behind) - need.cost_ms * _MS
        later.append((on, begin))
        return begin

    def _share_ms(self, pool: PoolMemory) -> int:
        """A fair turn where more is asked for than there is time."""
        on = set(pool.devices)
        rivals = sum(1 for g in self.demand if any(on & set(p.devices) for p in self.of_group.get(g, ())))
        share = self.limits.bound_ms * _PLANNED // 100 // max(1, rivals)
        return share - self._load_ms(pool) - _BUSY_MS

    @staticmethod
    def _drain_ms(pool: PoolMemory) -> int:
        return (pool.busy_ms or _BUSY_MS) if pool.leases else 0

    @staticmethod
    def _load_ms(pool: PoolMemory) -> int:
        return pool.load_ms or _LOAD_BASE_MS + pool.need_bytes // _LOAD_BYTES_MS

    def _urgent(self, need: Need) -> bool:
        return self.now >= need.latest_ns

    def _loaded_on(self, keys: set[Key]) -> list[PoolMemory]:
        return [
            p
            for p in self.pools
            if p.phase in ("ready", "draining", "failed")
            and any((p.host, device) in keys for device in p.reserved_bytes)
        ]

    # --- serving one group -----------------------------------------------------------------------------------------

    def _serve(self, need: Need) -> None:
        places = [place for pool in need.pools for place in self._places(pool)]
        if not places:
            pool = need.pools[0]
            sizes = ", ".join(self.ledger.said(k) for k in self._keys(pool)) or "none is known"
            self.waits[need.group] = (
                f"{pool.pool_id} needs {gib(pool.need_bytes)}, more than its devices hold ({sizes})"
            )
            return
        now = [p for p in places if all(self.ledger.free(k) >= p.wanted[k[1]] for k in p.keys)]
        if now:
            self._load(min(now, key=self._rank), f"{need.demand.waiting} tasks wait for {need.group}")
            return
        soon = [p for p in places if all(self.ledger.soon(k) >= p.wanted[k[1]] for k in p.keys)]
        if soon:
            place = min(soon, key=self._rank)
            self.ledger.promise(place.pool.host, place.wanted)
            self.waits[need.group] = f"{place.pool.pool_id} is loaded as soon as room on {_names(place)} is free"
            return
        evictions = [e for place in places if (e := self._eviction(need, place)) is not None]
        if evictions:
            self._evict(need, min(evictions, key=lambda e: (e.hardship, e.price, *self._rank(e.place))))
            return
        if self._urgent(need):
            # Nobody may leave yet: what is free is kept, so that smaller models do not fill it up again and again.
            place = min(places, key=self._rank)
            self.ledger.promise(place.pool.host, place.wanted)
        self.waits.setdefault(need.group, self._blocked(places))

    def _keys(self, pool: PoolMemory) -> list[Key]:
        return [(pool.host, d) for d in pool.devices if self.ledger.known((pool.host, d))]

    def _places(self, pool: PoolMemory) -> list[Place]:
        """Where a pool could be: on one device if any can ever hold it, else spread over all of its mask."""
        keys = self._keys(pool)
        single = [key for key in keys if self.ledger.capacity(key) >= pool.need_bytes]
        if single:
            return [Place(pool, {device: pool.need_bytes}) for _, device in single]
        if len(pool.split_bytes) != len(pool.devices) or len(keys) != len(pool.devices) or len(keys) < 2:
            return []
        wanted = dict(zip(pool.devices, pool.split_bytes, strict=True))
        fits = all(self.ledger.capacity(key) >= wanted[key[1]] for key in keys)
        return [Place(pool, wanted)] if fits else []

    def _rank(self, place: Place) -> tuple[int, int, int, int, str, str]:
        """Not where it blocks a model that fits nowhere else; then where fewest models share the device, then the
        fastest device, then the one with most room left."""
        sharing = sum(1 for p in self._loaded_on(set(place.keys)) if p.pool_id not in self.gone)
        speed = min(self.ledger.speed(k) for k in place.keys)
        left = sum(self.ledger.soon(k) - place.wanted[k[1]] for k in place.keys)
        return (int(self._blocks(place)), sharing, -speed, -left, place.pool.pool_id, ",".join(place.wanted))

    def _blocks(self, place: Place) -> bool:
        """Whether a model that fits nowhere else could not be loaded beside it."""
        return any(
            self.ledger.capacity(key) - place.wanted[key[1]] < other.wanted[key[1]]
            for other in self.only_there
            if other.pool.group != place.pool.group
            for key in other.keys
            if key in place.keys
        )

    def _load(self, place: Place, why: str) -> None:
        pool = place.pool
        self.ledger.promise(pool.host, place.wanted)
        self.loads.add(pool.pool_id)
        own = [p.served_until_ns for p in self.of_group[pool.group]]
        left = tuple(
            p.pool_id for p in self.pools if p.made_room_for == pool.group and p.served_until_ns > max(own, default=0)
        )
        sizes = ", ".join(f"{gib(size)} on {device}" for device, size in place.wanted.items())
        self.actions.append(
            Load(
                pool_id=pool.pool_id,
                devices=tuple(place.wanted),
                predicted_bytes=place.wanted,
                reason=f"{why}; takes {sizes}",
                makes_room_by=left,
            )
        )

    # --- making room -----------------------------------------------------------------------------------------------

    def _eviction(self, need: Need, place: Place) -> Eviction | None:
        """The cheapest way to make room there now; ``None``: there is none (yet)."""
        short = {key: place.wanted[key[1]] - self.ledger.soon(key) for key in place.keys}
        keys = {key for key, missing in short.items() if missing > 0}
        may = []
        for pool in self._loaded_on(keys):
            if pool.pinned or pool.pool_id in self.gone or pool.group == need.group or pool.phase == "draining":
                continue
            hardship = self._hardship(pool)
            if hardship == _IN_DEMAND and not self._turn_is_over(need, pool):
                continue
            may.append((hardship, self._value(pool), pool))
        may.sort(key=lambda item: (item[0], item[1], item[2].last_used_ns, item[2].pool_id))
        best: tuple[int, int, int, tuple[PoolMemory, ...]] | None = None
        for number in range(1, min(len(may), _COMBINED) + 1):
            for chosen in combinations(may[:_COMBINED], number):
                if best is not None and (max(c[0] for c in chosen), sum(c[1] for c in chosen)) >= best[:2]:
                    continue
                freed = {key: sum(c[2].reserved_bytes.get(key[1], 0) for c in chosen) for key in keys}
                if all(freed[key] >= short[key] for key in keys):
                    victims = tuple(c[2] for c in chosen)
                    best = (max(c[0] for c in chosen), sum(c[1] for c in chosen), number, victims)
        if best is None:
            return None
        hardship, value, _, victims = best
        return Eviction(place, victims, hardship, self._price(place, victims, hardship, value))

    def _price(self, place: Place, victims: tuple[PoolMemory, ...], hardship: int, value: int) -> int:
        """Waiting that justifies an eviction: some times what the loads cost, more when several groups want the room.

        While one alone waits, the time that the others have been idle counts for it, by half: nobody comes back to them.
        """
        limits, cost = self.limits, self._load_ms(place.pool) + value
        keys = set(place.keys)
        waiting = [
            group
            for group in self.demand
            if not self._served(group)
            and any((p.host, d) in keys for p in self.of_group.get(group, ()) for d in p.devices)
        ]
        if len(waiting) > 1:
            return cost * (limits.crowded_idle_price if hardship == _IDLE else limits.crowded_busy_price)
        if hardship != _IDLE:
            return cost * limits.busy_price
        return max(0, cost * limits.idle_price - min(self._idle_ms(v) for v in victims) // 2)

    def _idle_ms(self, pool: PoolMemory) -> int:
        return 0 if pool.leases else max(0, (self.now - max(pool.last_used_ns, pool.since_ns)) // _MS)

    def _hardship(self, pool: PoolMemory) -> int:
        if pool.phase == "failed":
            return _IDLE
        if pool.group in self.demand:
            return _IN_DEMAND
        return _AT_WORK if pool.leases else _IDLE

    def _value(self, pool: PoolMemory) -> int:
        """What keeping a loaded pool is worth, in milliseconds: its load, the less the longer nobody used it."""
        if pool.phase == "failed":
            return 0
        return self._load_ms(pool) * _HALF_VALUE_MS // (_HALF_VALUE_MS + self._idle_ms(pool))

    def _least_turn_ms(self, pool: PoolMemory) -> int:
        return max(self.limits.turn_ms, self.limits.turn_loads * self._load_ms(pool))

    def _turn_is_over(self, need: Need, pool: PoolMemory) -> bool:
        """Whether a loaded pool with a queue has to give way to a group that is urgent."""
        if not self._urgent(need):
            return False
        least = self._least_turn_ms(pool)
        if self.now < need.pressing_ns:
            least = max(least, self._share_ms(pool))
        over = pool.since_ns + least * _MS
        if over > self.now:
            self.looks.append(over)
            self.waits[need.group] = f"{pool.pool_id} serves its queue for another {(over - self.now) // _MS} ms"
        return over <= self.now

    def _evict(self, need: Need, eviction: Eviction) -> None:
        demand, place = need.demand, eviction.place
        waited = (self.now - demand.oldest_ns) // _MS
        weight = demand.interactive + demand.batch // _BATCH_PART
        pressure = waited * (1 + weight) // 2
        urgent = self._urgent(need)
        names = ", ".join(v.pool_id for v in eviction.victims)
        if not urgent and pressure < eviction.price:
            missing = (eviction.price - pressure) * 2 // (1 + weight) + 1
            self.looks.append(self.now + missing * _MS)
            self.waits[need.group] = (
                f"{names} would have to leave {_names(place)}; that is worth {eviction.price} ms of waiting, and "
                f"{demand.waiting} tasks have waited {pressure} ms so far"
            )
            return
        self.ledger.promise(place.pool.host, place.wanted)
        why = (
            f"passed over for {(self.now - need.since_ns) // _MS} of {self.limits.bound_ms} ms"
            if urgent
            else f"{demand.waiting} tasks have waited {pressure} ms, {eviction.price} ms were worth it"
        )
        room = f"{need.group} needs {gib(max(place.wanted.values()))} on {_names(place)}: {why}"
        self.waits[need.group] = f"{names} makes room: {why}"
        for pool in eviction.victims:
            self._leave(pool)
            if pool.leases:
                self.actions.append(
                    Drain(
                        pool_id=pool.pool_id,
                        reason=f"{room}; {pool.leases} running tasks end first",
                        for_group=need.group,
                    )
                )
            else:
                self.actions.append(Unload(pool_id=pool.pool_id, cause="swap", reason=room, for_group=need.group))

    def _blocked(self, places: list[Place]) -> str:
        devices = sorted({key for place in places for key in place.keys})
        pinned = [p.pool_id for p in self._loaded_on(set(devices)) if p.pinned]
        said = "; ".join(self.ledger.said(key) for key in devices)
        return f"it needs {gib(places[0].pool.need_bytes)}; {said}" + (
            f"; pinned: {', '.join(pinned)}" if pinned else ""
        )

    # --- what nobody waits for -------------------------------------------------------------------------------------

    def _free_place(self, pool: PoolMemory) -> Place | None:
        places = [p for p in self._places(pool) if all(self.ledger.free(k) >= p.wanted[k[1]] for k in p.keys)]
        return min(places, key=self._rank) if places else None

    def _preload(self) -> None:
        """Pools that are to be loaded without being asked for, as far as there is room."""
        for pool in self.pools:
            if pool.preload and pool.pool_id not in self.loads and self._may_load(pool):
                place = self._free_place(pool)
                if place is not None:
                    self._load(place, "it is loaded from the start")

    def _spread(self) -> None:
        """A second pool of a group whose queue takes longer than loading it, where there is room anyway."""
        for group, demand in self.demand.items():
            own = self.of_group.get(group, [])
            if any(p.phase == "loading" or p.pool_id in self.loads for p in own) or not self._served(group):
                continue
            for pool in own:
                if demand.work_ms <= 2 * self._load_ms(pool) or not self._may_load(pool):
                    continue
                place = self._free_place(pool)
                if place is not None:
                    self._load(
                        place, f"the queue of {group} takes {demand.work_ms} ms, loading {self._load_ms(pool)} ms"
                    )
                    break


def _names(place: Place) -> str:
    return " and ".join(place.wanted)
