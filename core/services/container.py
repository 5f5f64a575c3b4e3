"""The services of one server, wired together; plain attributes, no logic of their own."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Collection

import msgspec

from ..journal.journal import Journal
from ..ports import Clock, PlacementPolicy
from ..projections.tasks import TaskState
from ..scheduling.swaps import plan_swaps
from ..settings import Settings
from .admission import AdmissionService
from .bodies import Bodies
from .budgets import BudgetService
from .cancel import CancelService
from .capabilities import Capabilities
from .dispatch import Dispatcher
from .draining import DrainService
from .engines import EngineDirectory
from .estimate_views import EstimateViews
from .estimates import Estimator
from .explaining import Explaining
from .gpus import GpuService
from .keys import KeyService
from .limits import RateLimits
from .loading import LoadingService, Planner
from .objective import LoadShedding
from .placement import Placement
from .pools import PoolService
from .price_list import PriceList
from .purses import Purses
from .readers import Readers
from .recovery import recover
from .reloading import ReloadService
from .responses import ResponseService
from .sessions import SessionService
from .stream_metrics import StreamMetrics
from .streams import Streams
from .tasks import TaskQueries
from .texts import TaskTexts
from .tokens import Tokens
from .transcripts import Transcripts
from .tuning import TuningService
from .unserved import Unserved
from .vetting import Vetting
from .watchdog import PERIOD_S, Watchdog


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that routes and the daemon use."""

    journal: Journal
    keys: KeyService
    limits: RateLimits
    admission: AdmissionService
    budgets: BudgetService
    sessions: SessionService
    cancel: CancelService
    streams: Streams
    tasks: TaskQueries
    responses: ResponseService
    tokens: Tokens
    pools: PoolService
    capabilities: Capabilities
    readers: Readers
    dispatcher: Dispatcher
    transcripts: Transcripts
    watchdog: Watchdog
    loading: LoadingService
    explaining: Explaining
    estimates: EstimateViews
    tuning: TuningService
    gpus: GpuService
    draining: DrainService
    reloading: ReloadService

    def start(self) -> None:
        """Take up what the journal holds: call it once, after the journal was opened."""
        recover(self.journal)
        self.journal.on_rebuilt(self._rebuilt)
        self.transcripts.start()
        self.sessions.start()
        self.watchdog.start()
        self.dispatcher.pump_all()
        self.gpus.start()
        self.loading.start()
        self.tuning.start()
        self.draining.start()
        self.reloading.start()

    def _rebuilt(self) -> None:
        recover(self.journal, self.dispatcher.watched)
        self.dispatcher.pump_all()

    async def close(self) -> None:
        """Stop the services; what is unfinished stays in the journal."""
        self.reloading.close()
        self.draining.close()
        self.tuning.close()
        self.loading.close()
        self.gpus.close()
        await self.watchdog.close()
        await self.sessions.close()
        await self.dispatcher.close()
        await self.transcripts.close()


def _new_id() -> str:
    return str(uuid.uuid4())


def _new_seed() -> int:
    # 2**32 - 1 means "random" to llama.cpp.
    return secrets.randbelow(2**32 - 1)


def build_services(
    journal: Journal,
    *,
    settings: Settings,
    engines: EngineDirectory,
    policy: PlacementPolicy,
    clock: Clock,
    api_version: str,
    launched: Collection[str] = (),
    planner: Planner = plan_swaps,
    watch_s: float = PERIOD_S,
    new_id: Callable[[], str] = _new_id,
    new_seed: Callable[[], int] = _new_seed,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> Services:
    """Wire the services around a journal; nothing runs before :meth:`Services.start`.

    :param launched: engines whose processes are started for their pools, which are loaded and unloaded then.
    :param planner: decides which models are loaded where.
    :param watch_s: seconds between two looks of the watchdog.
    :param random: source of keys: so many bytes that nobody can guess.
    """
    bodies = Bodies(journal.store)
    texts = TaskTexts(journal)
    prices = PriceList(settings.prices)
    dispatcher = Dispatcher(
        journal, Placement(policy, engines), engines, bodies, texts, settings, clock, new_id, Purses(journal, prices)
    )
    cancel = CancelService(journal, dispatcher)
    loading = LoadingService(journal, settings, launched, dispatcher.pump, planner)
    unserved = Unserved(journal, dispatcher, settings, loading.manages)
    gpus = GpuService(journal, clock, settings)
    estimator = Estimator()
    queries = TaskQueries(journal, texts, bodies, estimator)
    pools = PoolService(journal, dispatcher)
    tokens = Tokens(journal, engines)

    budgets = BudgetService(journal, settings, prices)
    sessions = SessionService(journal, settings, engines, budgets, new_id)
    keys, limits = KeyService(journal, random, budgets), RateLimits(journal)
    shedding = LoadShedding(journal, settings.admission.objective)

    def on_time(state: TaskState, now_ns: int) -> int | None:
        return estimator.on_time_permille(journal.head, state, now_ns)

    return Services(
        journal=journal,
        keys=keys,
        limits=limits,
        admission=AdmissionService(
            journal,
            dispatcher,
            bodies,
            settings,
            Vetting(journal, engines, settings, tokens, loading.loadable, unserved.trouble),
            [limits, shedding, budgets, sessions],
            estimator,
            budgets.prompt_room,
            new_id,
            new_seed,
        ),
        budgets=budgets,
        sessions=sessions,
        cancel=cancel,
        streams=Streams(journal, texts, StreamMetrics(journal, dispatcher, gpus, on_time, budgets.remaining)),
        tasks=queries,
        responses=ResponseService(journal, queries, cancel),
        tokens=tokens,
        pools=pools,
        capabilities=Capabilities(journal, engines, gpus, settings, api_version),
        readers=Readers(journal, cancel),
        dispatcher=dispatcher,
        transcripts=Transcripts(journal, texts),
        watchdog=Watchdog(journal, dispatcher, unserved, clock, watch_s, [keys.sweep, budgets.sweep, sessions.sweep]),
        gpus=gpus,
        loading=loading,
        draining=DrainService(journal, dispatcher, pools, loading.manages),
        reloading=ReloadService(journal, dispatcher, pools, settings),
        explaining=Explaining(journal, settings, loading),
        estimates=EstimateViews(journal, estimator),
        tuning=TuningService(journal, settings, dispatcher.pump),
    )
