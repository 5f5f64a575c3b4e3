"""How a model that spans several GPUs is shared among them (POOL-3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

_MIB = 1_048_576


def tensor_shares(memory_bytes: Sequence[int], wanted: Sequence[int] = ()) -> list[int]:
    """Shares of GPUs as whole numbers, in their order.

    A GPU that is smaller than the largest never gets more than its part of the memory of all: the smallest one would be
    full while the others have room. What it may not get goes to the larger ones, in the proportion that was wanted.

    Args:
        memory_bytes: of each GPU; 0 = not known, then nothing is capped.
        wanted: shares as configured; empty = in proportion to the memory.

    Raises:
        ValueError: there are as many shares as GPUs, and one is more than 0.
    """
    count = len(memory_bytes)
    mib = [memory // _MIB for memory in memory_bytes]
    known = all(mib)
    if not wanted:
        return _whole([Fraction(size) for size in mib] if known else [Fraction(1)] * count)
    if len(wanted) != count or not any(wanted) or min(wanted) < 0:
        msg = f"tensor_split got {list(wanted)}, takes {count} shares, one for each GPU, of which one is more than 0"
        raise ValueError(msg)
    shares = [Fraction(share, sum(wanted)) for share in wanted]
    if known:
        caps = [Fraction(size, sum(mib)) for size in mib]
        capped: set[int] = set()
        # What one may not have can bring the next one above its own cap.
        while over := {i for i in range(count) if mib[i] < max(mib) and shares[i] > caps[i]} - capped:
            capped |= over
            shares = _with_cap(shares, capped, caps)
    return _whole(shares)


def _with_cap(shares: Sequence[Fraction], capped: set[int], caps: Sequence[Fraction]) -> list[Fraction]:
    """Those that are capped at their cap, the others in their proportion; by memory where they were to get nothing."""
    others = [index for index in range(len(shares)) if index not in capped]
    weights = {index: shares[index] for index in others}
    if not any(weights.values()):
        weights = {index: caps[index] for index in others}
    left = 1 - sum((caps[index] for index in capped), Fraction(0))
    total = sum(weights.values(), Fraction(0))
    return [caps[index] if index in capped else left * weights[index] / total for index in range(len(shares))]


def _whole(shares: Sequence[Fraction]) -> list[int]:
    """The smallest whole numbers of the same proportion."""
    scale = math.lcm(*(share.denominator for share in shares))
    numbers = [int(share * scale) for share in shares]
    divisor = math.gcd(*numbers) or 1
    return [number // divisor for number in numbers]
