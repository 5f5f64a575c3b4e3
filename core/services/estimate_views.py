"""How predictions came out, and what they were learnt from, as routes show it (ADM-5)."""

from __future__ import annotations

from typing import Final

import msgspec

from ..journal.journal import Journal
from ..projections.calibration import Calibration, Score
from ..projections.estimates import Estimates
from ..projections.measures import PoolRates
from .estimates import Estimator

#: quantiles that a pinball loss is the mean of
_PARTS: Final = 3


class BandView(msgspec.Struct, frozen=True, kw_only=True):
    """Predictions of one group and load band. ``average_…`` is what a moving average of past waits would have said."""

    #: "free": a slot was free; "next": somebody is before it, but fewer than there are slots; "queue": up to four times
    #: as many; "deep": up to sixteen times as many; "flood": more; "load": the model is being loaded; "swap": it waits for memory. Batch tasks have their own.
    band: str
    #: outcomes
    n: int
    #: share of outcomes inside of the 80 % interval, thousandths
    coverage_permille: int
    #: mean width of the interval, milliseconds
    width_ms: int
    #: mean pinball loss of the 10, 50 and 90 % quantiles, microseconds
    pinball_us: int
    average_coverage_permille: int
    average_width_ms: int
    average_pinball_us: int


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """Predictions of one serving group; "" = of all."""

    group: str
    bands: list[BandView]


class RateView(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a pool; 0 = nothing yet."""

    pool_id: str
    group: str
    #: thousandths of a token per second of one stream, by how many streams there were
    decode_mtok_s: dict[int, int]
    #: thousandths of a token per second in which prompts are read
    prefill_mtok_s: int
    #: from placement to the engine's first sign of life, and what it is off by
    accept_us: int
    accept_off_us: int
    #: a load of its model, and what it is off by
    load_ms: int
    load_off_ms: int


class LengthView(msgspec.Struct, frozen=True, kw_only=True):
    """How long answers get."""

    group: str
    #: "" = of all callers
    owner: str
    #: answers seen
    n: int
    mean_tokens: int
    p10_tokens: int
    p50_tokens: int
    p90_tokens: int


class EstimatesView(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    groups: list[GroupView]
    pools: list[RateView]
    lengths: list[LengthView]


class EstimateViews:
    """Answers from head."""

    def __init__(self, journal: Journal, estimator: Estimator) -> None:
        self._journal = journal
        self._estimator = estimator

    def view(self, owner: str) -> EstimatesView:
        """Scores, rates and lengths; of callers' lengths only ``owner``'s own, beside those of all together."""
        head = self._journal.head
        groups: dict[str, list[BandView]] = {}
        for (group, band), known in sorted(head.of(Calibration).bands.items()):
            groups.setdefault(group, []).append(_band_view(band, known.score))
        rates = head.of(Estimates)
        lengths = [
            self._length(rates, whose, group, counts.seen)
            for (whose, group, hint), counts in sorted(rates.lengths.items())
            if group and not hint and whose in ("", owner)
        ]
        return EstimatesView(
            groups=[GroupView(group=group, bands=bands) for group, bands in groups.items()],
            pools=[_rate_view(name, pool) for name, pool in sorted(rates.pools.items())],
            lengths=lengths,
        )

    def _length(self, rates: Estimates, owner: str, group: str, seen: int) -> LengthView:
        curve = self._estimator.curve(rates, owner, group, 0)
        return LengthView(
            group=group,
            owner=owner,
            n=seen,
            mean_tokens=round(curve.moments()[0]),
            p10_tokens=curve.quantile(100),
            p50_tokens=curve.quantile(500),
            p90_tokens=curve.quantile(900),
        )


def _band_view(band: str, score: Score) -> BandView:
    n = max(1, score.n)
    return BandView(
        band=band,
        n=score.n,
        coverage_permille=score.covered * 1000 // n,
        width_ms=score.width_ms // n,
        pinball_us=score.pinball_us // (_PARTS * n),
        average_coverage_permille=score.average_covered * 1000 // n,
        average_width_ms=score.average_width_ms // n,
        average_pinball_us=score.average_pinball_us // (_PARTS * n),
    )


def _rate_view(name: str, pool: PoolRates) -> RateView:
    accept = pool.accept_us
    return RateView(
        pool_id=name,
        group=pool.group,
        decode_mtok_s={n: 10**12 // max(1, average.mean) for n, average in sorted(pool.token_ns.items())},
        prefill_mtok_s=pool.prefill_tokens * 10**9 // pool.prefill_us if pool.prefill_us else 0,
        accept_us=accept.y // accept.n if accept.n else 0,
        accept_off_us=accept.off.mean,
        load_ms=pool.load_ms.mean,
        load_off_ms=pool.load_ms.off,
    )
