r"""Which engines one pool has, through changes of its plan: a pure state machine.

A pool has a serving engine and, while it is being reloaded, a next one::

    new-first    serving --------------------------------------------- retired, once nothing names it any more
                          next: comes up --ready--> told as reloaded --/ becomes the serving one
                                         \--fails--> told as failed, and ends; nothing else changes

    stop-first   serving --ends--> gone
                                   next: comes up --ready--> told as reloaded, becomes the serving one once it is named
                                                  \--fails--> told as failed, ends; then the serving one comes up again

The machine is told what is desired, as a whole and as often as somebody likes, and what became of the engines; it answers
effects, in the order in which they are to be carried out. Asking for the same again has no effect.
"""

from __future__ import annotations

import enum
from typing import Generic, TypeVar

from msgspec import Struct

from .desired import Handover
from .lifecycle import Trouble

P = TypeVar("P")


class Seat(enum.StrEnum):
    """The two engines that a pool may have."""

    SERVING = "serving"
    NEXT = "next"


class Open(Struct, frozen=True):
    """Bring up an engine on the plan that the machine names for this seat."""

    seat: Seat


class End(Struct, frozen=True):
    """End the seat's engine; ``stopped`` follows."""

    seat: Seat


class Promote(Struct, frozen=True):
    """The next engine is the serving one from now on; what served before (if anything) ends by itself."""


class Reloaded(Struct, frozen=True):
    """Tell that the next engine serves."""


class ReloadFailed(Struct, frozen=True):
    """Tell that the next engine did not come up."""

    trouble: Trouble


class Unloaded(Struct, frozen=True):
    """Tell that the pool has no engine, as is wanted."""


Effect = Open | End | Promote | Reloaded | ReloadFailed | Unloaded
Effects = tuple[Effect, ...]


class Stand(enum.Enum):
    """How an engine stands, for this machine."""

    COMING = enum.auto()
    READY = enum.auto()
    ENDING = enum.auto()


class Held(Struct, Generic[P]):
    """An engine of the pool."""

    plan: P
    stand: Stand = Stand.COMING


class Generations(Generic[P]):
    """The engines of one pool. ``P`` is what starts an engine, compared by its value."""

    def __init__(self) -> None:
        self._want: P | None = None
        self._want_next: P | None = None
        self._handover: Handover = ""
        self.serving: Held[P] | None = None
        self.next: Held[P] | None = None
        #: the next plan that was told as failed: it is not tried again while it stays desired
        self._refused: P | None = None
        #: it was told that the next engine serves
        self._told = False
        self._told_unloaded = False

    @property
    def voice(self) -> Seat:
        """The engine whose readiness is the pool's."""
        following = self.next
        if following is None or following.stand is Stand.ENDING:
            return Seat.SERVING
        return Seat.NEXT if self._told or (self._alone and self.serving is None) else Seat.SERVING

    @property
    def _alone(self) -> bool:
        return self._handover == "stop-first"

    @property
    def _target(self) -> P | None:
        """What the next engine shall be; ``None`` = there shall be none."""
        if self._want is None or self._want_next is None or self._want_next == self._refused:
            return None
        return self._want_next

    def plan(self, seat: Seat) -> P:
        """What a seat's engine is started on."""
        held = self.serving if seat is Seat.SERVING else self.next
        assert held is not None, "asked right after it was opened"
        return held.plan

    # --- what is told

    def desire(self, want: P | None, next_plan: P | None = None, handover: Handover = "") -> Effects:
        """What shall be, as a whole. :param want: ``None`` = no engine."""
        if next_plan is None or next_plan != self._want_next or handover != self._handover:
            self._refused = None  # another wish than the one that failed
        if want is not None:
            self._told_unloaded = False
        self._want, self._want_next = want, next_plan
        self._handover = handover if next_plan is not None else ""
        return self._advance()

    def ready(self, seat: Seat) -> Effects:
        """The seat's engine decoded."""
        held = self._held(seat)
        if held is None or held.stand is Stand.ENDING:
            return ()
        held.stand = Stand.READY
        return self._advance()

    def failed(self, seat: Seat, trouble: Trouble) -> Effects:
        """The seat's engine failed, and will be tried again by itself unless it is ended."""
        held = self._held(seat)
        if held is None or held.stand is Stand.ENDING:
            return ()
        held.stand = Stand.COMING
        if seat is Seat.SERVING or self._told or self._target is None:
            return ()
        # The one try of a reload: what served before is to serve again.
        self._refused = held.plan
        return (ReloadFailed(trouble), *self._advance())

    def stopped(self, seat: Seat) -> Effects:
        """The seat's engine is gone, as was wanted."""
        if seat is Seat.SERVING:
            self.serving = None
        else:
            self.next = None
            self._told = False
        return self._advance()

    # --- inside

    def _held(self, seat: Seat) -> Held[P] | None:
        return self.serving if seat is Seat.SERVING else self.next

    def _advance(self) -> Effects:
        effects: list[Effect] = []
        self._settle_next(effects)
        self._settle_serving(effects)
        if self._want is None and self.serving is None and self.next is None and not self._told_unloaded:
            self._told_unloaded = True
            effects.append(Unloaded())
        return tuple(effects)

    def _settle_next(self, effects: list[Effect]) -> None:
        following, target = self.next, self._target
        if following is not None and following.stand is not Stand.ENDING:
            if self._want is not None and following.plan == self._want and self._want_next is None:
                self._promote(effects)
            elif following.plan != target:
                self._end(Seat.NEXT, following, effects)
            elif following.stand is Stand.READY and not self._told:
                self._told = True
                effects.append(Reloaded())
        elif following is None and target is not None and not (self._alone and self.serving is not None):
            self.next = Held(target)
            effects.append(Open(Seat.NEXT))

    def _promote(self, effects: list[Effect]) -> None:
        self.serving, self.next, self._told = self.next, None, False
        effects.append(Promote())

    def _settle_serving(self, effects: list[Effect]) -> None:
        serving = self.serving
        makes_way = self._alone and self._target is not None
        if serving is not None:
            if serving.stand is not Stand.ENDING and (makes_way or serving.plan != self._want):
                self._end(Seat.SERVING, serving, effects)
        elif self._want is not None and not makes_way and not (self.next is not None and self._no_room):
            self.serving = Held(self._want)
            effects.append(Open(Seat.SERVING))

    @property
    def _no_room(self) -> bool:
        """Whether a next engine that is still there stands in the way of the serving one."""
        return self._alone or (self.next is not None and self.next.stand is Stand.ENDING)

    @staticmethod
    def _end(seat: Seat, held: Held[P], effects: list[Effect]) -> None:
        held.stand = Stand.ENDING
        effects.append(End(seat))
