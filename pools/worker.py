"""One worker: brings one engine up, keeps looking after it, and tells what it observes.

A worker is one process, one model, one set of devices. It is prepared, started, asked until it answers, made to decode
a few tokens, and only then ready.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol

import msgspec

from ..core.engine_ports import Engine, EngineFactory, EngineHealth, EngineProperties, EngineState
from ..core.errors import ConfigError, OrchError
from ..core.ports import Clock
from . import causes
from .hosts import Found, Host
from .lifecycle import (
    Arm,
    Begin,
    Cancel,
    Effects,
    Kill,
    Lifecycle,
    Phase,
    Prepare,
    Report,
    Stopped,
    Terminate,
    Trouble,
)
from .preload import PreloadError, preload
from .preparing import Prepared, StartError
from .timing import Timing


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that decoded."""

    properties: EngineProperties
    url: str
    generation: int
    load_ms: int
    decode_mtok_s: int


class WorkerEvents(Protocol):
    """Who hears of a worker; all on the event loop."""

    def worker_ready(self, worker: Worker, readiness: Readiness) -> None:
        """It decoded."""
        ...

    def worker_unready(self, worker: Worker, trouble: Trouble, *, retry_ms: int, failures: int) -> None:
        """It cannot take tasks; with ``failures`` 0 it is on its way."""
        ...

    def worker_stopped(self, worker: Worker) -> None:
        """It is over, as was wanted."""
        ...


class Worker:
    """One engine.

    Args:
        make_host: makes the engine's process available; gets who hears of its end.
        factory: makes a client for the engine.
        prepare: brings about what a start needs, in a worker thread; gets whether it is to be looked for free memory.
        executor: for ``prepare``.
        epoch: of the server that asks for it.
        jitter: 0 to 1, see :class:`~llama_orch.pools.lifecycle.Lifecycle`.
    """

    def __init__(
        self,
        make_host: Callable[[Callable[[Trouble], None]], Host],
        factory: EngineFactory,
        prepare: Callable[[threading.Event, bool], Prepared],
        *,
        events: WorkerEvents,
        timing: Timing,
        clock: Clock,
        jitter: Callable[[], float],
        executor: Executor,
        epoch: int,
    ) -> None:
        self._host = make_host(self._exited)
        self._factory = factory
        self._prepare_blocking = prepare
        self._events = events
        self._timing = timing
        self._clock = clock
        self._executor = executor
        self._lifecycle = Lifecycle(timing, jitter)
        self._timer: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._cancelled = threading.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._client: Engine | None = None
        self._began_ms = 0
        self._epoch = epoch
        self._readiness: Readiness | None = None
        #: what the last start was given
        self.prepared = Prepared()
        #: the engine while it is ready
        self.engine: Engine | None = None
        self.properties: EngineProperties | None = None

    @property
    def phase(self) -> Phase:
        """Where the engine stands."""
        return self._lifecycle.phase

    def start(self) -> None:
        """Bring the engine up, and again whenever it goes."""
        self._apply(self._lifecycle.start(self._now_ms()))

    def hurry(self) -> None:
        """Try at once, whatever failed before."""
        self._apply(self._lifecycle.hurry(self._now_ms()))

    def stop(self) -> None:
        """End the engine; ``worker_stopped`` follows once it is gone."""
        self._apply(self._lifecycle.stop(self._now_ms()))

    def serve(self, epoch: int) -> None:
        """A newer server asks for it: it is told as ready to that one once it is idle, for what it does is nobody's."""
        if epoch <= self._epoch:
            return
        self._epoch = epoch
        client, readiness = self._client, self._readiness
        if self.engine is None or client is None or readiness is None:
            return
        self.engine = None
        if self._work is not None:
            self._work.cancel()
        detail = "what was asked of it before is being ended"
        self._events.worker_unready(self, causes.trouble("starting", detail), retry_ms=0, failures=0)
        self._work = asyncio.get_running_loop().create_task(self._serve_again(client, readiness))

    async def detach(self) -> None:
        """Look after the engine no longer, and let it live."""
        self._arm(None)
        self._cancelled.set()
        if self._preparing is not None:
            await asyncio.gather(self._preparing, return_exceptions=True)
        self._arm(None)
        self._host.detach()
        self._drop_client()
        await self.settle()

    async def settle(self) -> None:
        """Wait until what was closed is closed."""
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def pids(self) -> list[int]:
        """The engine's processes."""
        return self._host.pids()

    # --- the machine

    def _apply(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Prepare():
                    self._began_ms = self._now_ms()
                    self._cancelled = threading.Event()
                    self._preparing = asyncio.get_running_loop().create_task(self._prepare(self._cancelled))
                case Cancel():
                    self._cancelled.set()
                case Begin():
                    self._begin()
                case Terminate():
                    self._drop_client()
                    self._host.terminate()
                case Kill():
                    self._host.kill()
                case Arm(delay_ms=delay_ms):
                    self._arm(delay_ms)
                case Report(trouble=trouble, retry_ms=retry_ms, failures=failures):
                    self._drop_client()
                    self._events.worker_unready(self, trouble, retry_ms=retry_ms, failures=failures)
                case Stopped():
                    self._drop_client()
                    self._events.worker_stopped(self)

    async def _prepare(self, cancelled: threading.Event) -> None:
        trouble: Trouble
        try:
            # What runs already has its memory; it is looked for room only before a new start.
            looks = not self._host.adoptable()
            self.prepared = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._prepare_blocking, cancelled, looks
            )
        except StartError as error:
            trouble = error.trouble
        except Exception as error:
            # Whatever goes wrong in a plugin is told as its pool's trouble; the other pools are not concerned.
            trouble = causes.trouble("plugin-failed", repr(error))
        else:
            self._preparing = None
            trouble = Trouble("given-up")
            if self._lifecycle.phase is Phase.PREPARING and not cancelled.is_set():
                self._apply(self._lifecycle.prepared(self._now_ms()))
                return
        self._preparing = None
        if self._lifecycle.phase is Phase.PREPARING and cancelled.is_set():
            return  # detached
        self._apply(self._lifecycle.exited(trouble, self._now_ms()))

    def _begin(self) -> None:
        try:
            found = self._host.begin(self.prepared.config)
        except StartError as error:
            self._apply(self._lifecycle.exited(error.trouble, self._now_ms()))
            return
        finally:
            if self.prepared.held is not None:  # the engine's process has inherited it
                self.prepared.held.release()
        self._work = asyncio.get_running_loop().create_task(self._run(found))

    def _exited(self, trouble: Trouble) -> None:
        self._apply(self._lifecycle.exited(trouble, self._now_ms()))

    def _arm(self, delay_ms: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay_ms is not None:
            self._timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._apply(self._lifecycle.timer(self._now_ms()))

    # --- one engine, from its start to its end

    async def _run(self, found: Found) -> None:
        """Wait until it can decode, say so, and look after it; ends when it is unhealthy, or is cancelled."""
        try:
            client = self._client = self._factory({**self.prepared.config, "url": found.url})
            await self._answers(client)
            properties = await client.properties()
            rate = await self._decodes(client, found, properties.workloads)
        except _TroubleError as error:
            self._unhealthy(error.trouble)
            return
        except PreloadError as error:
            # What the engine said itself names the cause better, e.g. memory that ran out while it decoded.
            self._unhealthy(self._host.said() or causes.trouble("preload-failed", str(error)))
            return
        except ConfigError as error:
            self._unhealthy(causes.trouble("bad-configuration", error.message, error.what_to_do))
            return
        except OrchError as error:
            self._unhealthy(Trouble("not-understood", error.message, error.what_to_do))
            return
        except Exception as error:
            # Whatever a plugin raises, its pool says so and tries again; the other pools are not concerned.
            self._unhealthy(causes.trouble("plugin-failed", repr(error)))
            return
        self._apply(self._lifecycle.ready(self._now_ms()))
        readiness = Readiness(
            properties=properties,
            url=found.url,
            generation=found.generation,
            load_ms=0 if found.adopted else self._now_ms() - self._began_ms,
            decode_mtok_s=rate,
        )
        self._tell_ready(client, readiness)
        self._unhealthy(await self._fails(client))

    async def _serve_again(self, client: Engine, readiness: Readiness) -> None:
        try:
            await self._idles(client)
        except _TroubleError as error:
            self._unhealthy(error.trouble)
            return
        except Exception as error:
            self._unhealthy(causes.trouble("plugin-failed", repr(error)))
            return
        self._tell_ready(client, readiness)
        self._unhealthy(await self._fails(client))

    def _tell_ready(self, client: Engine, readiness: Readiness) -> None:
        self.engine, self.properties, self._readiness = client, readiness.properties, readiness
        self._host.note_told(self._epoch)
        self._events.worker_ready(self, readiness)

    async def _answers(self, client: Engine) -> None:
        """Wait until it is up; somebody else's engine that is not there at all is looked for again later."""
        pause_ms, told = float(self._timing.start_poll_ms), ""
        while True:
            health = await self._health(client)
            match health.state:
                case EngineState.READY:
                    return
                case EngineState.LOADING:
                    if told != "loading":
                        told = "loading"
                        trouble = causes.trouble("loading", health.detail)
                        self._events.worker_unready(self, trouble, retry_ms=0, failures=0)
                case EngineState.FAILED:
                    raise _TroubleError(_trouble_of(health))
                case EngineState.UNREACHABLE:
                    if not self._host.watched:
                        raise _TroubleError(_trouble_of(health))
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 1.3, self._timing.start_poll_ms * 10)

    async def _health(self, client: Engine) -> EngineHealth:
        try:
            async with asyncio.timeout(self._timing.health_timeout_ms / 1000):
                return await client.health()
        except TimeoutError:
            detail = f"no answer to a health check within {self._timing.health_timeout_ms} ms"
            return EngineHealth(state=EngineState.UNREACHABLE, detail=detail)

    async def _decodes(self, client: Engine, found: Found, workloads: Sequence[str]) -> int:
        """Make it decode; answers the rate, 0 where it decoded already for whoever asks now.

        An engine that ran on while nobody looked after it is at work for the server that was told of it: streams go
        from there straight to the engine. It is left in peace, unless that server is gone.
        """
        if found.adopted:
            if self._epoch and found.told_epoch == self._epoch:
                return 0
            await self._idles(client)
        slot = 0 if self._host.owned else -1
        timeout_s = self._timing.preload_timeout_ms / 1000
        return await preload(client, workloads=workloads, slot=slot, timeout_s=timeout_s)

    async def _idles(self, client: Engine) -> None:
        """Wait until the engine noticed that nobody waits for what it does."""
        deadline_ms = self._now_ms() + self._timing.idle_timeout_ms
        while await client.slots_in_use():
            if self._now_ms() >= deadline_ms:
                raise _TroubleError(causes.trouble("stuck", "its slots stay busy with what nobody waits for"))
            await asyncio.sleep(self._timing.start_poll_ms / 1000)

    async def _fails(self, client: Engine) -> Trouble:
        """Look after a ready engine; answers what is wrong once something is."""
        failures = 0
        while True:
            # Once it failed, the next looks come sooner.
            pause_ms = self._timing.start_poll_ms * 10 if failures else self._timing.health_interval_ms
            await asyncio.sleep(min(pause_ms, self._timing.health_interval_ms) / 1000)
            self._host.tend()
            health = await self._health(client)
            failures = 0 if health.state is EngineState.READY else failures + 1
            if failures >= self._timing.health_failures:
                if self._host.watched:
                    return self._host.said() or causes.trouble("unresponsive", health.detail)
                return _trouble_of(health)

    def _unhealthy(self, trouble: Trouble) -> None:
        self._work = None  # it must not cancel itself
        self._apply(self._lifecycle.unhealthy(trouble, self._now_ms()))

    # --- inside

    def _drop_client(self) -> None:
        """The engine is not ready any more: whoever waits on its client hears so."""
        self.engine = self.properties = self._readiness = None
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        client, self._client = self._client, None
        if client is not None:
            task = asyncio.get_running_loop().create_task(client.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _now_ms(self) -> int:
        return self._clock.monotonic_ns() // 1_000_000


class _TroubleError(Exception):
    """Ends the bringing up."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.detail)
        self.trouble = trouble


def _trouble_of(health: EngineHealth) -> Trouble:
    cause = {EngineState.UNREACHABLE: "unreachable", EngineState.LOADING: "loading"}.get(health.state, "unhealthy")
    return causes.trouble(cause, health.detail)
