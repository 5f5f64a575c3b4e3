"""Who holds how much of which device, and what is free: pools by the ledger, everybody else by the last sample.

A pool's memory counts as taken from the decision to load it until its engine is seen gone, at the larger of what was
predicted and what was measured. Free is the smaller of what the sample says and what the ledger leaves, less a reserve
that is left alone: predictions err, and others grow. A stale or
missing sample is not replaced by a guess: then the ledger alone speaks, and :meth:`Ledger.said` says so.
"""

from __future__ import annotations

from .swap_types import DeviceMemory, PoolMemory, SwapSnapshot

#: causes of draining that end in an unload, and that only the planner gives
OURS = frozenset({"swap", "idle"})

Key = tuple[str, str]


def gib(size: int) -> str:
    """Bytes as people read them: ``13.4 GiB``; less than one in MiB, less than one of those in KiB."""
    if size < 2**20:
        return f"{(size + 2**9) // 2**10} KiB"
    if size < 2**30:
        return f"{(size + 2**19) // 2**20} MiB"
    tenths = (size * 10 + 2**29) // 2**30
    return f"{tenths // 10}.{tenths % 10} GiB"


class Ledger:
    """Free, leaving and promised bytes per device; decisions of one plan are entered as they are made."""

    def __init__(self, snapshot: SwapSnapshot) -> None:
        self._devices: dict[Key, DeviceMemory] = {(d.host, d.device): d for d in snapshot.devices}
        self._held: dict[Key, int] = dict.fromkeys(self._devices, 0)
        self._loading: dict[Key, int] = dict.fromkeys(self._devices, 0)
        self._leaving: dict[Key, int] = dict.fromkeys(self._devices, 0)
        self._promised: dict[Key, int] = dict.fromkeys(self._devices, 0)
        for pool in snapshot.pools:
            for key, size in self._reserved(pool):
                self._held[key] += size
                if pool.phase == "loading":
                    self._loading[key] += size
            if pool.phase == "unloading" or (pool.phase == "draining" and pool.drain_cause in OURS):
                self.leave(pool)

    def _reserved(self, pool: PoolMemory) -> list[tuple[Key, int]]:
        pairs = (((pool.host, device), size) for device, size in sorted(pool.reserved_bytes.items()))
        return [(key, size) for key, size in pairs if key in self._devices]

    def speed(self, key: Key) -> int:
        """Relative speed of a device."""
        return self._devices[key].speed

    def known(self, key: Key) -> bool:
        """Whether there is such a device."""
        return key in self._devices

    def capacity(self, key: Key) -> int:
        """The most that pools may ever hold on a device."""
        device = self._devices[key]
        return device.total_bytes - device.reserve_bytes

    def free(self, key: Key) -> int:
        """What may be taken now, apart from what was promised in this plan."""
        device = self._devices[key]
        left = self.capacity(key) - self._held[key]
        if device.free_bytes is not None and not device.stale:
            # What is being loaded may not be in the sample yet.
            left = min(left, device.free_bytes - device.reserve_bytes - self._loading[key])
        return left - self._promised[key]

    def soon(self, key: Key) -> int:
        """What may be taken once all that leaves has left."""
        return self.free(key) + self._leaving[key]

    def promise(self, host: str, wanted: dict[str, int]) -> None:
        """Keep room for somebody: nobody after him is promised the same bytes."""
        for device, size in wanted.items():
            self._promised[host, device] += size

    def leave(self, pool: PoolMemory) -> None:
        """A pool is on its way out: its memory comes free soon, not now."""
        for key, size in self._reserved(pool):
            self._leaving[key] += size

    def may_stay(self, pool: PoolMemory) -> bool:
        """Whether all that was promised is there even if this leaving pool stays."""
        return all(self.soon(key) >= size for key, size in self._reserved(pool))

    def stay(self, pool: PoolMemory) -> None:
        """A pool that was leaving stays."""
        for key, size in self._reserved(pool):
            self._leaving[key] -= size

    def said(self, key: Key) -> str:
        """What is free on a device, where the number comes from, and how old it is."""
        device = self._devices[key]
        told = f"{device.device}: {gib(max(0, self.free(key)))} of {gib(device.total_bytes)} free"
        if device.free_bytes is None:
            return f"{told} by the ledger alone (never sampled)"
        if device.stale:
            return f"{told} by the ledger alone (last sample {device.age_ms} ms ago)"
        return told
