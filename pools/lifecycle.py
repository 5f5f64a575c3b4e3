"""When an engine is prepared, started, given up, ended and started again: a pure state machine.

::

    STOPPED --start--> PREPARING --prepared--> STARTING --ready--> READY
                           |  failed              |  exited          |  exited
                           v                      v                  v
                        BACKOFF <-----------------+------------------+
                        BACKOFF --timer, hurry--> PREPARING
    STARTING, READY --unhealthy, start timeout, stop--> ENDING --exited--> BACKOFF; STOPPED after a stop
    PREPARING --stop--> CANCELLING --failed--> STOPPED

What was stopped and is wanted again before its process is gone begins again once it is gone. Every method takes the
time in milliseconds and answers effects, in the order in which they are to be carried out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from msgspec import Struct

from .breaker import Breaker, Circuit
from .timing import Timing


class Phase(enum.StrEnum):
    """Where an engine stands."""

    STOPPED = "stopped"
    PREPARING = "preparing"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    ENDING = "ending"
    CANCELLING = "cancelling"


class Trouble(Struct, frozen=True):
    """Why an engine does not serve."""

    #: stable name, as ``pool.unready`` has it
    cause: str
    detail: str = ""
    advice: str = ""
    #: trying again cannot help: somebody has to do what the advice says
    permanent: bool = False
    #: of ``circuit-open``: the cause of the last failure
    last_cause: str = ""


class Prepare(Struct, frozen=True):
    """Make engine and model available, and look whether they fit."""


class Cancel(Struct, frozen=True):
    """Give the preparation up; ``exited`` follows when it is over."""


class Begin(Struct, frozen=True):
    """Start (or look for) an engine."""


class Terminate(Struct, frozen=True):
    """Ask it to end."""


class Kill(Struct, frozen=True):
    """End it."""


class Arm(Struct, frozen=True):
    """Set the one timer, replacing what was set; ``None`` = no timer."""

    delay_ms: int | None


class Report(Struct, frozen=True):
    """Tell that the pool is not ready."""

    trouble: Trouble
    #: when the next try is due; 0 = not known yet
    retry_ms: int
    #: failures in a row
    failures: int = 0


class Stopped(Struct, frozen=True):
    """It is over, as was wanted."""


Effect = Prepare | Cancel | Begin | Terminate | Kill | Arm | Report | Stopped
Effects = tuple[Effect, ...]


class Lifecycle:
    """One engine process.

    Args:
        timing: how patient it is.
        jitter: a number from 0 to 1 at each call, so that many pools do not restart in step.
    """

    def __init__(self, timing: Timing, jitter: Callable[[], float]) -> None:
        self._timing = timing
        self._breaker = Breaker(timing, jitter)
        self.phase = Phase.STOPPED
        self._wanted = False
        self._ready_since_ms = 0
        #: why it is being ended; ``None`` = because somebody wanted it stopped
        self._ending: Trouble | None = None

    @property
    def circuit(self) -> Circuit:
        """Whether starts are tried."""
        return self._breaker.circuit

    def start(self, now_ms: int) -> Effects:
        """Somebody wants the engine."""
        self._wanted = True
        if self.phase is not Phase.STOPPED:
            return ()
        self._breaker.reset()
        return self._begin()

    def hurry(self, now_ms: int) -> Effects:
        """Somebody mended what was wrong: try at once, and forget what failed."""
        self._breaker.reset()
        return self._begin() if self.phase is Phase.BACKOFF else ()

    def prepared(self, now_ms: int) -> Effects:
        """Engine and model are there, and fit."""
        if self.phase is not Phase.PREPARING:
            return ()
        self.phase = Phase.STARTING
        return (Arm(self._timing.start_timeout_ms or None), Begin())

    def ready(self, now_ms: int) -> Effects:
        """It loaded and decoded."""
        if self.phase is not Phase.STARTING:
            return ()
        self.phase = Phase.READY
        self._ready_since_ms = now_ms
        return (Arm(None),)

    def unhealthy(self, trouble: Trouble, now_ms: int) -> Effects:
        """It runs, but does not do what it should."""
        if self.phase not in (Phase.STARTING, Phase.READY):
            return ()
        return self._end(trouble, now_ms)

    def exited(self, trouble: Trouble, now_ms: int) -> Effects:
        """Its process is gone, could not be started at all, or its preparation failed or was given up."""
        if self.phase in (Phase.ENDING, Phase.CANCELLING):
            if not self._wanted:
                self.phase = Phase.STOPPED
                return (Arm(None), Stopped())
            return self._begin() if self._ending is None else self._back_off(self._ending, now_ms)
        if self.phase not in (Phase.PREPARING, Phase.STARTING, Phase.READY):
            return ()
        self._note_service(now_ms)
        return self._back_off(trouble, now_ms)

    def timer(self, now_ms: int) -> Effects:
        """The timer that was armed last ran out."""
        if self.phase is Phase.BACKOFF:
            return self._begin()
        if self.phase is Phase.STARTING:
            seconds = self._timing.start_timeout_ms // 1000
            advice = "Its log says how far it came: a slow disk or too little memory? `llama-orch pools logs POOL`."
            return self._end(Trouble("start-timeout", f"not ready after {seconds} s", advice), now_ms)
        if self.phase is Phase.ENDING:
            return (Kill(), Arm(self._timing.grace_ms))
        return ()

    def stop(self, now_ms: int) -> Effects:
        """Nobody wants the engine any more."""
        self._wanted = False
        match self.phase:
            case Phase.STOPPED:
                return (Stopped(),)
            case Phase.BACKOFF:
                self.phase = Phase.STOPPED
                return (Arm(None), Stopped())
            case Phase.PREPARING:
                self.phase = Phase.CANCELLING
                self._ending = None
                return (Cancel(),)
            case Phase.STARTING | Phase.READY:
                return self._end(None, now_ms)
            case _:
                return ()

    # --- inside

    def _begin(self) -> Effects:
        self.phase = Phase.PREPARING
        self._breaker.tries()
        return (Arm(None), Prepare())

    def _end(self, trouble: Trouble | None, now_ms: int) -> Effects:
        self._note_service(now_ms)
        self.phase = Phase.ENDING
        self._ending = trouble
        report: Effects = () if trouble is None else (Report(trouble, 0, self._breaker.failures + 1),)
        return (*report, Arm(self._timing.grace_ms), Terminate())

    def _note_service(self, now_ms: int) -> None:
        if self.phase is Phase.READY:
            self._breaker.served(now_ms - self._ready_since_ms)

    def _back_off(self, trouble: Trouble, now_ms: int) -> Effects:
        pause = self._breaker.failed(now_ms, permanent=trouble.permanent)
        self.phase = Phase.BACKOFF
        told = trouble if trouble.permanent or not pause.opened else self._circuit_open(trouble)
        return (Report(told, pause.delay_ms, self._breaker.failures), Arm(pause.delay_ms))

    def _circuit_open(self, last: Trouble) -> Trouble:
        count, seconds = self._breaker.recent, self._timing.breaker_window_ms // 1000
        detail = f"failed {count} times within {seconds} s, the last time: {last.cause}"
        if last.detail:
            detail = f"{detail}: {last.detail}"
        return Trouble("circuit-open", detail, last.advice, last_cause=last.cause)
