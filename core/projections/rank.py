"""A set of growing integers that answers "how many are smaller?" in constant time, whatever its size.

Members are bits of 4,096-bit leaves; counts of leaves and of groups of 64 leaves are kept beside them. With
100,000 members spread over half a million numbers an answer reads two or three short lists (ADM-3).
"""

from __future__ import annotations

from bisect import bisect_left, insort

_LEAF_BITS = 12
_LEAF_MASK = (1 << _LEAF_BITS) - 1
_LEAVES_BITS = 6
_GROUP_BITS = _LEAF_BITS + _LEAVES_BITS


class RankSet:
    """Distinct non-negative integers with rank and minimum."""

    def __init__(self) -> None:
        self._leaves: dict[int, int] = {}
        self._leaf_counts: dict[int, list[int]] = {}
        #: bit per leaf of a group that has members, so that the first is found without a search
        self._occupied: dict[int, int] = {}
        self._groups: list[int] = []
        self._group_counts: dict[int, int] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, number: int) -> bool:
        return bool(self._leaves.get(number >> _LEAF_BITS, 0) >> (number & _LEAF_MASK) & 1)

    def add(self, number: int) -> None:
        """Put a number in. :raises ValueError: it is there."""
        leaf, group = number >> _LEAF_BITS, number >> _GROUP_BITS
        bits = self._leaves.get(leaf, 0)
        bit = 1 << (number & _LEAF_MASK)
        if bits & bit:
            msg = f"{number} is in the set already"
            raise ValueError(msg)
        self._leaves[leaf] = bits | bit
        counts = self._leaf_counts.get(group)
        if counts is None:
            counts = self._leaf_counts[group] = [0] * 64
            self._group_counts[group] = self._occupied[group] = 0
            insort(self._groups, group)
        counts[leaf & 63] += 1
        self._occupied[group] |= 1 << (leaf & 63)
        self._group_counts[group] += 1
        self._size += 1

    def remove(self, number: int) -> None:
        """Take a number out. :raises KeyError: it is not there."""
        leaf, group = number >> _LEAF_BITS, number >> _GROUP_BITS
        bits = self._leaves.get(leaf, 0)
        bit = 1 << (number & _LEAF_MASK)
        if not bits & bit:
            raise KeyError(number)
        if bits == bit:
            del self._leaves[leaf]
            self._occupied[group] ^= 1 << (leaf & 63)
        else:
            self._leaves[leaf] = bits ^ bit
        self._leaf_counts[group][leaf & 63] -= 1
        self._group_counts[group] -= 1
        self._size -= 1
        if not self._group_counts[group]:
            del self._group_counts[group], self._leaf_counts[group], self._occupied[group]
            del self._groups[bisect_left(self._groups, group)]

    def rank(self, number: int) -> int:
        """How many members are smaller than ``number``."""
        leaf, group = number >> _LEAF_BITS, number >> _GROUP_BITS
        before = sum(self._group_counts[g] for g in self._groups[: bisect_left(self._groups, group)])
        counts = self._leaf_counts.get(group)
        if counts is not None:
            before += sum(counts[: leaf & 63])
        return before + (self._leaves.get(leaf, 0) & ((1 << (number & _LEAF_MASK)) - 1)).bit_count()

    def first(self) -> int | None:
        """The smallest member, or ``None``."""
        return self._first_of_group(0, -1)

    def after(self, number: int) -> int | None:
        """The smallest member above ``number``, or ``None``."""
        leaf, group = number >> _LEAF_BITS, number >> _GROUP_BITS
        above = self._leaves.get(leaf, 0) & (-2 << (number & _LEAF_MASK))
        if above:
            return leaf << _LEAF_BITS | _lowest(above)
        return self._first_of_group(bisect_left(self._groups, group), leaf)

    def _first_of_group(self, at: int, leaf: int) -> int | None:
        """The smallest member in the groups from index ``at`` on, in leaves behind ``leaf``."""
        for group in self._groups[at : at + 2]:
            occupied = self._occupied[group]
            if leaf >> _LEAVES_BITS == group:
                occupied &= -2 << (leaf & 63)
            if occupied:
                found = group << _LEAVES_BITS | _lowest(occupied)
                return found << _LEAF_BITS | _lowest(self._leaves[found])
        return None


def _lowest(bits: int) -> int:
    """Index of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1
