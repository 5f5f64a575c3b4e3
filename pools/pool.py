"""One pool: the engines that its desired state names, and what is told of them."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..core.engine_ports import Engine, EngineProperties
from ..core.events.pool import PoolMeasured, PoolReady, PoolReloaded, PoolReloadFailed, PoolUnready
from . import causes
from .desired import DesiredPool, PoolSink
from .identity import seat_names
from .lifecycle import Phase, Trouble
from .preparing import SETTLE_S, Memory, Order, Prepared, Preparer, StartError, fits, order_of
from .reload import Effects as PlanEffects
from .reload import End, Generations, Open, Promote, Reloaded, ReloadFailed, Seat, Unloaded
from .worker import Readiness, Worker
from .workshop import Workshop


class Told(NamedTuple):
    """What was told of a pool."""

    event: Any
    properties: EngineProperties | None = None


class Pool:
    """One pool.

    Args:
        pool_id: its name.
        workshop: makes its workers.
        preparer: makes engine and model available.
        memory: what memory there is.
        sink: who hears.
    """

    def __init__(
        self, pool_id: str, workshop: Workshop, preparer: Preparer, memory: Memory | None, sink: PoolSink
    ) -> None:
        self.pool_id = pool_id
        self._workshop = workshop
        self._preparer = preparer
        self._memory = memory
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._machine: Generations[Order] = Generations()
        self._workers: dict[Seat, Worker] = {}
        self._names: dict[Worker, str] = {}
        self._retired: set[Worker] = set()
        self._last: dict[Worker, Told] = {}
        self._spoke: Worker | None = None
        self._generation = 0
        self._attempt = 0
        self._next_model = ""
        self._memory_permille = 1_000
        self._desired: DesiredPool | None = None
        #: the order whose size was looked for while the pool was not wanted
        self._looked: Order | None = None
        self._sizing = False
        self._free: Mapping[str, int] = {}
        self._known_facts: list[Any] = []
        self._settled = asyncio.Event()
        self._jobs: set[asyncio.Task[None]] = set()
        self._epoch = 0
        self._told = Told(self._unready(causes.trouble("starting"), 0, 0))
        self._batch: list[Told] = []

    # --- what shall be

    def apply(self, desired: DesiredPool, epoch: int) -> None:
        """Bring the pool to what is desired; the same again changes nothing. :param epoch: of the server that asks."""
        names = seat_names(self.pool_id)
        if not self._generation:
            self._generation = self._workshop.last_generation(self.pool_id, names)
            self._take_over(desired, names)
        self._generation = max(self._generation, desired.generation_floor)
        hurries, self._attempt = desired.attempt > self._attempt, max(self._attempt, desired.attempt)
        self._next_model = (desired.next_model or desired.next.model) if desired.next is not None else ""
        self._memory_permille = desired.settings.memory_permille
        self._desired = desired
        if epoch > self._epoch:
            self._epoch = epoch
            for worker in list(self._workers.values()):
                worker.serve(epoch)
        if not desired.wanted and not self._workers:
            order = order_of(desired.settings, desired.model, desired.devices)
            if order != self._looked:
                # What it would take is told before it is told as unloaded: then it may be loaded.
                self._looked, self._sizing = order, True
                self._spawn(self._size(order))
            if self._sizing:
                return
        self._desire()
        if hurries:
            for worker in list(self._workers.values()):
                worker.hurry()
        self._flush()

    def _desire(self) -> None:
        if self._desired is not None:
            self._carry_out(self._machine.desire(*_plans(self._desired)))

    async def _size(self, order: Order) -> None:
        size = await asyncio.to_thread(self._preparer.size, order)
        if size is not None:
            self._tell_facts((size.event,))
        if order == self._looked:
            self._sizing = False
            self._desire()
            self._flush()

    def state(self) -> Told:
        """How it stands now."""
        worker = self._workers.get(self._machine.voice)
        return self._last.get(worker, self._told) if worker is not None else self._told

    async def stop(self) -> None:
        """End the pool's engines and wait until they are gone."""
        self._desired = None
        self._carry_out(self._machine.desire(None))
        self._flush()
        while self._workers or self._retired:
            self._settled.clear()
            await self._settled.wait()
        await self._finish()

    async def detach(self) -> None:
        """Look after the engines no longer, and let them live."""
        workers = [*self._workers.values(), *self._retired]
        self._workers, self._retired = {}, set()
        await asyncio.gather(*(worker.detach() for worker in workers))
        await self._finish()

    async def _finish(self) -> None:
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await asyncio.gather(*(worker.settle() for worker in self._names))

    # --- who speaks for it

    @property
    def engine(self) -> Engine | None:
        """The engine that serves, while it is ready."""
        worker = self._workers.get(self._machine.voice)
        return worker.engine if worker is not None else None

    @property
    def properties(self) -> EngineProperties | None:
        """What it said of itself."""
        worker = self._workers.get(self._machine.voice)
        return worker.properties if worker is not None else None

    @property
    def phases(self) -> dict[Seat, Phase]:
        """Where its engines stand."""
        return {seat: worker.phase for seat, worker in self._workers.items()}

    # --- WorkerEvents

    def worker_ready(self, worker: Worker, readiness: Readiness) -> None:
        """An engine decoded."""
        order = self._order_of(worker)
        if order is None:
            return
        event = PoolReady(
            pool_id=self.pool_id,
            replica_id="r0",
            generation=readiness.generation,
            engine_version=readiness.properties.engine_version,
            model_digest=readiness.properties.model_digest,
            slots=readiness.properties.slots,
            ctx=readiness.properties.ctx,
            flags=readiness.properties.flags,
            load_ms=readiness.load_ms,
            decode_mtok_s=readiness.decode_mtok_s,
            url=readiness.url,
            devices=list(order.devices),
            abilities=[*readiness.properties.workloads, *readiness.properties.features],
        )
        self._last[worker] = Told(event, readiness.properties)
        seat = self._seat_of(worker)
        if seat is not None:
            self._carry_out(self._machine.ready(seat))
        self._speak()
        self._flush()
        self._spawn(self._measure(worker, readiness.generation, order))

    def worker_unready(self, worker: Worker, trouble: Trouble, *, retry_ms: int, failures: int) -> None:
        """An engine does not serve."""
        seat = self._seat_of(worker)
        if seat is None:
            return
        self._last[worker] = Told(self._unready(trouble, retry_ms, failures))
        if failures:
            self._workshop.ended()
            self._correct(worker, trouble)
            self._carry_out(self._machine.failed(seat, trouble))
        self._speak()
        self._flush()

    def worker_stopped(self, worker: Worker) -> None:
        """An engine is gone, as was wanted."""
        self._workshop.ended()
        self._last.pop(worker, None)
        self._spawn(worker.settle())
        seat = self._seat_of(worker)
        if seat is None:
            self._retired.discard(worker)
        else:
            del self._workers[seat]
            self._names.pop(worker, None)
            self._carry_out(self._machine.stopped(seat))
            self._speak()
        self._names.pop(worker, None)
        self._settled.set()
        self._flush()

    # --- inside

    def _carry_out(self, effects: PlanEffects) -> None:
        for effect in effects:
            match effect:
                case Open(seat=seat):
                    self._open(seat)
                case End(seat=seat):
                    self._tell_ending(seat)
                    self._workers[seat].stop()
                case Promote():
                    old = self._workers.pop(Seat.SERVING, None)
                    self._workers[Seat.SERVING] = self._workers.pop(Seat.NEXT)
                    if old is not None:
                        self._retired.add(old)
                        old.stop()
                case Reloaded():
                    self._speak()
                    event = self._told.event
                    generation = event.generation if isinstance(event, PoolReady) else 0
                    self._fact(PoolReloaded(pool_id=self.pool_id, model_ref=self._next_model, generation=generation))
                case ReloadFailed(trouble=trouble):
                    self._fact(
                        PoolReloadFailed(
                            pool_id=self.pool_id,
                            model_ref=self._next_model,
                            cause=trouble.last_cause or trouble.cause,
                            detail=trouble.detail,
                            advice=trouble.advice,
                        )
                    )
                case Unloaded():
                    self._spoke = None
                    self._tell(Told(self._unready(causes.trouble("unloaded"), 0, 0)))

    def _open(self, seat: Seat) -> None:
        order = self._machine.plan(seat)
        taken = set(self._names.values())
        free = tuple(name for name in seat_names(self.pool_id) if name not in taken)
        name = self._workshop.seat_of(self.pool_id, free, order) or free[0]
        worker = self._workshop.worker(
            self.pool_id,
            name,
            order,
            functools.partial(self._prepare, order),
            self,
            self._next_generation,
            any_port=bool(taken),
            epoch=self._epoch,
        )
        self._workers[seat] = worker
        self._names[worker] = name
        self._last[worker] = Told(self._unready(causes.trouble("starting"), 0, 0))
        worker.start()

    def _take_over(self, desired: DesiredPool, names: tuple[str, ...]) -> None:
        """End what an earlier run left and nobody names any more."""
        wanted = [order for order in _plans(desired)[:2] if order is not None]
        if (
            desired.handover == "stop-first"
            and len(wanted) == 2
            and self._workshop.seat_of(self.pool_id, names, wanted[1])
        ):
            wanted = wanted[1:]
        keep = {self._workshop.seat_of(self.pool_id, names, order) for order in wanted}
        for name in names:
            if name not in keep:
                self._workshop.clear(self.pool_id, name)

    def _next_generation(self) -> int:
        self._generation += 1
        return self._generation

    def _seat_of(self, worker: Worker) -> Seat | None:
        return next((seat for seat, one in self._workers.items() if one is worker), None)

    def _order_of(self, worker: Worker) -> Order | None:
        seat = self._seat_of(worker)
        return None if seat is None else self._machine.plan(seat)

    # --- before and after a start

    def _prepare(self, order: Order, cancelled: threading.Event, looks: bool) -> Prepared:
        """In a worker thread: bring all about that the start needs, and look whether it fits."""

        def progress(phase: str, done: int, total: int, unit: str) -> None:
            self._loop.call_soon_threadsafe(self._progress, order, phase, done, total, unit)

        prepared = self._preparer.prepare(order, progress=progress, cancelled=cancelled)
        self._loop.call_soon_threadsafe(self._tell_facts, prepared.facts)
        if looks and self._memory is not None:
            trouble = self._memory.trouble(order.devices)
            if trouble is not None:
                raise StartError(trouble)
            predicted = {
                device: count * self._memory_permille // 1_000 for device, count in prepared.predicted_bytes.items()
            }
            settle_s = min(SETTLE_S, self._workshop.settle_s())
            free = fits(predicted, self._memory, settle_s=settle_s, cancelled=cancelled)
            self._loop.call_soon_threadsafe(setattr, self, "_free", free)
        return prepared

    def _progress(self, order: Order, phase: str, done: int, total: int, unit: str) -> None:
        self._sink.progress(self.pool_id, phase, done, total, unit)
        voice = self._machine.voice
        worker = self._workers.get(voice)
        if worker is None or worker.phase is not Phase.PREPARING or self._machine.plan(voice) != order:
            return
        cause = "provisioning" if phase.startswith("provisioning") else "staging"
        told = Told(self._unready(causes.trouble(cause), 0, 0))
        if self._last.get(worker) != told:
            self._last[worker] = told
            if told != self._told:
                self._spoke = worker
                self._tell(told)
                self._flush()

    def _tell_facts(self, facts: tuple[Any, ...]) -> None:
        for fact in facts:
            if fact not in self._known_facts:
                kind = type(fact)
                self._known_facts = [one for one in self._known_facts if type(one) is not kind] + [fact]
                self._fact(fact)
        self._flush()

    async def _measure(self, worker: Worker, generation: int, order: Order) -> None:
        """What the engine really takes, as a fact."""
        predicted = worker.prepared.predicted_bytes
        if self._memory is None or not predicted:
            return
        if order.devices != ("cpu",):
            await asyncio.sleep(SETTLE_S)  # until a sample knows of it
        pids, devices = worker.pids(), list(order.devices)
        observed = await asyncio.to_thread(self._memory.taken_bytes, pids, devices) if pids else {}
        if observed and worker.engine is not None:
            self._fact(
                PoolMeasured(
                    pool_id=self.pool_id,
                    generation=generation,
                    predicted_bytes=dict(predicted),
                    observed_bytes=dict(observed),
                )
            )
            self._flush()

    def _correct(self, worker: Worker, trouble: Trouble) -> None:
        """Memory ran out although it was predicted to fit: it needs more than what was free."""
        if "vram-oom" not in (trouble.cause, trouble.last_cause):
            return
        predicted = {device: count for device, count in worker.prepared.predicted_bytes.items() if device != "cpu"}
        observed = {device: max(count, self._free.get(device, 0)) + 1 for device, count in predicted.items()}
        if observed:
            self._fact(
                PoolMeasured(
                    pool_id=self.pool_id,
                    generation=self._generation,
                    predicted_bytes=predicted,
                    observed_bytes=observed,
                )
            )

    # --- telling

    def _tell_ending(self, seat: Seat) -> None:
        """A serving engine that makes room for the next one is not ready from now on; other ends were decided elsewhere."""
        if not self._next_model or self._workers.get(seat) is not self._spoke:
            return
        if isinstance(self._told.event, PoolReady):
            self._tell(Told(self._unready(causes.trouble("reloading"), 0, 0)))

    def _speak(self) -> None:
        """Tell what the speaking engine told last, when that is news."""
        worker = self._workers.get(self._machine.voice)
        if worker is None or worker not in self._last:
            return
        told = self._last[worker]
        if worker is not self._spoke and isinstance(told.event, PoolUnready) and not told.event.failures:
            return  # it only began
        self._spoke = worker
        if told != self._told:
            self._tell(told)

    def _tell(self, told: Told) -> None:
        self._told = told
        self._batch.append(told)

    def _fact(self, event: object) -> None:
        self._batch.append(Told(event))

    def _flush(self) -> None:
        """Tell what came together, in one batch."""
        batch, self._batch = self._batch, []
        for told in batch:
            self._sink.fact(told.event, told.properties)

    def _unready(self, trouble: Trouble, retry_ms: int, failures: int) -> PoolUnready:
        return PoolUnready(
            pool_id=self.pool_id,
            cause=trouble.cause,
            detail=trouble.detail[:500],
            advice=trouble.advice,
            retry_ms=retry_ms,
            permanent=trouble.permanent,
            failures=failures,
            last_cause=trouble.last_cause,
        )

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)


def _plans(desired: DesiredPool) -> tuple[Order | None, Order | None, Any]:
    if not desired.wanted:
        return None, None, ""
    want = order_of(desired.settings, desired.model, desired.devices)
    following = None
    if desired.next is not None:
        following = order_of(desired.next, desired.next_model or desired.next.model, desired.devices)
    return want, following, desired.handover
