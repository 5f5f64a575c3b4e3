"""When an engine is started, given up, ended and started again: a pure state machine, told what happened and when.

::

    STOPPED --start--> STARTING --ready--> READY
                          |  exited           |  exited
                          v                   v
                       BACKOFF --timer--> STARTING
    STARTING, READY --unhealthy, start timeout, stop--> ENDING --exited--> BACKOFF, or STOPPED after a stop

Every method takes the time in milliseconds and answers effects, in the order in which they are to be carried out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated

from msgspec import Meta, Struct

Ms = Annotated[int, Meta(ge=0)]


class Timing(Struct, frozen=True, kw_only=True):
    """How patient a pool is."""

    backoff_first_ms: Ms = 250
    backoff_last_ms: Ms = 60_000
    #: an engine that was ready for so long is forgiven what went before
    stable_ms: Ms = 60_000
    #: how long a start may take; 0 = for ever
    start_timeout_ms: Ms = 900_000
    #: between the polite and the other signal
    grace_ms: Ms = 5_000
    health_interval_ms: Ms = 2_000
    #: silence for so long fails a health check
    health_timeout_ms: Ms = 5_000
    #: failed health checks in a row until a running engine counts as unhealthy
    health_failures: Annotated[int, Meta(ge=1)] = 3
    #: first pause between two looks at a starting engine; it grows tenfold
    start_poll_ms: Ms = 25
    #: how long preload and the idling of an adopted engine may take
    preload_timeout_ms: Ms = 300_000


class Phase(enum.StrEnum):
    """Where an engine stands."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    ENDING = "ending"


class Trouble(Struct, frozen=True):
    """Why an engine does not serve."""

    #: stable name, as ``pool.unready`` has it
    cause: str
    detail: str = ""
    advice: str = ""


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
    retry_ms: int


class Stopped(Struct, frozen=True):
    """It is over, as was wanted."""


Effect = Begin | Terminate | Kill | Arm | Report | Stopped
Effects = tuple[Effect, ...]


class Lifecycle:
    """One pool's engine.

    Args:
        timing: how patient it is.
        jitter: a number from 0 to 1 at each call, so that many pools do not restart in step.
    """

    def __init__(self, timing: Timing, jitter: Callable[[], float]) -> None:
        self._timing = timing
        self._jitter = jitter
        self.phase = Phase.STOPPED
        self._failures = 0
        self._ready_since_ms = 0
        #: why it is being ended; ``None`` = because somebody wants it stopped
        self._ending: Trouble | None = None

    def start(self, now_ms: int) -> Effects:
        """Somebody wants the engine."""
        if self.phase is not Phase.STOPPED:
            return ()
        self._failures = 0
        return self._begin()

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
        """Its process is gone, or could not be started at all."""
        if self.phase is Phase.ENDING:
            if self._ending is None:
                self.phase = Phase.STOPPED
                return (Arm(None), Stopped())
            return self._back_off(self._ending)
        if self.phase not in (Phase.STARTING, Phase.READY):
            return ()
        self._forgive(now_ms)
        return self._back_off(trouble)

    def timer(self, now_ms: int) -> Effects:
        """The timer that was armed last ran out."""
        if self.phase is Phase.BACKOFF:
            return self._begin()
        if self.phase is Phase.STARTING:
            seconds = self._timing.start_timeout_ms // 1000
            return self._end(
                Trouble("start-timeout", f"not ready after {seconds} s", "The pool's log says how far it came."), now_ms
            )
        if self.phase is Phase.ENDING:
            return (Kill(), Arm(self._timing.grace_ms))
        return ()

    def stop(self, now_ms: int) -> Effects:
        """Nobody wants the engine any more."""
        if self.phase is Phase.STOPPED:
            return (Stopped(),)
        if self.phase is Phase.BACKOFF:
            self.phase = Phase.STOPPED
            return (Arm(None), Stopped())
        if self.phase is Phase.ENDING:
            self._ending = None
            return ()
        return self._end(None, now_ms)

    # --- inside

    def _begin(self) -> Effects:
        self.phase = Phase.STARTING
        return (Arm(self._timing.start_timeout_ms or None), Begin())

    def _end(self, trouble: Trouble | None, now_ms: int) -> Effects:
        self._forgive(now_ms)
        self.phase = Phase.ENDING
        self._ending = trouble
        report: Effects = () if trouble is None else (Report(trouble, 0),)
        return (*report, Arm(self._timing.grace_ms), Terminate())

    def _forgive(self, now_ms: int) -> None:
        if self.phase is Phase.READY and now_ms - self._ready_since_ms >= self._timing.stable_ms:
            self._failures = 0

    def _back_off(self, trouble: Trouble) -> Effects:
        timing = self._timing
        full_ms = min(timing.backoff_first_ms * 2 ** min(self._failures, 40), timing.backoff_last_ms)
        delay_ms = round(full_ms * (0.5 + 0.5 * self._jitter()))
        self._failures += 1
        self.phase = Phase.BACKOFF
        return (Report(trouble, delay_ms), Arm(delay_ms))
