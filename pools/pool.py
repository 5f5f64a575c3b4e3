"""One pool: brings its engine up, keeps looking after it, and tells what it observes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..core.errors import OrchError
from ..core.ports import Clock, Engine, EngineFactory, EngineHealth, EngineProperties, EngineState
from .hosts import Found, Host, StartError
from .lifecycle import (
    Arm,
    Begin,
    Effects,
    Kill,
    Lifecycle,
    Phase,
    Report,
    Stopped,
    Terminate,
    Timing,
    Trouble,
)
from .preload import PreloadError, preload

#: what to do about each cause that a look from outside can find
ADVICE = {
    "unreachable": "Start the engine, or correct provisioning.url.",
    "loading": "The engine is loading its model; it will be ready by itself.",
    "unhealthy": "The pool's log may say more.",
    "not-understood": "Check that provisioning.url is a server of the engine that the pool names.",
    "preload-failed": "The engine runs but does not decode; its log may say why.",
    "unresponsive": "The engine's process runs but does not answer; it is started again.",
    "plugin-failed": "The engine's plugin has a defect; tell its author.",
    "stuck": "The engine is busy with work that nobody waits for; it is started again.",
}


class PoolEvents(Protocol):
    """Who hears what is observed of pools."""

    def ready(
        self, pool_id: str, properties: EngineProperties, *, generation: int, load_ms: int, decode_mtok_s: int
    ) -> None:
        """The engine loaded, is healthy and decoded; ``generation`` counts its starts."""
        ...

    def unready(self, pool_id: str, *, cause: str, detail: str, advice: str, retry_ms: int) -> None:
        """It cannot take tasks; ``retry_ms`` until the next try, 0 = not known."""
        ...


class Pool:
    """One pool.

    Args:
        pool_id: its name.
        host: makes the engine's process available; its ``on_exit`` must lead to :meth:`exited`.
        factory: makes a client for the engine.
        config: what the factory gets, but for the URL.
        jitter: 0 to 1, see :class:`~llama_orch.pools.lifecycle.Lifecycle`.
    """

    def __init__(
        self,
        pool_id: str,
        make_host: Callable[[Callable[[Trouble], None]], Host],
        factory: EngineFactory,
        config: Mapping[str, Any],
        *,
        events: PoolEvents,
        timing: Timing,
        clock: Clock,
        jitter: Callable[[], float],
    ) -> None:
        self.pool_id = pool_id
        self._host = make_host(self._exited)
        self._factory = factory
        self._config = dict(config)
        self._events = events
        self._timing = timing
        self._clock = clock
        self._lifecycle = Lifecycle(timing, jitter)
        self._timer: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._client: Engine | None = None
        #: the engine while it is ready
        self.engine: Engine | None = None
        self.properties: EngineProperties | None = None

    @property
    def phase(self) -> Phase:
        """Where the engine stands."""
        return self._lifecycle.phase

    def start(self) -> None:
        """Bring the engine up, and again whenever it goes."""
        self._stopped.clear()
        self._apply(self._lifecycle.start(self._now_ms()))

    async def stop(self) -> None:
        """End the engine and wait until it is gone."""
        self._apply(self._lifecycle.stop(self._now_ms()))
        await self._stopped.wait()
        await self._settle()

    async def detach(self) -> None:
        """Look after the engine no longer, and let it live."""
        self._arm(None)
        self._host.detach()
        self._drop_client()
        await self._settle()

    # --- the machine

    def _apply(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Begin():
                    self._begin()
                case Terminate():
                    self._drop_client()
                    self._host.terminate()
                case Kill():
                    self._host.kill()
                case Arm(delay_ms=delay_ms):
                    self._arm(delay_ms)
                case Report(trouble=trouble, retry_ms=retry_ms):
                    self._drop_client()
                    self._unready(trouble, retry_ms)
                case Stopped():
                    self._drop_client()
                    self._stopped.set()

    def _begin(self) -> None:
        began_ms = self._now_ms()
        try:
            found = self._host.begin()
        except StartError as error:
            self._apply(self._lifecycle.exited(error.trouble, began_ms))
            return
        self._work = asyncio.get_running_loop().create_task(self._run(found, began_ms))

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

    async def _run(self, found: Found, began_ms: int) -> None:
        """Wait until it can decode, say so, and look after it; ends when it is unhealthy, or is cancelled."""
        try:
            client = self._client = self._factory({**self._config, "url": found.url})
            await self._answers(client)
            if found.adopted:
                await self._idles(client)
            properties = await client.properties()
            rate = await preload(
                client, slot=0 if self._host.owned else -1, timeout_s=self._timing.preload_timeout_ms / 1000
            )
        except _TroubleError as error:
            self._unhealthy(error.trouble)
            return
        except PreloadError as error:
            self._unhealthy(Trouble("preload-failed", str(error), ADVICE["preload-failed"]))
            return
        except OrchError as error:
            self._unhealthy(Trouble("not-understood", error.message, error.what_to_do))
            return
        except Exception as error:
            # Whatever a plugin raises, its pool says so and tries again; the other pools are not concerned.
            self._unhealthy(Trouble("plugin-failed", repr(error), ADVICE["plugin-failed"]))
            return
        self.engine, self.properties = client, properties
        self._apply(self._lifecycle.ready(self._now_ms()))
        self._events.ready(
            self.pool_id,
            properties,
            generation=found.generation,
            load_ms=self._now_ms() - began_ms,
            decode_mtok_s=rate,
        )
        self._unhealthy(await self._fails(client))

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
                        self._unready(Trouble("loading", health.detail, ADVICE["loading"]), 0)
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

    async def _idles(self, client: Engine) -> None:
        """What the run before this one had asked for is nobody's any more; wait until the engine noticed."""
        deadline_ms = self._now_ms() + self._timing.preload_timeout_ms
        while await client.slots_in_use():
            if self._now_ms() >= deadline_ms:
                raise _TroubleError(Trouble("stuck", "its slots stay busy", ADVICE["stuck"]))
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
                    return Trouble("unresponsive", health.detail, ADVICE["unresponsive"])
                return _trouble_of(health)

    def _unhealthy(self, trouble: Trouble) -> None:
        self._work = None  # it must not cancel itself
        self._apply(self._lifecycle.unhealthy(trouble, self._now_ms()))

    # --- inside

    def _unready(self, trouble: Trouble, retry_ms: int) -> None:
        self._events.unready(
            self.pool_id, cause=trouble.cause, detail=trouble.detail, advice=trouble.advice, retry_ms=retry_ms
        )

    def _drop_client(self) -> None:
        """The engine is not ready any more: whoever waits on its client hears so."""
        self.engine = self.properties = None
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        client, self._client = self._client, None
        if client is not None:
            task = asyncio.get_running_loop().create_task(client.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _settle(self) -> None:
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def _now_ms(self) -> int:
        return self._clock.monotonic_ns() // 1_000_000


class _TroubleError(Exception):
    """Ends the bringing up."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.detail)
        self.trouble = trouble


def _trouble_of(health: EngineHealth) -> Trouble:
    cause = {EngineState.UNREACHABLE: "unreachable", EngineState.LOADING: "loading"}.get(health.state, "unhealthy")
    return Trouble(cause, health.detail, ADVICE[cause])
