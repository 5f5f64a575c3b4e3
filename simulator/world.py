"""One simulation: a server's real services, modelled hosts, and a trace that drives them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ..core.engine_ports import EngineProperties
from ..core.errors import OrchError
from ..core.events.task import TaskEnded
from ..core.journal.journal import Journal, JournalOptions
from ..core.ports import JournalStore
from ..core.projections.projection import Recorded
from ..core.scheduling.swap_types import SwapPlan, SwapSnapshot
from ..core.scheduling.swaps import plan_swaps
from ..core.services.caller import Caller
from ..core.services.container import Services, build_services
from ..core.settings import PoolSettings, ProvisioningSettings, SessionSettings, Settings, SwapSettings
from ..core.types import TaskRequest
from ..plugins.policy.placement import DefaultPolicy
from .clock import LoopClock, Numbered, named_id
from .engine import TOKEN_CHARS, Load, ModelledEngine, Script
from .hosts import ModelledHost
from .loop import StepLoop
from .memory_checker import MemoryChecker
from .observer import Observer
from .report import Report
from .rig import Rig
from .store import RamStore, SyncSoon
from .trace import TraceTask

Planner = Callable[[SwapSnapshot], SwapPlan]

#: seconds between two samples of the modelled GPUs, and between two looks of the watchdog
_SAMPLE_S = 1.0
_WATCH_S = 5.0
#: seconds that are simulated at once
_STEP_S = 60.0
#: seconds without a task's end after which the rest is given up, when nothing more arrives
_GIVE_UP_S = 3_600.0


def settings_of(rig: Rig, swap: SwapSettings | None = None) -> Settings:
    """A configuration that names a rig's pools."""
    return Settings(
        swap=swap or SwapSettings(gpu_reserve_mib=rig.kept_bytes // 2**20),
        sessions=SessionSettings(ttl_ms=86_400_000, turn_limit=1_000_000),
        pools=[
            PoolSettings(
                id=pool.pool_id,
                engine="modelled",
                model=pool.model,
                devices=",".join(pool.devices),
                host=pool.host,
                preload=pool.preload,
                pinned=pool.pinned,
                keep_alive_ms=pool.keep_alive_ms,
                slots=pool.slots,
                ctx=pool.ctx,
                provisioning=ProvisioningSettings(mode="package"),
            )
            for pool in rig.pools
        ],
    )


class Directory:
    """The engines of all hosts."""

    def __init__(self, hosts: Sequence[ModelledHost]) -> None:
        self._hosts = hosts

    def engine(self, pool_id: str) -> ModelledEngine | None:
        """The pool's engine, on whichever host."""
        return next((found for host in self._hosts if (found := host.engine(pool_id)) is not None), None)

    def properties(self, pool_id: str) -> EngineProperties | None:
        """What it says of itself."""
        found = self.engine(pool_id)
        return None if found is None else found.own_properties()


class World:
    """A rig under a trace.

    :param settings: the configuration; by default one that names the rig's pools.
    :param planner: decides what is loaded where; the server's own by default.
    :param store: where the journal is written; in memory by default.
    """

    def __init__(
        self,
        rig: Rig,
        trace: Sequence[TraceTask],
        *,
        settings: Settings | None = None,
        planner: Planner = plan_swaps,
        store: JournalStore | None = None,
        name: str = "",
    ) -> None:
        self.rig = rig
        self.trace = trace
        self.name = name
        self.loop = StepLoop()
        self.clock = LoopClock(self.loop)
        self.store: JournalStore = store or RamStore()
        self.load = Load(self.clock.elapsed_us)
        self.checker = MemoryChecker(rig, self.clock.elapsed_us)
        self._scripts: dict[str, Script] = {}
        self.settings = settings or settings_of(rig)
        hosts = sorted({device.host for device in rig.devices})
        self.hosts = [ModelledHost(h, rig, self.load, self._scripts, self.checker, _SAMPLE_S) for h in hosts]
        self.observer = Observer(rig, trace)
        #: tasks that begin when another one ends: its number -> theirs
        self._after: dict[int, list[int]] = {}
        self._numbers: dict[str, int] = {}
        for task in trace:
            if task.after >= 0:
                self._after.setdefault(task.after, []).append(task.n)
        self._left = len(trace)
        numbered = Numbered()
        with self.loop.inside():
            self.journal = Journal(
                self.store,
                self.clock,
                JournalOptions(version="simulated", window_s=0.0),
                make_durability=SyncSoon,
                urandom=numbered.salt,
                monotonic=self.loop.time,
            )
        self.loop.do(self.journal.open())
        self.services: Services = build_services(
            self.journal,
            settings=self.settings,
            engines=Directory(self.hosts),
            policy=DefaultPolicy(),
            clock=self.clock,
            api_version="simulated",
            launched={pool.engine for pool in self.settings.pools},
            planner=planner,
            watch_s=_WATCH_S,
            new_id=numbered.new_id,
            new_seed=numbered.new_seed,
        )

    def run(self, *, until_s: float = 0.0) -> Report:
        """Simulate until the last task has ended (or for ``until_s``) and say how it went."""
        services = self.services
        with self.loop.inside():
            services.pools.declare(self.settings)
            self.journal.on_committed(self.observer.note)
            self.journal.on_committed(self._note)
            services.start()
            for host in self.hosts:
                host.connect(services)
                host.sample_for_ever()
            for task in self.trace:
                if task.after < 0:
                    self.loop.call_later(task.at_ms / 1000, self._arrive, task)
        last_s = max((task.at_ms for task in self.trace), default=0) / 1000
        left, progress_s, now_s = self._left, last_s, 0.0
        while self._left and now_s < (until_s or progress_s + _GIVE_UP_S):
            self.loop.advance(min(_STEP_S, until_s - now_s) if until_s else _STEP_S)
            now_s = self.clock.elapsed_us() / 1e6
            if self.loop.errors:
                raise self.loop.errors[0]
            if self._left != left:
                left, progress_s = self._left, max(last_s, now_s)
        for host in self.hosts:
            host.end()
        report = self._report()
        self._close()
        return report

    def _close(self) -> None:
        for timer in self.loop.timers():
            timer.cancel()
        self.loop.do(self.services.close())
        self.loop.do(self.journal.close())
        self.loop.wind_up()

    # --- the trace -----------------------------------------------------------------------------------------------

    def _arrive(self, task: TraceTask) -> None:
        task_id = named_id(f"task {task.n}")
        self._numbers[task_id] = task.n
        session = named_id(f"session {task.session}") if task.session else None
        self._scripts[task_id] = Script(
            prompt_tokens=task.prompt_tokens,
            output_tokens=task.output_tokens,
            session=task.session,
            shared_tokens=task.shared_tokens,
        )
        # A turn's prompt begins with what its session said before.
        head = f"{task.session or task.n}:"
        request = TaskRequest(
            model_ref=task.model,
            task_id=task_id,
            session_id=session,
            prompt=head.ljust(task.prompt_tokens * TOKEN_CHARS, "x"),
            max_tokens=task.max_tokens or None,
            priority=task.priority,
        )
        self.loop.create_task(self._submit(request, task))

    async def _submit(self, request: TaskRequest, task: TraceTask) -> None:
        try:
            await self.services.admission.submit(request, Caller(owner="local"), correlation=f"n{task.n}")
        except OrchError as error:
            self.observer.refused(task.n, request.model_ref, error.message)
            self._ended(task.n)

    def _note(self, records: list[Recorded]) -> None:
        for record in records:
            event: Any = record.payload
            if isinstance(event, TaskEnded):
                self._ended(self._numbers[event.task_id])

    def _ended(self, number: int) -> None:
        self._left -= 1
        now_ms = self.clock.elapsed_us() // 1000
        for follower in self._after.get(number, ()):
            task = self.trace[follower]
            wait_ms = max(task.delay_ms, task.at_ms - now_ms)
            asyncio.get_running_loop().call_later(wait_ms / 1000, self._arrive, task)

    def _report(self) -> Report:
        return self.observer.report(
            name=self.name,
            hosts=self.hosts,
            elapsed_us=self.clock.elapsed_us(),
            busy_us=self.load.busy_us,
            violations=self.checker.violations,
            peak_bytes=self.checker.peak_bytes,
            digest=self.journal.head.digest(),
            waits=self.services.loading.waits,
        )
