"""A modelled host: loads and unloads as the journal says, takes memory, tells facts and samples.

It stands where ``pool-managerd`` stands: it acts on committed decisions only, and what it tells goes through the same
service as an outbox's facts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from ..core.devices import CPU, GpuReading, HostSample, MemoryReading
from ..core.engine_ports import EngineProperties
from ..core.events.pool import PoolLoading, PoolMeasured, PoolReady, PoolSized, PoolUnloading, PoolUnready
from ..core.projections.projection import Recorded
from ..core.services.container import Services
from .engine import Load, ModelledEngine, Script
from .memory_checker import MemoryChecker
from .rig import ModelledPool, Rig

_BOOT = "boot-0"
_INCARNATION = "incarnation-0"


class ModelledHost:
    """One host: its devices, and the engines on them. It is the directory of engines, too."""

    def __init__(
        self, name: str, rig: Rig, load: Load, scripts: Mapping[str, Script], checker: MemoryChecker, sample_s: float
    ) -> None:
        self.name = name
        self._rig = rig
        self._load = load
        self._scripts = scripts
        self._checker = checker
        self._sample_s = sample_s
        self._services: Services | None = None
        self._facts = 0
        self._generations: dict[str, int] = {}
        #: engines that answer
        self.engines: dict[str, ModelledEngine] = {}
        #: bytes that each pool's process holds, by pool and device
        self._held: dict[str, dict[str, int]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        #: of every engine so far: prompt tokens, and those that were in a slot's cache
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.loads = 0
        self.loaded_bytes = 0
        self.load_ms = 0

    # --- EngineDirectory -----------------------------------------------------------------------------------------

    def engine(self, pool_id: str) -> ModelledEngine | None:
        """The pool's engine, when it is ready."""
        return self.engines.get(pool_id)

    def properties(self, pool_id: str) -> EngineProperties | None:
        """What it says of itself."""
        found = self.engines.get(pool_id)
        return None if found is None else found.own_properties()

    # --- life ----------------------------------------------------------------------------------------------------

    def connect(self, services: Services) -> None:
        """Take the server's commands; say what there is and what each model needs."""
        self._services = services
        services.journal.on_committed(self._note)
        services.pools.connected(self.name, _BOOT, _INCARNATION, "modelled-1")
        self._sample()
        facts: list[object] = []
        for pool in self._pools():
            sized = PoolSized(
                pool_id=pool.pool_id,
                weights_bytes=pool.weights_bytes,
                kv_bytes=pool.kv_bytes,
                compute_bytes=0,
                overhead_bytes=pool.overhead_bytes,
                ctx=pool.ctx,
                slots=pool.slots,
                file_bytes=pool.weights_bytes,
            )
            facts += [sized, PoolUnready(pool_id=pool.pool_id, cause="unloaded")]
        self._tell(facts)

    def _pools(self) -> list[ModelledPool]:
        return [p for p in self._rig.pools if p.host == self.name]

    def _tell(self, facts: Sequence[object]) -> None:
        assert self._services is not None
        numbered = [(self._facts + n, fact) for n, fact in enumerate(facts, 1)]
        self._facts += len(facts)
        self._services.pools.received(self.name, _BOOT, _INCARNATION, numbered)

    def _note(self, records: list[Recorded]) -> None:
        mine = {p.pool_id for p in self._pools()}
        for record in records:
            event: object = record.payload
            if isinstance(event, PoolLoading) and event.pool_id in mine:
                self._begin(self._rig.pool(event.pool_id), tuple(event.devices), event.predicted_bytes)
            elif isinstance(event, PoolUnloading) and event.pool_id in mine:
                self._end(event.pool_id)

    def _begin(self, pool: ModelledPool, devices: tuple[str, ...], predicted: dict[str, int]) -> None:
        """An engine's process starts; it takes its memory as it reads its weights, here all of it at once."""
        held = {device: size * pool.real_permille // 1000 for device, size in predicted.items()}
        self._held[pool.pool_id] = held
        load_ms = self._rig.load_ms(pool)
        self._checker.took(pool.pool_id, self.name, held)
        self._checker.spread(pool, devices)
        self.loads += 1
        self.loaded_bytes += pool.weights_bytes
        self.load_ms += load_ms
        loop = asyncio.get_running_loop()
        self._timers[pool.pool_id] = loop.call_later(load_ms / 1000, self._ready, pool, devices, predicted, load_ms)

    def _ready(self, pool: ModelledPool, devices: tuple[str, ...], predicted: dict[str, int], load_ms: int) -> None:
        engine = ModelledEngine(self._rig, pool, devices, self._load, self._scripts)
        self.engines[pool.pool_id] = engine
        generation = self._generations[pool.pool_id] = self._generations.get(pool.pool_id, 0) + 1
        said = engine.own_properties()
        self._sample()
        self._tell(
            [
                PoolReady(
                    pool_id=pool.pool_id,
                    replica_id="r0",
                    generation=generation,
                    engine_version=said.engine_version,
                    slots=said.slots,
                    ctx=said.ctx,
                    load_ms=load_ms,
                    decode_mtok_s=self._rig.decode_mtok_s(pool, devices),
                    devices=list(devices),
                ),
                PoolMeasured(
                    pool_id=pool.pool_id,
                    generation=generation,
                    predicted_bytes=predicted,
                    observed_bytes=self._held[pool.pool_id],
                ),
            ]
        )

    def _end(self, pool_id: str) -> None:
        """The engine is stopped; its memory is free a moment later."""
        timer = self._timers.pop(pool_id, None)
        if timer is not None:
            timer.cancel()
        engine = self.engines.pop(pool_id, None)
        if engine is not None:
            self._count(engine)
            engine.stop()
        asyncio.get_running_loop().call_later(self._rig.stop_ms / 1000, self._gone, pool_id)

    def _gone(self, pool_id: str) -> None:
        self._held.pop(pool_id, None)
        self._checker.freed(pool_id)
        self._sample()
        self._tell([PoolUnready(pool_id=pool_id, cause="unloaded")])

    def _count(self, engine: ModelledEngine) -> None:
        self.prompt_tokens += engine.prompt_tokens
        self.cached_tokens += engine.cached_tokens

    def end(self) -> None:
        """Count what still runs."""
        for engine in self.engines.values():
            self._count(engine)

    # --- samples -------------------------------------------------------------------------------------------------

    def sample_for_ever(self) -> None:
        """Tell a sample now and again and again."""
        self._sample()
        asyncio.get_running_loop().call_later(self._sample_s, self.sample_for_ever)

    def _sample(self) -> None:
        assert self._services is not None
        gpus = []
        memory = None
        for index, device in enumerate(d for d in self._rig.devices if d.host == self.name):
            used = device.foreign_bytes + sum(held.get(device.device, 0) for held in self._held.values())
            if device.device == CPU:
                memory = MemoryReading(device.total_bytes, device.total_bytes - used)
                continue
            gpus.append(
                GpuReading(
                    uuid=device.device,
                    name=device.device,
                    index=index,
                    total_bytes=device.total_bytes,
                    used_bytes=used,
                    free_bytes=device.total_bytes - used,
                )
            )
        self._services.gpus.receive(HostSample(host=self.name, gpus=gpus, memory=memory, driver_version="modelled"))
