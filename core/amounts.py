"""Arithmetic of what budgets count: whole numbers only, so that every sum is exact (BUD-1).

Money is counted in 10^-12 of the price list's currency. A price has at most six decimals per million tokens or per second,
so the price of one token, or of one microsecond, is a whole number of these.
"""

from __future__ import annotations

from .types import Amount

#: 10^-12 of the currency in one of it
PICO = 10**12
NOTHING = Amount()


def pico(text: str) -> int:
    """A decimal with at most twelve places, such as ``"2.50"``, in 10^-12. :raises ValueError: it is none."""
    whole, _, places = text.partition(".")
    if len(places) > 12 or not whole.isascii() or not whole.isdigit() or (places and not places.isdigit()):
        msg = f"{text!r} is no decimal number with at most twelve places"
        raise ValueError(msg)
    return int(whole) * PICO + int(places.ljust(12, "0") or "0")


def decimal(amount_pico: int) -> str:
    """10^-12 as the shortest decimal: ``"2.5"``."""
    whole, places = divmod(abs(amount_pico), PICO)
    sign = "-" if amount_pico < 0 else ""
    return f"{sign}{whole}.{places:012}".rstrip("0").rstrip(".")


def plus(one: Amount, other: Amount) -> Amount:
    """Both together."""
    return Amount(
        tokens=one.tokens + other.tokens,
        decode_us=one.decode_us + other.decode_us,
        cost_pico=one.cost_pico + other.cost_pico,
    )


def minus(one: Amount, other: Amount) -> Amount:
    """One without the other; may be negative."""
    return Amount(
        tokens=one.tokens - other.tokens,
        decode_us=one.decode_us - other.decode_us,
        cost_pico=one.cost_pico - other.cost_pico,
    )


def beyond(one: Amount, other: Amount) -> Amount:
    """What of one the other does not cover, each quantity for itself; never negative."""
    return Amount(
        tokens=max(0, one.tokens - other.tokens),
        decode_us=max(0, one.decode_us - other.decode_us),
        cost_pico=max(0, one.cost_pico - other.cost_pico),
    )


def covers(one: Amount, other: Amount) -> bool:
    """Whether one is at least the other in every quantity."""
    return one.tokens >= other.tokens and one.decode_us >= other.decode_us and one.cost_pico >= other.cost_pico


def least(one: Amount, other: Amount) -> Amount:
    """The smaller of each quantity."""
    return Amount(
        tokens=min(one.tokens, other.tokens),
        decode_us=min(one.decode_us, other.decode_us),
        cost_pico=min(one.cost_pico, other.cost_pico),
    )
