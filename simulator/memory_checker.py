"""An independent look at memory: adds up what processes hold, at every moment that this changes.

It is written from the rules, not from the planner, and shares no code with it: the bytes on a device never exceed what
it has, and a model that fits one of its devices is never on two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .rig import ModelledPool, Rig


class MemoryChecker:
    """Keeps count of every byte; what breaks a rule is kept in :attr:`violations`, in words.

    :param clock_us: microseconds since the simulation began.
    """

    def __init__(self, rig: Rig, clock_us: Callable[[], int]) -> None:
        self._rig = rig
        self._clock_us = clock_us
        #: (pool, host, device) -> bytes
        self._bytes: dict[tuple[str, str, str], int] = {}
        self.violations: list[str] = []
        #: the most bytes that each device held
        self.peak_bytes: dict[str, int] = {}
        self.looks = 0

    def took(self, pool_id: str, host: str, held: Mapping[str, int]) -> None:
        """A process took memory."""
        if any(owner == pool_id for owner, _, _ in self._bytes):
            self._say(f"{pool_id} was started while its last process still held memory")
        for device, size in held.items():
            self._bytes[pool_id, host, device] = size
        self._look()

    def freed(self, pool_id: str) -> None:
        """A process is gone."""
        for key in [k for k in self._bytes if k[0] == pool_id]:
            del self._bytes[key]
        self._look()

    def spread(self, pool: ModelledPool, devices: tuple[str, ...]) -> None:
        """A model was put on these devices."""
        outside = [d for d in devices if d not in pool.devices]
        if outside:
            self._say(f"{pool.pool_id} is on {', '.join(outside)}, outside of its mask")
        if len(devices) > 1:
            need = pool.weights_bytes + pool.kv_bytes + pool.overhead_bytes
            fitting = [
                d.device
                for d in self._rig.devices
                if d.device in pool.devices and d.host == pool.host and need <= d.total_bytes - self._rig.kept_bytes
            ]
            if fitting:
                self._say(f"{pool.pool_id} is on {len(devices)} devices though it fits {' or '.join(fitting)}")

    def _look(self) -> None:
        self.looks += 1
        for device in self._rig.devices:
            held = {
                owner: size
                for (owner, host, name), size in self._bytes.items()
                if host == device.host and name == device.device
            }
            total = device.foreign_bytes + sum(held.values())
            self.peak_bytes[device.device] = max(self.peak_bytes.get(device.device, 0), total)
            if total > device.total_bytes:
                said = ", ".join(f"{owner} {size}" for owner, size in sorted(held.items()))
                self._say(
                    f"out of memory on {device.device}: {total} of {device.total_bytes} bytes ({said}, "
                    f"others {device.foreign_bytes})"
                )

    def _say(self, what: str) -> None:
        self.violations.append(f"at {self._clock_us() // 1000} ms: {what}")
