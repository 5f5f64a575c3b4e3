"""When tasks will start and whether in time: live state in, predictions out (ADM-5).

The model is :mod:`llama_orch.core.scheduling.prediction`; what it reads was learnt by
:class:`~llama_orch.core.projections.estimates.Estimates`, and what it says is corrected by how it did before
(:class:`~llama_orch.core.projections.calibration.Calibration`). Nothing here keeps state that matters: what is
remembered is derived from head and thrown away when that changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from ..lengths import LengthCurve, edge_of, shifted_prior
from ..projections.calibration import Calibration
from ..projections.estimates import Estimates
from ..projections.head import Head
from ..projections.measures import Counts, Lane, PoolRates
from ..projections.pools import PoolState
from ..projections.queue import BATCH, INTERACTIVE
from ..projections.tasks import TaskState
from ..scheduling.prediction import PoolLoad, Running, Situation, ends_within, start_us
from .rates import OFFS, TOKEN_US, accept_us, band_of, leaving_per_us, others_came, prompt_us, token_us

#: until a load was measured
_LOAD_MS: Final = 5_000
#: a slot whose task has ended, and that was not seen free yet
_FREEING_US: Final = 20_000.0
#: answers of a caller that have to be known before one is called too long for a deadline, and the chance that is none
_KNOWN_ANSWERS: Final = 32
_HOPELESS_PERMILLE: Final = 10
_CURVES: Final = 1024


class StartEstimate(msgspec.Struct, frozen=True):
    """Milliseconds from now until the start: median and 80 % interval; the band it was corrected by, and from what."""

    start_ms: int
    p10_ms: int
    p90_ms: int
    band: str = ""
    #: 10, 50 and 90 % as the model had them
    model_ms: tuple[int, ...] = ()
    #: something of this kind was measured before; else it is a guess that nobody should be turned away for
    grounded: bool = True


class Estimator:
    """Predicts starts and ends from head."""

    def __init__(self) -> None:
        self._curves: dict[tuple[str, str, int], tuple[tuple[int, ...], LengthCurve]] = {}

    def start(
        self,
        head: Head,
        group: str,
        ahead: int,
        now_ns: int,
        *,
        priority: str = INTERACTIVE,
        prompt_tokens: int = 0,
        pools: Sequence[PoolState] | None = None,
    ) -> StartEstimate:
        """When a task starts that has ``ahead`` tasks before it.

        Args:
            head: the state as it is now.
            group: its serving group.
            ahead: queued tasks that come before it.
            now_ns: Unix ns.
            priority: its priority; whoever has more of it will overtake it.
            prompt_tokens: of its prompt, which some engines read before they say that they began.
            pools: those of the group's pools that may take it; ``None`` = all.
        """
        serving = head.pools.serving(group) if pools is None else pools
        model = self._free_model(head, serving, ahead, now_ns, prompt_tokens)
        band = "batch-free" if priority == BATCH else "free"
        if model is None:
            situation, band = self._situation(head, group, serving, ahead, now_ns, priority, prompt_tokens)
            model = [round(us / 1000) for us in start_us(situation)]
        low, middle, high = head.of(Calibration).corrected(group, band, model)
        middle = max(low, middle)
        return StartEstimate(middle, low, max(middle, high), band, tuple(model), self._grounded(head, group, serving))

    def starts_ms(self, head: Head, group: str, priorities: Sequence[str], now_ns: int) -> list[int]:
        """Predicted starts of the first tasks of a queue, given their priorities in its order.

        Each lane is asked at a few places, closer together at its head; between them starts lie on a line.
        """
        out: list[int] = []
        while len(out) < len(priorities):
            priority, first = priorities[len(out)], len(out)
            end = next((n for n in range(first, len(priorities)) if priorities[n] != priority), len(priorities))
            known, at = first, self.start(head, group, first, now_ns, priority=priority).start_ms
            out.append(at)
            while known < end - 1:
                place = min(end - 1, known + 1 + (known - first) // 2)
                later = self.start(head, group, place, now_ns, priority=priority).start_ms
                out += [at + (later - at) * n // (place - known) for n in range(1, place - known + 1)]
                known, at = place, later
        return out

    def on_time_permille(self, head: Head, state: TaskState, now_ns: int) -> int | None:
        """Chance that a live task ends by its deadline, thousandths; ``None``: it has none."""
        admitted = state.admitted
        if not admitted.deadline_ns:
            return None
        left_us = (admitted.deadline_ns - now_ns) / 1000
        if left_us <= 0:
            return 0
        rates = head.of(Estimates)
        curve = self.curve(rates, admitted.owner, admitted.group, admitted.expected_tokens.bit_length())
        position = head.queue.position(state.task_id)
        if position < 0:
            pool = rates.pools.get(state.pool_id)
            slots = max(1, head.leases.count(state.pool_id))
            running = self._running(rates, pool, state, now_ns, slots)
            more = (left_us - running.delay_us) / token_us(pool, slots)
            return round(1000 * curve.ends_within(more, after=state.tokens_out, cap=admitted.max_tokens))
        estimate = self.start(head, admitted.group, position, now_ns, priority=admitted.priority)
        return self.chance_permille(
            head,
            admitted.group,
            admitted.owner,
            estimate,
            left_us,
            max_tokens=admitted.max_tokens,
            prompt_tokens=admitted.prompt_tokens,
            expected_tokens=admitted.expected_tokens,
        )

    def chance_permille(
        self,
        head: Head,
        group: str,
        owner: str,
        estimate: StartEstimate,
        left_us: float,
        *,
        max_tokens: int,
        prompt_tokens: int,
        expected_tokens: int,
    ) -> int:
        """Chance that a task with this predicted start ends within ``left_us``, thousandths."""
        rates = head.of(Estimates)
        curve = self.curve(rates, owner, group, expected_tokens.bit_length())
        pools = [(p, rates.pools.get(p.declared.pool_id)) for p in head.pools.serving(group)]
        per_token, pool = min(
            ((token_us(known, max(1, p.slots)), known) for p, known in pools),
            key=lambda one: one[0],
            default=(float(TOKEN_US), None),
        )
        starts = [1000.0 * ms for ms in (estimate.p10_ms, estimate.start_ms, estimate.p90_ms)]
        return round(1000 * ends_within(starts, per_token, prompt_us(pool, prompt_tokens), curve, max_tokens, left_us))

    def too_late(
        self,
        head: Head,
        group: str,
        owner: str,
        estimate: StartEstimate,
        deadline_ms: int,
        *,
        max_tokens: int,
        prompt_tokens: int,
        expected_tokens: int,
    ) -> str:
        """Why a task that is to end within ``deadline_ms`` will not, in words; "" = it may.

        Nobody is turned away for a guess: what says that a start is too late has to have been measured, and what says
        that an answer takes too long has to be known of this caller's answers.
        """
        if estimate.grounded and estimate.p10_ms > deadline_ms:
            return f"the task would start in about {estimate.start_ms} ms, after its deadline"
        rates = head.of(Estimates)
        known = rates.lengths.get((owner, group, expected_tokens.bit_length()))
        measured = any(rates.pools[n].token_ns for n, p in rates.pools.items() if p.group == group)
        if not estimate.grounded or not measured or known is None or known.seen < _KNOWN_ANSWERS:
            return ""
        chance = self.chance_permille(
            head,
            group,
            owner,
            estimate,
            deadline_ms * 1000.0,
            max_tokens=max_tokens,
            prompt_tokens=prompt_tokens,
            expected_tokens=expected_tokens,
        )
        if chance > _HOPELESS_PERMILLE:
            return ""
        return (
            f"the task would start in about {estimate.start_ms} ms, and of {known.seen} answers to this caller "
            f"hardly any was short enough to end by the deadline then (chance {chance / 10:g} %)"
        )

    @staticmethod
    def _grounded(head: Head, group: str, serving: Sequence[PoolState]) -> bool:
        """Whether pools take tasks, or the time that one needs to come up was measured before."""
        rates = head.of(Estimates)
        wake = rates.wakes.get(group)
        return (
            any(p.ready and not p.draining for p in serving)
            or (wake is not None and bool(wake.took_ms))
            or any((known := rates.pools.get(p.declared.pool_id)) is not None and known.load_ms.seen for p in serving)
        )

    # --- what the model reads --------------------------------------------------------------------------------

    def _free_model(
        self, head: Head, serving: Sequence[PoolState], ahead: int, now_ns: int, prompt_tokens: int
    ) -> list[int] | None:
        """The model's milliseconds when a slot is free for it, which is quickly said; ``None``: none is."""
        rates = head.of(Estimates)
        free = 0
        having: list[PoolRates | None] = []
        for pool in serving:
            name = pool.declared.pool_id
            here = pool.slots - head.leases.count(name)
            if here > 0 and pool.ready and not pool.draining and pool.suspect_until_ns <= now_ns:
                free += here
                having.append(rates.pools.get(name))
        if free <= ahead:
            return None
        middle, off = accept_us(having, prompt_tokens)
        return [max(0, round((middle - off) / 1000)), round(middle / 1000), round((middle + off) / 1000)]

    def _situation(
        self,
        head: Head,
        group: str,
        serving: Sequence[PoolState],
        ahead: int,
        now_ns: int,
        priority: str,
        prompt_tokens: int,
    ) -> tuple[Situation, str]:
        rates = head.of(Estimates)
        own = rates.lanes.get((group, priority))
        other = rates.lanes.get((group, INTERACTIVE)) if priority == BATCH else None
        before = [lane for lane in (other, own) if lane is not None]
        mean, square, seen, prompt = self._work(rates, group, before)
        ready = [p for p in serving if p.ready and not p.draining]
        coming = [p for p in serving if not p.ready and p.cause in ("starting", "loading")]
        chosen = [*ready, *coming] or list(serving)
        loads = [self._load(head, group, pool, pool in ready, prompt, now_ns) for pool in chosen]
        middle, off = accept_us([rates.pools.get(p.declared.pool_id) for p in chosen], prompt_tokens)
        situation = Situation(
            pools=loads,
            ahead=ahead,
            mean_tokens=mean,
            square_tokens=square,
            seen=seen,
            accept_us=middle,
            accept_off_us=off,
            leaving=leaving_per_us(before),
        )
        if priority == BATCH and own is not None and own.turn_ms.seen and others_came(rates, group, now_ns):
            situation.turn_us, situation.turn_off_us = own.turn_ms.mean * 1000.0, 1250.0 * own.turn_ms.off
            situation.lane_ahead = max(0, ahead - (other.tasks if other is not None else 0))
        loading = any(
            (known := rates.pools.get(p.declared.pool_id)) is not None and known.loading_since_ns for p in chosen
        )
        return situation, band_of(sum(p.slots or 1 for p in ready), ahead, priority, loading=loading)

    def _load(self, head: Head, group: str, pool: PoolState, ready: bool, mean_prompt: int, now_ns: int) -> PoolLoad:
        """One pool as the model sees it."""
        rates = head.of(Estimates)
        name = pool.declared.pool_id
        measured = rates.pools.get(name)
        most = pool.slots or pool.declared.slots or 1
        load = PoolLoad(
            free=0,
            running=[],
            token_us=token_us(measured, most),
            overhead_us=prompt_us(measured, mean_prompt),
        )
        if not ready:
            load.opens_us = self._opens_us(rates, group, measured, now_ns)
        elif pool.suspect_until_ns > now_ns:
            left = (pool.suspect_until_ns - now_ns) / 1000
            load.opens_us = (left, left, left)
        for lease_id in head.leases.slots.get(name, {}).values():
            state = head.tasks.live.get(head.leases.by_id[lease_id].task_id)
            load.running.append(self._running(rates, measured, state, now_ns, most))
        load.free = max(0, most - len(load.running))
        return load

    def _opens_us(
        self, rates: Estimates, group: str, pool: PoolRates | None, now_ns: int
    ) -> tuple[float, float, float]:
        """Until a pool that takes no tasks now does: 10, 50 and 90 %."""
        mean = pool.load_ms.mean if pool is not None and pool.load_ms.seen else _LOAD_MS
        off = OFFS * pool.load_ms.off if pool is not None and pool.load_ms.seen else mean
        if pool is not None and pool.loading_since_ns:
            so_far = (now_ns - pool.loading_since_ns) / 1e6
            left = max(mean - so_far, off / 2, 1.0)
            return max(0.0, left - off) * 1000, left * 1000, (left + off) * 1000
        wake = rates.wakes.get(group)
        crowd = rates.crowd(group) if wake is None or not wake.since_ns else wake.crowd
        waited = (now_ns - wake.since_ns) // 1_000_000 if wake is not None and wake.since_ns else 0
        layers = [
            (counts.stops, counts.cuts, 0 if level == crowd else 4)
            for level, counts in sorted(wake.took_ms.items() if wake is not None else ())
        ]
        layers += [
            (counts.stops, counts.cuts, 6)
            for name, other in sorted(rates.wakes.items())
            if name != group and (counts := other.took_ms.get(crowd)) is not None
        ]
        curve = LengthCurve([*layers, (shifted_prior(mean), {}, 0)])
        low, half, high = (curve.quantile(permille, after=waited) - waited for permille in (100, 500, 900))
        return low * 1000.0, half * 1000.0, high * 1000.0

    def _running(
        self, rates: Estimates, pool: PoolRates | None, state: TaskState | None, now_ns: int, streams: int
    ) -> Running:
        if state is None:
            # Ended, but its slot was not seen free yet.
            return Running(curve=self.curve(rates, "", "", 0), tokens=0, cap=1, delay_us=_FREEING_US)
        admitted = state.admitted
        curve = self.curve(rates, admitted.owner, admitted.group, admitted.expected_tokens.bit_length())
        delay_us, tokens = 0.0, state.tokens_out
        if not tokens:
            delay_us = prompt_us(pool, admitted.prompt_tokens) - (now_ns - state.placed_ns) / 1000
        # What it has said since it was last heard of: engines tell in pieces.
        since_us = max(0.0, (now_ns - state.entry_ns) / 1000) if tokens else max(0.0, -delay_us)
        tokens += int(since_us / token_us(pool, streams))
        if admitted.max_tokens:
            tokens = max(state.tokens_out, min(tokens, admitted.max_tokens - 1))
        return Running(curve=curve, tokens=tokens, cap=admitted.max_tokens, delay_us=max(0.0, delay_us))

    def _work(self, rates: Estimates, group: str, lanes: Sequence[Lane]) -> tuple[float, float, int, int]:
        """Mean tokens and mean square of what waits, observations behind that, and mean tokens of the prompts."""
        tasks, first, second, seen, prompts = 0, 0.0, 0.0, 0, 0
        for lane in lanes:
            prompts += lane.prompt_tokens
            for kind, count in lane.kinds.items():
                owner, hint, cap = kind.rsplit("\n", 2)
                curve = self.curve(rates, owner, group, int(hint))
                mean, square = curve.moments(edge_of(int(cap)))
                tasks += count
                first += count * mean
                second += count * square
                seen += count * curve.seen
        if not tasks:
            curve = self.curve(rates, "", group, 0)
            return (*curve.moments(), curve.seen, 0)
        return first / tasks, second / tasks, seen // tasks, prompts // tasks

    def curve(self, rates: Estimates, owner: str, group: str, hint: int) -> LengthCurve:
        """How long the answers of a caller get in a group, with what is known of others where little is known of it."""
        own, of_group, of_all = (rates.lengths.get(key) for key in ((owner, group, hint), ("", group, 0), ("", "", 0)))
        if own is not None and own.seen >= 256:
            of_group = of_all = None
        elif of_group is not None and of_group.seen >= 64:
            of_all = None
        version = tuple(-1 if counts is None else counts.seen for counts in (own, of_group, of_all))
        key = (owner, group, hint)
        known = self._curves.get(key)
        if known is not None and known[0] == version:
            return known[1]
        layers = [(c.stops, c.cuts, most) for c, most in ((own, 0), (of_group, 12), (of_all, 3)) if c is not None]
        curve = LengthCurve([*layers, (shifted_prior(1 << hint >> 1), {}, 0)], _seen(own, of_group))
        if len(self._curves) >= _CURVES:
            self._curves.clear()
        self._curves[key] = (version, curve)
        return curve


def _seen(own: Counts | None, of_group: Counts | None) -> int:
    return max(own.seen if own else 0, min(12, of_group.seen) if of_group else 0)
