"""How far predictions of starts were off, and what follows for the next ones (ADM-5).

A model predicts three quantiles of a wait. Where the waits then fell between them is kept per load band, as the last
outcomes in units of the model's own spread; the quantiles of those correct the next prediction of that band. Beside
it, what was published is scored, and so is a plain moving average of past waits, which it has to beat. Integers only.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..events.task import TaskAdmitted, TaskEnded, TaskStarted
from ..lengths import bucket_of, edge_of
from .projection import Projection, Recorded, on

#: what an outcome weighs that nobody was ahead of; those behind the same others share their error, and weigh less
UNIT: Final = 64
_SHARED: Final = 8
_LEAST_WEIGHT: Final = 6
#: what all outcomes of a band weigh at most; older ones fade
HELD: Final = 1000 * UNIT
#: one spread of the model, in residuals
ONE: Final = 1024
#: outcomes of a group that its own correction needs; before that all groups' is used
ENOUGH: Final = 50
#: levels that outcomes are looked up for at most, and where the levels stop on the inner side, millionths
_OUTERMOST: Final = 2_000
_INNERMOST: Final = 400_000
#: how much a level beyond those stretches, and the weight that levels move by at least
_STRETCH: Final = 4
_LEAST_STEP: Final = 24
#: groups and bands that are remembered; the longest unused is forgotten first
MOST_BANDS: Final = 512
#: part of a new wait that the moving average takes, and what makes 80 % of its mean absolute deviation at first
_AVERAGE_PART: Final = 8
_OFF_TO_P90_PERMILLE: Final = 1606
_FARTHEST: Final = 64 * ONE
#: what an outcome outside of the interval moves the level of its end by, millionths
_STEP: Final = 10_000
#: where the residuals of a model lie that is right (of a normal distribution, in twenty equal parts), and what that
#: belief weighs beside outcomes
_BELIEF: Final = (50, 151, 255, 363, 478, 603, 747, 920, 1150, 1566)
_BELIEF_WEIGHT: Final = 4 * UNIT


class Score(msgspec.Struct, gc=False):
    """How predictions of one group and load band came out; sums over ``n`` outcomes."""

    n: int = 0
    covered: int = 0
    width_ms: int = 0
    #: sum of the pinball losses at 10, 50 and 90 %, thousandths of a millisecond each
    pinball_us: int = 0
    average_covered: int = 0
    average_width_ms: int = 0
    average_pinball_us: int = 0

    def add(self, more: tuple[int, ...]) -> None:
        """Another outcome, as far as it adds to each field."""
        n, covered, width_ms, pinball, average_covered, average_width_ms, average_pinball = more
        self.n += n
        self.covered += covered
        self.width_ms += width_ms
        self.pinball_us += pinball
        self.average_covered += average_covered
        self.average_width_ms += average_width_ms
        self.average_pinball_us += average_pinball


def _belief() -> dict[int, int]:
    counts: dict[int, int] = {}
    for place in (*_BELIEF, *(-p for p in _BELIEF)):
        counts[_bucket(place)] = counts.get(_bucket(place), 0) + _BELIEF_WEIGHT
    return counts


class Band(msgspec.Struct, gc=False):
    """One group and load band."""

    score: Score = msgspec.field(default_factory=Score)
    #: where outcomes fell, by bucket: weights, beginning with what is believed of a model that is right
    residuals: dict[int, int] = msgspec.field(default_factory=_belief)
    weight: int = 20 * _BELIEF_WEIGHT
    #: which quantiles of the residuals the ends of the interval are taken from, millionths: moved until as many
    #: outcomes fall outside as shall (Gibbs and Candès, "Adaptive Conformal Inference Under Distribution Shift", 2021)
    low: int = 100_000
    high: int = 900_000

    def places(self) -> list[int]:
        """Residuals that the ends and the middle of the next interval are put at."""
        first, last = max(self.low, _OUTERMOST), min(self.high, 1_000_000 - _OUTERMOST)
        wanted = [level * self.weight // 1_000_000 for level in (first, 500_000, last)]
        found: list[int] = []
        passed = 0
        for bucket in sorted(self.residuals):
            weight = self.residuals[bucket]
            while len(found) < 3 and wanted[len(found)] < passed + weight:
                low, high = _edges(bucket)
                found.append(low + (high - low) * (wanted[len(found)] - passed) // weight)
            passed += weight
        found += [_FARTHEST] * (3 - len(found))
        # Levels beyond what was ever seen stretch the interval.
        found[0] -= (abs(found[0]) + ONE) * (first - self.low) * _STRETCH // 1_000_000
        found[2] += (abs(found[2]) + ONE) * (self.high - last) * _STRETCH // 1_000_000
        return found

    def learn(self, place: int, weight: int) -> None:
        """An outcome fell there."""
        bucket = _bucket(place)
        self.residuals[bucket] = self.residuals.get(bucket, 0) + weight
        self.weight += weight
        if self.weight > HELD:
            self.residuals = {b: w // 2 for b, w in self.residuals.items() if w > 1}
            self.weight = sum(self.residuals.values())

    def adapt(self, *, below: bool, above: bool, weight: int) -> None:
        """The published interval held the outcome, or did not."""
        step = _STEP * max(weight, _LEAST_STEP) // UNIT
        self.low = min(_INNERMOST, max(-1_000_000, self.low + (-9 * step if below else step) // 10))
        high = self.high + (9 * step if above else -step) // 10
        self.high = max(1_000_000 - _INNERMOST, min(2_000_000, high))


class MovingAverage(msgspec.Struct, gc=False):
    """The waits of a group and priority, averaged: what predictions are held against."""

    wait_ms: int = 0
    off_ms: int = 0
    #: its interval reaches so many thousandths of ``off_ms``, moved until it covers 80 %: it is to be a fair rival
    reach_permille: int = _OFF_TO_P90_PERMILLE


class Pending(msgspec.Struct, gc=False):
    """A prediction whose outcome is not known yet."""

    group: str
    band: str
    priority: str
    ahead: int
    model_ms: list[int]
    published_ms: list[int]
    average_ms: list[int]


def residual(outcome_ms: int, model_ms: list[int]) -> int:
    """Where an outcome lies beside the model's quantiles (10, 50, 90 %): 0 at the median, ±1024 one spread off."""
    low, middle, high = model_ms
    off = outcome_ms - middle
    spread = max(high - middle, middle // 16, 1) if off >= 0 else max(middle - low, middle // 16, 1)
    return max(-_FARTHEST, min(_FARTHEST, off * ONE // spread))


def outcome_at(place: int, model_ms: list[int]) -> int:
    """The outcome whose residual this is, never negative."""
    low, middle, high = model_ms
    spread = max(high - middle, middle // 16, 1) if place >= 0 else max(middle - low, middle // 16, 1)
    return max(0, middle + (place * spread + ONE // 2) // ONE)


def pinball_us(outcome_ms: int, quantiles_ms: list[int]) -> int:
    """Sum of the pinball losses of the 10, 50 and 90 % quantiles, thousandths of a millisecond."""
    total = 0
    for permille, quantile in zip((100, 500, 900), quantiles_ms, strict=True):
        off = outcome_ms - quantile
        total += off * permille if off >= 0 else -off * (1000 - permille)
    return total


def _bucket(place: int) -> int:
    """The bucket of a residual: one for each 1/16 of a spread up to one, four for each doubling beyond."""
    return bucket_of(place // 64 + 1) if place >= 0 else -bucket_of(-place // 64 + 1)


def _edges(bucket: int) -> tuple[int, int]:
    if bucket > 0:
        return (edge_of(bucket) - 1) * 64, (edge_of(bucket + 1) - 1) * 64
    return -(edge_of(1 - bucket) - 1) * 64, -(edge_of(-bucket) - 1) * 64


class Calibration(Projection):
    """Outcomes of predictions by group and load band."""

    name = "calibration"

    def __init__(self) -> None:
        #: (group, band), the longest unused first; the group "" is all of them
        self.bands: dict[tuple[str, str], Band] = {}
        self.averages: dict[tuple[str, str], MovingAverage] = {}
        self._pending: dict[str, Pending] = {}
        #: places of the three quantiles by band, as far as they were asked for since the last outcome
        self._places: dict[tuple[str, str], list[int]] = {}

    def corrected(self, group: str, band: str, model_ms: list[int]) -> list[int]:
        """The model's quantiles, corrected by how its last predictions of this kind came out."""
        for key in ((group, band), ("", band)):
            known = self.bands.get(key)
            if known is not None and (key[0] == "" or known.score.n >= ENOUGH):
                places = self._places.get(key)
                if places is None:
                    places = self._places[key] = known.places()
                return [outcome_at(place, model_ms) for place in places]
        return list(model_ms)

    @on(TaskAdmitted)
    def _admitted(self, record: Recorded) -> None:
        event: TaskAdmitted = record.payload
        if len(event.modelled_start_ms) != 3:
            return  # of a time before there was a model
        average = self.averages.get((event.group, event.priority)) or MovingAverage()
        half = average.off_ms * average.reach_permille // 1000
        self._pending[event.task_id] = Pending(
            group=event.group,
            band=event.load_band,
            priority=event.priority,
            ahead=event.queue_position,
            model_ms=event.modelled_start_ms,
            published_ms=[event.predicted_start_ms_p10, event.predicted_start_ms, event.predicted_start_ms_p90],
            average_ms=[max(0, average.wait_ms - half), average.wait_ms, average.wait_ms + half],
        )

    @on(TaskStarted)
    def _started(self, record: Recorded) -> None:
        event: TaskStarted = record.payload
        pending = self._pending.pop(event.task_id, None)
        if pending is None:
            return  # it had started before
        outcome_ms = event.queue_time_ms
        place = residual(outcome_ms, pending.model_ms)
        weight = max(_LEAST_WEIGHT, UNIT * _SHARED // (_SHARED + pending.ahead))
        judged = _judged(outcome_ms, pending)
        low, _, high = pending.published_ms
        for key in ((pending.group, pending.band), ("", pending.band)):
            band = self._band(key)
            self._places.pop(key, None)
            band.learn(place, weight)
            band.adapt(below=outcome_ms < low, above=outcome_ms > high, weight=weight)
            band.score.add(judged)
        key = (pending.group, pending.priority)
        average = self.averages.pop(key, None) or MovingAverage(outcome_ms, outcome_ms // 2)
        self.averages[key] = average
        if len(self.averages) > MOST_BANDS:
            del self.averages[next(iter(self.averages))]
        average.off_ms += (abs(outcome_ms - average.wait_ms) - average.off_ms) // _AVERAGE_PART
        average.wait_ms += (outcome_ms - average.wait_ms) // _AVERAGE_PART
        low, _, high = pending.average_ms
        by = -4 if low <= outcome_ms <= high else 16
        average.reach_permille = max(100, min(20_000, average.reach_permille + average.reach_permille * by // 1000))

    def _band(self, key: tuple[str, str]) -> Band:
        band = self.bands.pop(key, None)
        if band is None:
            band = Band()
            while len(self.bands) >= MOST_BANDS:
                oldest = next(iter(self.bands))
                del self.bands[oldest]
                self._places.pop(oldest, None)
        self.bands[key] = band
        return band

    @on(TaskEnded)
    def _ended(self, record: Recorded) -> None:
        # It never started: there is no outcome to learn from.
        self._pending.pop(record.payload.task_id, None)

    def dump(self) -> Any:
        """Bands and averages by last use, pending predictions in order of admission."""
        return {
            "bands": [[*key, msgspec.to_builtins(band, str_keys=True)] for key, band in self.bands.items()],
            "averages": [[*key, msgspec.to_builtins(a)] for key, a in self.averages.items()],
            "pending": [[task_id, msgspec.to_builtins(p)] for task_id, p in self._pending.items()],
        }

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.bands = {(g, b): msgspec.convert(band, Band, strict=False) for g, b, band in data["bands"]}
        self.averages = {(g, p): msgspec.convert(a, MovingAverage) for g, p, a in data["averages"]}
        self._pending = {task_id: msgspec.convert(p, Pending) for task_id, p in data["pending"]}
        self._places = {}


def _judged(outcome_ms: int, pending: Pending) -> tuple[int, ...]:
    """What an outcome adds to each field of a score: of what was published, and of the moving average beside it."""
    low, _, high = pending.published_ms
    lower, _, higher = pending.average_ms
    return (
        1,
        low <= outcome_ms <= high,
        high - low,
        pinball_us(outcome_ms, pending.published_ms),
        lower <= outcome_ms <= higher,
        higher - lower,
        pinball_us(outcome_ms, pending.average_ms),
    )
