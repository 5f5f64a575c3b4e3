"""The swap planner: whatever the machine and whatever waits, memory is never over-committed and nobody starves (PLC-5).

What memory holds is added up here from what the plans say, without the planner's ledger.
"""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.scheduling.swap_types import (
    DeviceMemory,
    Drain,
    GroupDemand,
    Load,
    PoolMemory,
    SwapLimits,
    SwapPlan,
    SwapSnapshot,
    Undrain,
    Unload,
)
from llama_orch.core.scheduling.swaps import plan_swaps

from ..support.examples import search

GIB = 2**30
NOW = 1_700_000_000_000_000_000
MS = 1_000_000

# --- any snapshot ------------------------------------------------------------------------------------------------------


@st.composite
def snapshots(draw: st.DrawFn) -> SwapSnapshot:
    """Machines in any state that a ledger can be in: what pools hold fits, whatever the samples say."""
    devices = []
    for n in range(draw(st.integers(1, 3))):
        total = draw(st.integers(4, 24)) * GIB
        seen = draw(st.sampled_from(["exact", "foreign", "stale", "never"]))
        devices.append((f"GPU-{n}", total, seen, draw(st.integers(0, 3)) * GIB if seen == "foreign" else 0))
    left = {name: total - GIB // 2 for name, total, _, _ in devices}
    truth = {name: total - foreign for name, total, _, foreign in devices}
    names = [name for name, *_ in devices]
    pools = []
    for n in range(draw(st.integers(1, 7))):
        mask = tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)))
        need = draw(st.integers(1, 30)) * GIB
        phase = draw(st.sampled_from(["unloaded", "unloaded", "ready", "loading", "draining", "unloading", "failed"]))
        on: tuple[str, ...] = ()
        reserved: dict[str, int] = {}
        if phase != "unloaded" and not (phase == "failed" and draw(st.booleans())):
            fits = [d for d in mask if min(left[d], truth[d]) >= need]
            if not fits:
                phase = "unloaded"
            else:
                on = (draw(st.sampled_from(fits)),)
                reserved = {on[0]: need}
                left[on[0]] -= need
                truth[on[0]] -= need
        leases = draw(st.integers(0, 3)) if phase in ("ready", "draining") else 0
        pools.append(
            PoolMemory(
                pool_id=f"p{n}",
                group=f"g{draw(st.integers(0, 4))}",
                devices=mask,
                phase=phase,  # type: ignore[arg-type]
                placed_on=on,
                need_bytes=need,
                split_bytes=tuple(need // len(mask) + GIB for _ in mask)
                if len(mask) > 1 and draw(st.booleans())
                else (),
                reserved_bytes=reserved,
                leases=leases,
                slots=4,
                pinned=draw(st.booleans()) and draw(st.booleans()),
                preload=draw(st.booleans()),
                keep_alive_until_ns=draw(st.sampled_from([0, 0, NOW - 1, NOW + 5000 * MS])),
                last_used_ns=NOW - draw(st.integers(0, 600_000)) * MS,
                served_until_ns=NOW - draw(st.integers(0, 600_000)) * MS,
                retry_at_ns=draw(st.sampled_from([0, NOW - MS, NOW + 1000 * MS])),
                load_ms=draw(st.sampled_from([0, 1000, 15_000])),
                since_ns=NOW - draw(st.integers(0, 600_000)) * MS,
                drain_cause=draw(st.sampled_from(["swap", "operator"])) if phase == "draining" else "",
            )
        )
    waiting = [
        GroupDemand(
            group=f"g{n}",
            interactive=draw(st.integers(0, 20)),
            batch=draw(st.integers(0, 20)),
            oldest_ns=NOW - draw(st.integers(0, 900_000)) * MS,
            work_ms=draw(st.integers(0, 60_000)),
        )
        for n in range(5)
        if draw(st.booleans())
    ]
    return SwapSnapshot(
        now_ns=NOW,
        devices=tuple(
            DeviceMemory(
                device=name,
                total_bytes=total,
                reserve_bytes=GIB // 2,
                free_bytes=None if seen == "never" else max(0, truth[name]) if seen != "stale" else 999 * GIB,
                stale=seen == "stale",
            )
            for name, total, seen, _ in devices
        ),
        pools=tuple(pools),
        groups=tuple(waiting),
    )


@search(250)
@given(snapshots())
def test_what_a_plan_loads_fits_beside_everything_that_still_holds_memory(snapshot: SwapSnapshot) -> None:
    plan = plan_swaps(snapshot)
    for device in snapshot.devices:
        held = sum(p.reserved_bytes.get(device.device, 0) for p in snapshot.pools)
        loaded = sum(a.predicted_bytes.get(device.device, 0) for a in plan.actions if isinstance(a, Load))
        if not loaded:
            continue
        assert held + loaded <= device.total_bytes - device.reserve_bytes
        if device.free_bytes is not None and not device.stale:
            assert loaded <= device.free_bytes - device.reserve_bytes


@search(250)
@given(snapshots())
def test_each_action_is_one_that_its_pool_allows(snapshot: SwapSnapshot) -> None:
    pools = {p.pool_id: p for p in snapshot.pools}
    named = [a.pool_id for a in plan_swaps(snapshot).actions]
    assert len(named) == len(set(named)), "a pool is named twice"
    for action in plan_swaps(snapshot).actions:
        pool = pools[action.pool_id]
        assert action.reason
        match action:
            case Load():
                assert pool.phase == "unloaded" or (pool.phase == "failed" and 0 < pool.retry_at_ns <= snapshot.now_ns)
                assert not pool.reserved_bytes, "its host tries again by itself"
                assert set(action.devices) <= set(pool.devices)
                assert set(action.devices) == set(action.predicted_bytes)
            case Drain():
                assert pool.phase == "ready"
                assert pool.leases
                assert not pool.pinned
            case Unload():
                assert pool.phase in ("ready", "draining", "failed")
                assert not pool.leases
                assert not (pool.pinned and pool.phase == "ready")
                assert pool.drain_cause != "operator"
            case Undrain():
                assert pool.phase == "draining"
                assert pool.drain_cause == "swap"


@search(250)
@given(snapshots())
def test_a_model_that_fits_one_of_its_devices_is_never_on_two(snapshot: SwapSnapshot) -> None:
    sizes = {d.device: d.total_bytes - d.reserve_bytes for d in snapshot.devices}
    pools = {p.pool_id: p for p in snapshot.pools}
    for action in plan_swaps(snapshot).actions:
        if isinstance(action, Load) and len(action.devices) > 1:
            pool = pools[action.pool_id]
            assert all(sizes[device] < pool.need_bytes for device in pool.devices)
            assert pool.split_bytes


@search(200)
@given(snapshots(), st.randoms(use_true_random=False))
def test_the_same_snapshot_gives_the_same_plan_in_whatever_order_it_is_told(snapshot: SwapSnapshot, random) -> None:
    plan = plan_swaps(snapshot)
    assert plan_swaps(snapshot) == plan
    shuffled = {}
    for name in ("devices", "pools", "groups"):
        items = list(getattr(snapshot, name))
        random.shuffle(items)
        shuffled[name] = tuple(items)
    assert plan_swaps(msgspec.structs.replace(snapshot, **shuffled)) == plan


@search(200)
@given(snapshots())
def test_a_queue_is_not_broken_off_for_a_group_that_can_wait(snapshot: SwapSnapshot) -> None:
    """Only a group that is about to be passed over too long takes the place of a model with a queue."""
    waiting = {g.group: g for g in snapshot.groups if g.waiting}
    pools = {p.pool_id: p for p in snapshot.pools}
    calm = msgspec.structs.replace(
        snapshot,
        groups=tuple(msgspec.structs.replace(g, oldest_ns=max(g.oldest_ns, NOW - 1000 * MS)) for g in snapshot.groups),
        limits=SwapLimits(bound_ms=10**9),
    )
    for action in plan_swaps(calm).actions:
        if isinstance(action, Drain) or (isinstance(action, Unload) and pools[action.pool_id].phase == "ready"):
            assert pools[action.pool_id].group not in waiting


# --- lives -------------------------------------------------------------------------------------------------------------


class Life:
    """Pools that load, run tasks and leave as the plans say, looked at only when something changed or was due."""

    TICK_MS = 500
    STOP_MS = 1_000

    def __init__(self, devices: dict[str, int], pools: list[PoolMemory], limits: SwapLimits) -> None:
        self.devices = devices
        self.limits = limits
        self.pools = {p.pool_id: p for p in pools}
        self.now = NOW
        #: (due, pool, what)
        self.due: list[tuple[int, str, str]] = []
        #: per group: (admitted, run time)
        self.queue: dict[str, list[tuple[int, int]]] = {p.group: [] for p in pools}
        self.look_at = NOW
        self.changed = True
        self.unserved_since: dict[str, int] = {}
        self.longest_ms = 0
        self.started = 0
        self.longest_wait_ms = 0

    def change(self, pool_id: str, **fields: object) -> None:
        self.pools[pool_id] = msgspec.structs.replace(self.pools[pool_id], **fields)
        self.changed = True

    def snapshot(self) -> SwapSnapshot:
        groups = [
            GroupDemand(group=g, interactive=len(q), oldest_ns=min(a for a, _ in q), work_ms=sum(w for _, w in q))
            for g, q in self.queue.items()
            if q
        ]
        held = {d: sum(p.reserved_bytes.get(d, 0) for p in self.pools.values()) for d in self.devices}
        return SwapSnapshot(
            now_ns=self.now,
            devices=tuple(
                DeviceMemory(device=d, total_bytes=size, free_bytes=size - held[d]) for d, size in self.devices.items()
            ),
            pools=tuple(self.pools.values()),
            groups=tuple(groups),
            limits=self.limits,
        )

    def tick(self) -> None:
        for at, pool_id, what in sorted(self.due):
            if at <= self.now:
                self.due.remove((at, pool_id, what))
                self.happens(pool_id, what)
        self.place()
        if self.changed or (self.look_at and self.now >= self.look_at):
            for _ in range(3):  # a change may follow from a change
                self.changed = False
                plan = plan_swaps(self.snapshot())
                self.look_at = plan.next_look_ns
                self.apply(plan)
                self.place()
                if not self.changed:
                    break
        self.check()
        self.now += self.TICK_MS * MS

    def happens(self, pool_id: str, what: str) -> None:
        pool = self.pools[pool_id]
        if what == "loaded":
            self.change(pool_id, phase="ready", since_ns=self.now, last_used_ns=self.now)
        elif what == "gone":
            self.change(pool_id, phase="unloaded", reserved_bytes={}, placed_on=(), drain_cause="")
        else:
            self.change(pool_id, leases=pool.leases - 1, last_used_ns=self.now)

    def place(self) -> None:
        for pool in list(self.pools.values()):
            queue = self.queue[pool.group]
            while pool.phase == "ready" and queue and pool.leases < pool.slots:
                admitted, run_ms = queue.pop(0)
                self.longest_wait_ms = max(self.longest_wait_ms, (self.now - admitted) // MS)
                self.started += 1
                self.change(pool.pool_id, leases=pool.leases + 1, last_used_ns=self.now)
                pool = self.pools[pool.pool_id]
                self.due.append((self.now + run_ms * MS, pool.pool_id, "ended"))

    def apply(self, plan: SwapPlan) -> None:
        for action in plan.actions:
            pool = self.pools[action.pool_id]
            match action:
                case Load():
                    self.change(
                        pool.pool_id,
                        phase="loading",
                        placed_on=action.devices,
                        reserved_bytes=action.predicted_bytes,
                        made_room_for="",
                    )
                    self.due.append((self.now + pool.load_ms * MS, pool.pool_id, "loaded"))
                case Drain():
                    self.change(
                        pool.pool_id,
                        phase="draining",
                        drain_cause="swap",
                        served_until_ns=self.now,
                        made_room_for=action.for_group,
                    )
                case Undrain():
                    self.change(pool.pool_id, phase="ready", drain_cause="")
                case Unload():
                    served = self.now if pool.phase == "ready" else pool.served_until_ns
                    self.change(pool.pool_id, phase="unloading", served_until_ns=served, made_room_for=action.for_group)
                    self.due.append((self.now + self.STOP_MS * MS, pool.pool_id, "gone"))

    def check(self) -> None:
        for device, size in self.devices.items():
            holders = {p.pool_id: p.reserved_bytes.get(device, 0) for p in self.pools.values()}
            assert sum(holders.values()) <= size, f"{device} is out of memory: {holders}"
        for group, queue in self.queue.items():
            served = any(p.phase == "ready" for p in self.pools.values() if p.group == group)
            if queue and not served:
                since = self.unserved_since.setdefault(group, self.now)
                self.longest_ms = max(self.longest_ms, (self.now - since) // MS)
            else:
                self.unserved_since.pop(group, None)


@st.composite
def lives(draw: st.DrawFn) -> tuple[Life, list[tuple[int, int, int]]]:
    devices = {"GPU-0": 24 * GIB, "GPU-1": 12 * GIB}
    pools = []
    for n in range(draw(st.integers(2, 5))):
        size = draw(st.integers(4, 22))
        pools.append(
            PoolMemory(
                pool_id=f"p{n}",
                group=f"g{n}",
                devices=("GPU-0", "GPU-1") if draw(st.booleans()) or size > 12 else ("GPU-1",),
                need_bytes=size * GIB,
                slots=draw(st.integers(1, 3)),
                load_ms=draw(st.integers(1, 8)) * 1000,
            )
        )
    arrivals = sorted(
        draw(
            st.lists(
                st.tuples(st.integers(0, 900), st.integers(0, len(pools) - 1), st.integers(1, 15)),
                min_size=1,
                max_size=120,
            )
        )
    )
    return Life(devices, pools, SwapLimits()), arrivals


@search(15)
@given(lives())
def test_everybody_is_served_within_the_bound_and_memory_is_never_over_committed(
    life_and_arrivals: tuple[Life, list[tuple[int, int, int]]],
) -> None:
    life, arrivals = life_and_arrivals
    left = list(arrivals)
    for _ in range(40_000):
        while left and NOW + left[0][0] * 1000 * MS <= life.now:
            _, number, run_s = left.pop(0)
            life.queue[f"g{number}"].append((life.now, run_s * 1000))
            life.changed = True
        life.tick()
        if not left and not any(life.queue.values()) and not life.due:
            break
    assert life.started == len(arrivals), f"somebody waits for ever: {life.queue}"
    # The last drain and load of a turn are not known when it is planned.
    assert life.longest_ms <= life.limits.bound_ms + 15_000 + 8_000


@search(8)
@given(st.integers(2, 5), st.integers(2, 8), st.integers(1, 3))
def test_models_that_are_always_asked_for_take_turns(models: int, load_s: int, slots: int) -> None:
    """Each has a queue that never ends, and only one has room at a time: nobody waits longer than the bound."""
    pools = [
        PoolMemory(
            pool_id=f"p{n}",
            group=f"g{n}",
            devices=("GPU-0",),
            need_bytes=20 * GIB,
            slots=slots,
            load_ms=load_s * 1000,
        )
        for n in range(models)
    ]
    life = Life({"GPU-0": 24 * GIB}, pools, SwapLimits())
    loads = 0
    for _ in range(2 * 3600):
        for group in life.queue:
            while len(life.queue[group]) < 10:
                life.queue[group].append((life.now, 5_000))
                life.changed = True
        before = sum(p.phase == "loading" for p in life.pools.values())
        life.tick()
        loads += sum(p.phase == "loading" for p in life.pools.values()) > before
    assert life.longest_ms <= life.limits.bound_ms
    # An hour was simulated: turns are as long as the bound lets them be, not as short as they may be.
    assert loads <= 3_600_000 // (life.limits.bound_ms // models) * 2
