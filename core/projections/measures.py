"""What estimates keep of pools, lanes and tasks: fading sums of integers (JRN-9)."""

from __future__ import annotations

from typing import Final

import msgspec

from ..lengths import HELD, UNIT, bucket_of

#: an average takes at least this part of a new observation
_FADE: Final = 16


class Counts(msgspec.Struct, gc=False):
    """Observations by bucket (:func:`~llama_orch.core.lengths.bucket_of`), old ones fading."""

    #: ended by themselves
    stops: dict[int, int] = {}
    #: cut at ``max_tokens``
    cuts: dict[int, int] = {}
    #: all of the above
    total: int = 0
    #: observations ever: what is derived from these counts is remembered under it
    seen: int = 0

    def add(self, number: int, *, cut: bool = False) -> None:
        """Count one observation in."""
        bucket = bucket_of(number)
        counts = self.cuts if cut else self.stops
        counts[bucket] = counts.get(bucket, 0) + UNIT
        self.total += UNIT
        self.seen += 1
        if self.total > HELD * UNIT:
            self.stops = {b: n // 2 for b, n in self.stops.items() if n > 1}
            self.cuts = {b: n // 2 for b, n in self.cuts.items() if n > 1}
            self.total = sum(self.stops.values()) + sum(self.cuts.values())


class Average(msgspec.Struct, gc=False):
    """A fading mean, the fading mean of what observations were off it, and how many there were."""

    mean: int = 0
    off: int = 0
    seen: int = 0

    def add(self, number: int, fade: int = _FADE) -> None:
        """Take one observation in, as one ``fade``-th at least."""
        if not self.seen:
            self.mean, self.off = number, number // 2
        else:
            part = min(self.seen + 1, fade)
            self.off += (abs(number - self.mean) - self.off) // part
            self.mean += (number - self.mean) // part
        self.seen += 1


class Line(msgspec.Struct, gc=False):
    """A quantity that grows with another one: fading sums for a straight line, and what observations are off it."""

    n: int = 0
    x: int = 0
    y: int = 0
    xx: int = 0
    xy: int = 0
    off: Average = msgspec.field(default_factory=Average)

    def add(self, x: int, y: int) -> None:
        """Take one observation in."""
        self.off.add(abs(y - self.at(x)) if self.n else y // 2)
        self.n += 1
        self.x += x
        self.y += y
        self.xx += x * x
        self.xy += x * y
        if self.n >= 256:
            self.n, self.x, self.y, self.xx, self.xy = (v // 2 for v in (self.n, self.x, self.y, self.xx, self.xy))

    def at(self, x: int) -> int:
        """What is expected there; 0 when nothing is known."""
        if not self.n:
            return 0
        spread = self.n * self.xx - self.x * self.x
        rise = self.n * self.xy - self.x * self.y
        if self.n < 8 or spread <= 0 or rise <= 0:
            return self.y // self.n
        return max(0, (self.y * spread + rise * (self.n * x - self.x)) // (self.n * spread))


class PoolRates(msgspec.Struct, gc=False):
    """What was measured of one pool with its present model."""

    group: str
    #: nanoseconds per token of one stream, by how many streams shared the engine meanwhile
    token_ns: dict[int, Average] = {}
    #: from placement to the engine's first sign of life, microseconds, by tokens of the prompt
    accept_us: Line = msgspec.field(default_factory=Line)
    #: all that a task takes of its slot beside its tokens, microseconds, by tokens of the prompt
    beside_us: Line = msgspec.field(default_factory=Line)
    #: of the prompt by the engine's word, both fading alike: their ratio is its time per token
    prefill_us: int = 0
    prefill_tokens: int = 0
    load_ms: Average = msgspec.field(default_factory=Average)
    #: when the load that is under way began, 0 = none is
    loading_since_ns: int = 0
    #: it takes tasks
    open: bool = False
    #: measured when it was loaded, before any task ran: thousandths of a token per second
    preload_mtok_s: int = 0
    #: when the slots in use were last changed, and tasks that began and ended since
    tuned_ns: int = 0
    since_tuned: int = 0
    #: from admission to the first token, and between tokens, of the last few tasks
    lately_first_ms: Average = msgspec.field(default_factory=Average)
    lately_token_us: Average = msgspec.field(default_factory=Average)
    #: streams on it now; their number times how long it lasted, so that a mean over any time is a difference
    streams: int = 0
    stream_ns: int = 0
    changed_ns: int = 0

    def turn(self, by: int, now_ns: int) -> None:
        """A stream begins or ends."""
        self.stream_ns += self.streams * (now_ns - self.changed_ns)
        self.changed_ns = now_ns
        self.streams = max(0, self.streams + by)


class Lane(msgspec.Struct, gc=False):
    """What waits in one group with one priority."""

    #: ``[owner, hint, cap bucket]`` joined -> tasks of that kind
    kinds: dict[str, int] = {}
    tasks: int = 0
    prompt_tokens: int = 0
    #: when a task came last
    came_ns: int = 0
    #: tasks that left without having started, and the milliseconds that all waited, both fading alike
    left: int = 0
    waited_ms: int = 0
    #: between two placements while tasks waited: how often the lane gets a turn, whoever else has one
    turn_ms: Average = msgspec.field(default_factory=Average)
    turned_ns: int = 0


class Wake(msgspec.Struct, gc=False):
    """How long a group without an open pool waits for one."""

    #: pools that take tasks now
    open: int = 0
    #: since when tasks wait and there is none, 0 = that is not so; and how many others wanted memory then
    since_ns: int = 0
    crowd: int = 0
    #: milliseconds that it took, by that crowd
    took_ms: dict[int, Counts] = {}


class Track(msgspec.Struct, gc=False):
    """What has to be known of a live task when it moves."""

    group: str
    priority: str
    owner: str
    hint: int
    kind: str
    cap: int
    prompt_tokens: int
    #: since when it waits, or since it was placed
    since_ns: int
    pool_id: str = ""
    started_ns: int = 0
    #: of its pool when it started
    stream_ns: int = 0
    waits: bool = True
    #: attempts so far; what several of them took is not measured
    attempts: int = 0
