"""How long answers get: counts in log-scaled buckets, and the distribution that they give. Pure.

An answer that ended by itself says how long answers are; one that was cut at ``max_tokens`` says only that it would
have been at least so long. Both are counted, and the share that goes on behind each length is estimated from those
that got there (Kaplan and Meier, "Nonparametric Estimation from Incomplete Observations", 1958).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

#: the last bucket; longer answers count as this long
LAST: Final = 79
#: what one observation weighs in counts, so that halving them keeps a fraction
UNIT: Final = 64
#: observations that are held; older ones fade, since all counts are halved whenever there are more
HELD: Final = 512


def bucket_of(number: int) -> int:
    """The bucket of a non-negative integer: one for each up to 7, then four for each doubling."""
    if number < 8:
        return max(0, number)
    length = number.bit_length()
    return min(LAST, 8 + (length - 4) * 4 + ((number >> (length - 3)) & 3))


def edge_of(bucket: int) -> int:
    """The smallest number of a bucket."""
    if bucket < 8:
        return bucket
    octave, quarter = divmod(bucket - 8, 4)
    return (4 + quarter) << (octave + 1)


_EDGES: Final = tuple(edge_of(b) for b in range(LAST + 2))
#: what is believed of lengths before anything was seen, weighed as two observations in all
_PRIOR: Final = {
    bucket_of(n): weight for n, weight in ((16, 16), (64, 32), (160, 32), (400, 24), (1000, 16), (3000, 8))
}


def shifted_prior(hint_tokens: int) -> dict[int, int]:
    """What is believed of lengths when the caller says what it expects."""
    if not hint_tokens:
        return dict(_PRIOR)
    middle = bucket_of(hint_tokens)
    return {max(0, min(LAST, middle + step)): weight for step, weight in ((-6, 24), (-2, 40), (1, 40), (5, 24))}


class LengthCurve:
    """The share of answers that reach each length, with its first two moments.

    Args:
        layers: ``(stops, cuts, weight)``, the most specific first: counts by bucket of answers that ended by
            themselves and of those that were cut, and how many observations the layer counts for at most (0 = as
            many as it has).
        seen: observations behind the most specific layer.
    """

    __slots__ = ("_first", "_reach", "_second", "seen")

    def __init__(self, layers: Iterable[tuple[Mapping[int, int], Mapping[int, int], int]], seen: int = 0) -> None:
        stops, cuts = [0.0] * (LAST + 1), [0.0] * (LAST + 1)
        for some_stops, some_cuts, most in layers:
            total = sum(some_stops.values()) + sum(some_cuts.values())
            scale = 1.0 if not most or total <= most * UNIT else most * UNIT / total
            for bucket, count in some_stops.items():
                stops[bucket] += count * scale
            for bucket, count in some_cuts.items():
                cuts[bucket] += count * scale
        self.seen = seen
        #: share of answers that are at least as long as the bucket's lower edge
        self._reach = [1.0] * (LAST + 2)
        self._first = [0.0] * (LAST + 2)
        self._second = [0.0] * (LAST + 2)
        at_risk = sum(stops) + sum(cuts)
        reach, first, second = self._reach, self._first, self._second
        for bucket in range(LAST + 1):
            # Those that were cut in the middle of the bucket were at risk for half of it.
            exposed = at_risk - cuts[bucket] / 2
            here = reach[bucket]
            left = here - here * stops[bucket] / exposed if exposed > 1e-9 and bucket < LAST else 0.0
            low, high = _EDGES[bucket], _EDGES[bucket + 1]
            first[bucket + 1] = first[bucket] + (high - low) * (here + left) / 2
            second[bucket + 1] = second[bucket] + (high - low) * (low * here + high * left)
            if left <= 1e-9:
                rest = LAST + 1 - bucket
                reach[bucket + 1 :] = [0.0] * rest
                first[bucket + 1 :] = [first[bucket + 1]] * rest
                second[bucket + 1 :] = [second[bucket + 1]] * rest
                break
            reach[bucket + 1] = left
            at_risk -= stops[bucket] + cuts[bucket]

    def reaching(self, tokens: float) -> float:
        """The share of answers that are longer than this."""
        if tokens <= 0:
            return 1.0
        bucket = bucket_of(int(tokens))
        low, high = _EDGES[bucket], _EDGES[bucket + 1]
        here, there = self._reach[bucket], self._reach[bucket + 1]
        return here if tokens >= high else here + (there - here) * (tokens - low) / (high - low)

    def ends_within(self, more: float, *, after: int = 0, cap: int = 0) -> float:
        """Chance that an answer that has ``after`` tokens ends within ``more`` further ones; at ``cap`` at the latest."""
        if cap and after + more >= cap:
            return 1.0
        if more <= 0:
            return 0.0
        so_far = self.reaching(after)
        return 1.0 if so_far <= 1e-9 else 1 - self.reaching(after + more) / so_far

    def moments(self, cap: int = 0) -> tuple[float, float]:
        """Mean and mean square of an answer's tokens, when it is cut at ``cap`` (0 = it is not)."""
        if not cap or cap >= _EDGES[LAST]:
            return max(1.0, self._first[-1]), max(1.0, self._second[-1])
        bucket = bucket_of(cap)
        low, high = _EDGES[bucket], _EDGES[bucket + 1]
        share = (cap - low) / (high - low)
        first = self._first[bucket] + (self._first[bucket + 1] - self._first[bucket]) * share
        second = self._second[bucket] + (self._second[bucket + 1] - self._second[bucket]) * share
        return max(1.0, first), max(1.0, second)

    def quantile(self, permille: int, *, after: int = 0) -> int:
        """The length that this many thousandths do not pass of the answers that are longer than ``after``."""
        wanted = self.reaching(after) * (1 - permille / 1000)
        for bucket in range(bucket_of(after), LAST + 1):
            here, there = self._reach[bucket], self._reach[bucket + 1]
            if there <= wanted:
                low, high = _EDGES[bucket], _EDGES[bucket + 1]
                found = round(low + (high - low) * (here - wanted) / (here - there)) if here > there else low
                return max(after, found)
        return max(after, _EDGES[LAST])
