"""GPUs and memory of the hosts: the latest sample of each in memory, and what changed by more than a tremble in the journal (PLC-3).

Decisions read the journal's observation; people, metrics and streams read the sample, which is finer and has an age. A
sample that does not come any more is an event too: after ``swap.sample_age_ms`` the host's GPUs are not believed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..coarse import coarse, pressing, smoothed
from ..devices import CPU, GpuProcess, GpuReading, HostSample, MemoryReading, advice, words
from ..errors import JournalUnavailableError
from ..events.gpu import GpuObserved
from ..journal.journal import Journal
from ..ports import Clock
from ..projections.pools import PoolState
from ..settings import Settings

#: least time between two events of a host where nothing pressing happened
_CALM_NS: Final = 10_000_000_000
#: periods without a sample after which the last one is old, whatever is configured
_PERIODS: Final = 3


class Trouble(msgspec.Struct, frozen=True):
    """Why something is not known, and what to do."""

    #: stable
    cause: str
    message: str
    advice: str


class GpuView(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU, or a MIG instance of one; ``null`` is what the driver does not tell."""

    uuid: str
    name: str
    #: as NVML counts; it may change with a reboot
    index: int
    pci_bus_id: str
    total_bytes: int | None
    used_bytes: int | None
    free_bytes: int | None
    #: the driver's own, beside the used ones
    reserved_bytes: int | None
    utilization_percent: int | None
    temperature_c: int | None
    power_mw: int | None
    processes: list[GpuProcess] | None
    #: UUID of the GPU that this is an instance of
    parent_uuid: str
    #: pools whose engines hold memory on it
    pools: list[str]
    trouble: Trouble | None


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """The devices of one host."""

    host: str
    #: of what is said of the GPUs, milliseconds; ``null``: there was no sample yet
    age_ms: int | None
    driver_version: str
    cuda_version: str
    #: the device "cpu"
    memory: MemoryReading | None
    gpus: list[GpuView]
    #: why the GPUs are not known, or not known to be so any more
    trouble: Trouble | None


class GpuService:
    """Hears samples and answers for them.

    :param settings: how old a sample may be, and how often one is due.
    """

    def __init__(self, journal: Journal, clock: Clock, settings: Settings) -> None:
        self._journal = journal
        self._clock = clock
        self._stale_ns = max(settings.swap.sample_age_ms, _PERIODS * settings.manager.sample_ms) * 1_000_000
        self._hosts = {"local", *(host.id for host in settings.hosts)}
        #: host -> its sample, and when it came, monotonic ns
        self._held: dict[str, tuple[HostSample, int]] = {}
        self._utilization: dict[str, int] = {}
        #: host -> when something of it was journaled, monotonic ns
        self._told_ns: dict[str, int] = {}
        self._since_ns = 0
        self._alarm: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch over the age of what the journal holds: nobody has confirmed it since the last start."""
        self._since_ns = self._clock.monotonic_ns()
        if self._journal.head.gpus.by_host:
            self._watch()

    def close(self) -> None:
        """Stop."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def receive(self, sample: HostSample) -> None:
        """A host sent a sample."""
        now_ns = self._clock.monotonic_ns()
        self._held[sample.host] = (sample, now_ns)
        for gpu in sample.gpus:
            if gpu.utilization_percent is not None:
                self._utilization[gpu.uuid] = smoothed(self._utilization.get(gpu.uuid), gpu.utilization_percent)
        told = self._journal.head.gpus.by_host.get(sample.host)
        if sample.trouble == "no-sample" and told is not None:
            return  # its pool-managerd has just started; what was known is believed until it is old
        self._tell(told, coarse(told, self._aged(sample, sample.age_ms), self._utilization), now_ns)
        self._watch()

    def sample(self, host: str) -> HostSample | None:
        """The host's latest sample with its age now, marked where it is too old; ``None``: there was none."""
        held = self._held.get(host)
        if held is None:
            return None
        sample, came_ns = held
        age_ms = sample.age_ms + (self._clock.monotonic_ns() - came_ns) // 1_000_000
        return self._aged(msgspec.structs.replace(sample, age_ms=age_ms), age_ms)

    def of_pool(self, pool: PoolState) -> list[GpuReading]:
        """What is known just now of the GPUs that a pool's engine is on; nothing that is doubtful."""
        sample = self.sample(pool.declared.host) if pool.devices and pool.devices != [CPU] else None
        if sample is None or sample.trouble:
            return []
        return [gpu for gpu in sample.gpus if gpu.uuid in pool.devices and not gpu.trouble]

    def view_of_pool(self, pool: PoolState) -> HostView:
        """The devices of a pool's engine, with all that is wrong with them (POOL-2)."""
        host = pool.declared.host
        sample = self.sample(host)
        if sample is None:
            return view_of(HostSample(host=host, trouble="no-sample"), {}, age_ms=None)
        own = msgspec.structs.replace(sample, gpus=[gpu for gpu in sample.gpus if gpu.uuid in pool.devices])
        names = {gpu.uuid: [pool.declared.pool_id] for gpu in own.gpus}
        return view_of(own, names, age_ms=sample.age_ms)

    def views(self) -> list[HostView]:
        """All hosts, also those that said nothing yet, by name."""
        pools: dict[tuple[str, str], list[str]] = {}
        for name, pool in sorted(self._journal.head.pools.by_id.items()):
            for device in pool.devices if pool.holds else ():
                pools.setdefault((pool.declared.host, device), []).append(name)
        views = []
        for host in sorted(self._hosts | self._held.keys()):
            sample = self.sample(host)
            on_host = {device: names for (of, device), names in pools.items() if of == host}
            if sample is None:
                views.append(view_of(HostSample(host=host, trouble="no-sample"), on_host, age_ms=None))
            else:
                views.append(view_of(sample, on_host, age_ms=sample.age_ms))
        return views

    def devices(self) -> list[dict[str, Any]]:
        """The devices that work can be placed on, for capabilities (CAP-1)."""
        found: list[dict[str, Any]] = []
        for host in self.views():
            if host.memory is not None:
                found.append({"device": CPU, "host": host.host, "total_bytes": host.memory.total_bytes})
            found += [
                {"device": gpu.uuid, "host": host.host, "name": gpu.name, "total_bytes": gpu.total_bytes}
                for gpu in host.gpus
                if gpu.trouble is None and host.trouble is None
            ]
        return found

    # --- the journal -------------------------------------------------------------------------------------------------

    def _aged(self, sample: HostSample, age_ms: int) -> HostSample:
        """The sample, with what its age means."""
        if sample.trouble or age_ms * 1_000_000 <= self._stale_ns:
            return sample
        return msgspec.structs.replace(sample, trouble="stale", detail=f"it is {age_ms / 1000:.0f} s old")

    def _tell(self, told: GpuObserved | None, new: GpuObserved, now_ns: int) -> None:
        if new == told:
            return
        if not pressing(told, new) and now_ns - self._told_ns.get(new.host, now_ns - _CALM_NS) < _CALM_NS:
            return  # the next sample brings it again
        try:
            self._journal.append([new], actor="gpus", correlation="")
        except JournalUnavailableError:
            return  # the same
        self._told_ns[new.host] = now_ns

    def _watch(self) -> None:
        if self._alarm is None:
            delay_s = self._stale_ns / 2e9
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._look_at_ages)

    def _look_at_ages(self) -> None:
        """Time alone makes a sample doubtful: somebody has to say so."""
        self._alarm = None
        now_ns = self._clock.monotonic_ns()
        for host, told in list(self._journal.head.gpus.by_host.items()):
            _, came_ns = self._held.get(host, (None, self._since_ns))
            if not told.trouble and now_ns - came_ns > self._stale_ns:
                fields: Any = told  # a type checker does not see that events are structs
                self._tell(told, msgspec.structs.replace(fields, trouble="stale"), now_ns)
        self._watch()


def view_of(sample: HostSample, pools: Mapping[str, list[str]], *, age_ms: int | None) -> HostView:
    """A sample as it is shown.

    :param pools: pools by the device that their engines hold memory on.
    """
    return HostView(
        host=sample.host,
        age_ms=age_ms,
        driver_version=sample.driver_version,
        cuda_version=sample.cuda_version,
        memory=sample.memory,
        gpus=[_gpu(gpu, pools.get(gpu.uuid, [])) for gpu in sample.gpus],
        trouble=_trouble(sample.trouble, sample.detail),
    )


def _gpu(gpu: GpuReading, pools: list[str]) -> GpuView:
    return GpuView(
        uuid=gpu.uuid,
        name=gpu.name,
        index=gpu.index,
        pci_bus_id=gpu.pci_bus_id,
        total_bytes=gpu.total_bytes,
        used_bytes=gpu.used_bytes,
        free_bytes=gpu.free_bytes,
        reserved_bytes=gpu.reserved_bytes,
        utilization_percent=gpu.utilization_percent,
        temperature_c=gpu.temperature_c,
        power_mw=gpu.power_mw,
        processes=gpu.processes,
        parent_uuid=gpu.parent_uuid,
        pools=pools,
        trouble=_trouble(gpu.trouble, gpu.detail),
    )


def _trouble(cause: str, detail: str) -> Trouble | None:
    return Trouble(cause, words(cause, detail), advice(cause)) if cause else None
