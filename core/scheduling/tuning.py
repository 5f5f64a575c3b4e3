"""How many slots of a pool are used: one more, one less or as many as now, with the reason in words (ENG-3).

Pure. More streams at once mean more tokens in all and less waiting, but each stream is slower and the KV cache fuller.
A slot is given up when streams are slower than is aimed at or the cache is nearly full; one is added while tasks wait
longer than is aimed at, as long as streams will stay quick enough, by what was measured with that many or, where that
never happened, by how much each stream more has cost so far. One step at a time, each after enough of what it changed
was seen, and with room between the limits of both directions, so that it settles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

#: a slot is given up above this share of the aim, and added below that, per cent
_TOO_SLOW: Final = 102
_QUICK_ENOUGH: Final = 92
#: of the KV cache, thousandths
_TOO_FULL: Final = 950
_ROOM_LEFT: Final = 850
#: tokens in all have to grow by this much, per cent, or one stream more only makes the others slower
_WORTH: Final = 2
#: what a stream more costs the others before that was measured, per cent of a token's time
_NEIGHBOUR: Final = 12
#: tasks that have to have begun and ended since the last change: so many, and one for each of so many slots
_SEEN_AT_LEAST: Final = 3
_SLOTS_PER_SEEN: Final = 3


class TuningAims(msgspec.Struct, frozen=True, kw_only=True):
    """What is aimed at, between which bounds."""

    slots_min: int
    slots_max: int
    first_token_ms: int
    inter_token_us: int
    #: from a change to giving up a slot, and to adding one, at least
    pause_ms: int = 10_000
    pause_before_more_ms: int = 4_000


class TuningState(msgspec.Struct, frozen=True, kw_only=True):
    """A pool as it is."""

    slots: int
    leases: int
    #: tasks that wait for this pool or its like
    waiting: int
    since_change_ms: int
    #: tasks that began and ended since the last change
    seen: int
    #: from admission to the first token lately, or what the first that waits has waited already
    first_token_ms: int
    #: between two tokens of a stream lately, 0 = not measured
    inter_token_us: int
    kv_used_permille: int
    #: microseconds per token by streams at once, as ever measured
    token_us: Mapping[int, int]


class SlotsChange(msgspec.Struct, frozen=True, kw_only=True):
    """A decision."""

    slots: int
    reason: str


def tune(state: TuningState, aims: TuningAims) -> SlotsChange | None:
    """The next number of slots; ``None``: as many as now."""
    least, most = aims.slots_min, max(aims.slots_min, aims.slots_max)
    if not least <= state.slots <= most:
        slots = max(least, min(most, state.slots))
        return SlotsChange(slots=slots, reason=f"{state.slots} slots are not within {least} to {most}")
    if state.since_change_ms >= aims.pause_ms and state.slots > least:
        reason = _too_many(state, aims)
        if reason:
            return SlotsChange(slots=state.slots - 1, reason=reason)
    if state.since_change_ms >= aims.pause_before_more_ms and state.slots < most:
        return _one_more(state, aims)
    return None


def _too_many(state: TuningState, aims: TuningAims) -> str:
    """Why a slot has to be given up; "" = it has not."""
    if state.kv_used_permille > _TOO_FULL:
        return f"{state.kv_used_permille / 10:g} % of the KV cache are in use"
    enough = max(_SEEN_AT_LEAST, state.slots // _SLOTS_PER_SEEN)
    if state.seen >= enough and state.inter_token_us * 100 > aims.inter_token_us * _TOO_SLOW:
        return f"a token takes {state.inter_token_us / 1000:.1f} ms, {aims.inter_token_us / 1000:g} ms are aimed at"
    return ""


def _one_more(state: TuningState, aims: TuningAims) -> SlotsChange | None:
    if not state.waiting or state.leases < state.slots or state.first_token_ms <= aims.first_token_ms:
        return None
    if not state.inter_token_us:
        return None  # nothing says yet what it would cost
    if state.kv_used_permille * (state.slots + 1) > _ROOM_LEFT * state.slots:
        return None
    expected = expected_token_us(state)
    if expected * 100 > aims.inter_token_us * _QUICK_ENOUGH:
        return None
    if state.inter_token_us * (state.slots + 1) * 100 < expected * state.slots * (100 + _WORTH):
        return None
    return SlotsChange(
        slots=state.slots + 1,
        reason=(
            f"{state.waiting} tasks wait and first tokens take {state.first_token_ms / 1000:.1f} s, "
            f"{aims.first_token_ms / 1000:g} s are aimed at; a token would take about {expected / 1000:.1f} ms"
        ),
    )


def expected_token_us(state: TuningState) -> int:
    """Microseconds per token with one stream more: now, and in the proportion that was measured before."""
    now, more = state.token_us.get(state.slots), state.token_us.get(state.slots + 1)
    if now and more:
        return state.inter_token_us * max(more, now) // now
    return state.inter_token_us * (100 + _NEIGHBOUR) // 100
