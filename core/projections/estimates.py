"""What was learnt of rates, lengths and loads, and what waits: the state behind predicted starts (ADM-5).

All of it is integers, folded from events alone (JRN-5, JRN-9). What is old fades: averages take a sixteenth of each
new observation, counts are halved when they are many. What a queue holds is summed per lane as tasks come and go, so
that a prediction never walks it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..events.pool import (
    PoolDeclared,
    PoolDraining,
    PoolLoading,
    PoolReady,
    PoolRetired,
    PoolSlotsTuned,
    PoolUndrained,
    PoolUnloading,
    PoolUnready,
)
from ..events.task import TaskAdmitted, TaskAttemptFailed, TaskEnded, TaskPlaced, TaskStarted
from ..lengths import UNIT, bucket_of
from .measures import Average, Counts, Lane, PoolRates, Track, Wake
from .projection import Projection, Recorded, on

#: callers whose lengths are remembered, over all models; who was not seen for longest is forgotten first
MOST_LENGTHS: Final = 512
#: kinds of tasks that a lane tells apart; more of them count as "any"
MOST_KINDS: Final = 32
#: part of a new observation that the averages take that slots are tuned by, one over this
_LATELY: Final = 6


def kind_of(owner: str, hint: int, cap: int) -> str:
    """The name of a kind of task: whose, how long the caller expects the answer to be, where it is cut."""
    return f"{owner}\n{hint}\n{bucket_of(cap)}"


class Estimates(Projection):
    """Rates by pool, lengths by owner and group, sums by lane."""

    name = "estimates"

    def __init__(self) -> None:
        self.pools: dict[str, PoolRates] = {}
        #: (owner, group, hint), the longest unused first; ("", group, 0) is all of a group, ("", "", 0) all
        self.lengths: dict[tuple[str, str, int], Counts] = {}
        self.lanes: dict[tuple[str, str], Lane] = {}
        self.wakes: dict[str, Wake] = {}
        self._tracks: dict[str, Track] = {}

    # --- what waits ------------------------------------------------------------------------------------------

    @on(TaskAdmitted)
    def _admitted(self, record: Recorded) -> None:
        event: TaskAdmitted = record.payload
        lane = self._lane(event.group, event.priority)
        lane.came_ns = record.time_ns
        hint = event.expected_tokens.bit_length()
        kind = kind_of(event.owner, hint, event.max_tokens)
        if kind not in lane.kinds and len(lane.kinds) >= MOST_KINDS:
            kind = kind_of("", 0, event.max_tokens)
        self._tracks[event.task_id] = track = Track(
            group=event.group,
            priority=event.priority,
            owner=event.owner,
            hint=hint,
            kind=kind,
            cap=event.max_tokens,
            prompt_tokens=event.prompt_tokens,
            since_ns=record.time_ns,
        )
        self._enter(track, lane, record.time_ns)
        self._look(event.group, record.time_ns)

    def _lane(self, group: str, priority: str) -> Lane:
        lane = self.lanes.get((group, priority))
        if lane is None:
            lane = self.lanes[group, priority] = Lane()
        return lane

    @staticmethod
    def _enter(track: Track, lane: Lane, now_ns: int) -> None:
        if not lane.tasks:
            lane.turned_ns = now_ns
        lane.kinds[track.kind] = lane.kinds.get(track.kind, 0) + 1
        lane.tasks += 1
        lane.prompt_tokens += track.prompt_tokens
        track.waits = True

    def _leave(self, track: Track, now_ns: int, *, gave_up: bool) -> None:
        if not track.waits:
            return
        lane = self.lanes[track.group, track.priority]
        track.waits = False
        lane.tasks -= 1
        lane.prompt_tokens -= track.prompt_tokens
        lane.kinds[track.kind] -= 1
        if not lane.kinds[track.kind]:
            del lane.kinds[track.kind]
        if not gave_up:
            lane.turn_ms.add((now_ns - lane.turned_ns) // 1_000_000)
            lane.turned_ns = now_ns
        lane.left += UNIT if gave_up else 0
        lane.waited_ms += (now_ns - track.since_ns) * UNIT // 1_000_000
        self._look(track.group, now_ns)
        if lane.left > 128 * UNIT or lane.waited_ms > (1 << 40):
            lane.left //= 2
            lane.waited_ms //= 2

    # --- groups without a pool ---------------------------------------------------------------------------------

    def _look(self, group: str, now_ns: int) -> None:
        """Note when a group begins to wait for a pool, and when it has one."""
        wake = self.wakes.get(group)
        if wake is None:
            wake = self.wakes[group] = Wake()
        if wake.open or not self._waits(group):
            if wake.since_ns and wake.open:
                took = wake.took_ms.setdefault(wake.crowd, Counts())
                took.add((now_ns - wake.since_ns) // 1_000_000)
            wake.since_ns = 0
        elif not wake.since_ns:
            wake.since_ns, wake.crowd = now_ns, self.crowd(group)

    def _waits(self, group: str) -> bool:
        return any(
            (lane := self.lanes.get((group, priority))) is not None and lane.tasks
            for priority in ("interactive", "batch")
        )

    def crowd(self, group: str) -> int:
        """How hard it is to get memory now: 0 = nobody else is at work, 1 = others are, and one more for each group
        that waits for a pool, up to 3."""
        waiting = sum(1 for name, wake in self.wakes.items() if wake.since_ns and name != group)
        working = any(pool.streams for pool in self.pools.values() if pool.group != group)
        return min(3, waiting + int(working or waiting > 0))

    @on(PoolReady, PoolUnready, PoolDraining, PoolUndrained, PoolUnloading)
    def _turned(self, record: Recorded) -> None:
        event = record.payload
        pool = self.pools.get(event.pool_id)
        if pool is None:
            return
        if isinstance(event, PoolReady):
            self._loaded(pool, event, record.time_ns)
        elif isinstance(event, PoolUnready) and event.cause not in ("starting", "loading"):
            pool.loading_since_ns = 0
        # Who drains and is undrained was ready before.
        pool.open = isinstance(event, (PoolReady, PoolUndrained))
        self._count_open(pool.group, record.time_ns)

    @on(PoolSlotsTuned)
    def _tuned(self, record: Recorded) -> None:
        pool = self.pools.get(record.payload.pool_id)
        if pool is not None:
            pool.tuned_ns = record.time_ns
            pool.since_tuned = 0

    def _count_open(self, group: str, now_ns: int) -> None:
        wake = self.wakes.get(group)
        if wake is None:
            wake = self.wakes[group] = Wake()
        wake.open = sum(1 for pool in self.pools.values() if pool.group == group and pool.open)
        self._look(group, now_ns)

    @staticmethod
    def _loaded(pool: PoolRates, event: PoolReady, now_ns: int) -> None:
        took_ms = event.load_ms
        if pool.loading_since_ns:
            took_ms = (now_ns - pool.loading_since_ns) // 1_000_000
        if took_ms > 0:
            pool.load_ms.add(took_ms)
        pool.loading_since_ns = 0
        pool.preload_mtok_s = event.decode_mtok_s or pool.preload_mtok_s

    # --- what runs -------------------------------------------------------------------------------------------

    @on(TaskPlaced)
    def _placed(self, record: Recorded) -> None:
        event: TaskPlaced = record.payload
        track = self._tracks[event.task_id]
        self._leave(track, record.time_ns, gave_up=False)
        track.pool_id, track.since_ns, track.started_ns = event.pool_id, record.time_ns, 0
        track.attempts += 1

    @on(TaskStarted)
    def _started(self, record: Recorded) -> None:
        track = self._tracks[record.payload.task_id]
        track.started_ns = record.time_ns
        pool = self.pools.get(track.pool_id)
        if pool is not None:
            if track.attempts == 1:
                pool.accept_us.add(track.prompt_tokens, (record.time_ns - track.since_ns) // 1000)
            pool.turn(1, record.time_ns)
            track.stream_ns = pool.stream_ns

    @on(TaskAttemptFailed)
    def _attempt_failed(self, record: Recorded) -> None:
        track = self._tracks[record.payload.task_id]
        self._stop(track, record.time_ns)
        track.since_ns = record.time_ns
        if not track.waits:
            self._enter(track, self._lane(track.group, track.priority), record.time_ns)
            self._look(track.group, record.time_ns)

    def _stop(self, track: Track, now_ns: int) -> PoolRates | None:
        """The stream of a task ends; its pool, when it had begun there."""
        pool = self.pools.get(track.pool_id) if track.started_ns else None
        if pool is not None:
            pool.turn(-1, now_ns)
        return pool

    @on(TaskEnded)
    def _ended(self, record: Recorded) -> None:
        event: TaskEnded = record.payload
        track = self._tracks.pop(event.task_id)
        self._leave(track, record.time_ns, gave_up=True)
        pool = self._stop(track, record.time_ns)
        if not track.started_ns or event.outcome == "failed":
            return
        cut = event.finish_reason == "length"
        for key in dict.fromkeys(((track.owner, track.group, track.hint), ("", track.group, 0), ("", "", 0))):
            self._counts(key).add(event.tokens_out, cut=cut)
        if pool is not None and track.attempts == 1:
            self._measure(pool, track, event, record.time_ns)

    def _counts(self, key: tuple[str, str, int]) -> Counts:
        counts = self.lengths.pop(key, None)
        if counts is None:
            counts = Counts()
            while len(self.lengths) >= MOST_LENGTHS:
                del self.lengths[next(iter(self.lengths))]
        self.lengths[key] = counts
        return counts

    @staticmethod
    def _measure(pool: PoolRates, track: Track, event: TaskEnded, now_ns: int) -> None:
        took_ns = now_ns - track.started_ns
        if event.tokens_out > 1 and event.decode_ms > 0 and took_ns > 0:
            shared = (pool.stream_ns - track.stream_ns + took_ns // 2) // took_ns
            streams = max(1, min(255, shared))
            token_ns = event.decode_ms * 1_000_000 // (event.tokens_out - 1)
            pool.token_ns.setdefault(streams, Average()).add(token_ns)
            pool.since_tuned += track.started_ns >= pool.tuned_ns
            pool.lately_token_us.add(token_ns // 1000, _LATELY)
            pool.lately_first_ms.add(event.queue_ms + event.prefill_ms, _LATELY)
        if event.outcome == "completed":
            pool.beside_us.add(track.prompt_tokens, max(0, (now_ns - track.since_ns) // 1000 - event.decode_ms * 1000))
        read = event.prompt_tokens - event.cached_tokens
        if event.prefill_ms and read > 0:
            pool.prefill_us += event.prefill_ms * 1000
            pool.prefill_tokens += read
            if pool.prefill_tokens > 1_000_000:
                pool.prefill_us //= 2
                pool.prefill_tokens //= 2

    # --- pools -----------------------------------------------------------------------------------------------

    @on(PoolDeclared)
    def _declared(self, record: Recorded) -> None:
        event: PoolDeclared = record.payload
        old = self.pools.get(event.pool_id)
        if old is None or old.group != event.model_ref:
            # Another model: nothing of what was measured holds, but what runs there goes on.
            new = PoolRates(group=event.model_ref, changed_ns=record.time_ns)
            if old is not None:
                new.streams, new.stream_ns, new.changed_ns = old.streams, old.stream_ns, old.changed_ns
            self.pools[event.pool_id] = new
            for group in dict.fromkeys((new.group, old.group if old is not None else new.group)):
                self._count_open(group, record.time_ns)
            self._forget()

    @on(PoolRetired)
    def _retired(self, record: Recorded) -> None:
        pool = self.pools.pop(record.payload.pool_id, None)
        if pool is not None:
            self._count_open(pool.group, record.time_ns)
            self._forget()

    @on(PoolLoading)
    def _loading(self, record: Recorded) -> None:
        pool = self.pools.get(record.payload.pool_id)
        if pool is not None:
            pool.loading_since_ns = record.time_ns

    def _forget(self) -> None:
        """What is known of groups that no pool serves any more, and that nobody waits for."""
        served = {pool.group for pool in self.pools.values()}
        for key in [k for k, lane in self.lanes.items() if not lane.tasks and k[0] not in served]:
            del self.lanes[key]
        for group in [g for g in self.wakes if g not in served and not self._waits(g)]:
            del self.wakes[group]

    # --- dump ------------------------------------------------------------------------------------------------

    def dump(self) -> Any:
        """Pools by id, lengths by last use, lanes by name, tracks in order of admission."""
        return {
            "pools": {name: msgspec.to_builtins(p, str_keys=True) for name, p in sorted(self.pools.items())},
            "lengths": [[*key, msgspec.to_builtins(c, str_keys=True)] for key, c in self.lengths.items()],
            "wakes": {name: msgspec.to_builtins(w, str_keys=True) for name, w in sorted(self.wakes.items())},
            "lanes": [[*key, msgspec.to_builtins(lane)] for key, lane in sorted(self.lanes.items())],
            "tracks": [[task_id, msgspec.to_builtins(t)] for task_id, t in self._tracks.items()],
        }

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.pools = {n: msgspec.convert(p, PoolRates, strict=False) for n, p in data["pools"].items()}
        self.lengths = {(o, g, h): msgspec.convert(c, Counts, strict=False) for o, g, h, c in data["lengths"]}
        self.lanes = {(g, p): msgspec.convert(lane, Lane) for g, p, lane in data["lanes"]}
        self.wakes = {n: msgspec.convert(w, Wake, strict=False) for n, w in data["wakes"].items()}
        self._tracks = {task_id: msgspec.convert(t, Track) for task_id, t in data["tracks"]}
