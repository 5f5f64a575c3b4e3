"""RankSet answers like a sorted list, whatever comes and goes (ADM-3)."""

from __future__ import annotations

from bisect import bisect_left, insort

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llama_orch.core.projections.rank import RankSet

# Numbers near the edges of leaves (4,096) and groups (262,144), and far apart.
NUMBERS = st.one_of(
    st.integers(0, 300),
    st.integers(4_000, 4_200),
    st.integers(262_000, 262_400),
    st.integers(0, 2**40),
)


class Ranks(RuleBasedStateMachine):
    """A RankSet beside its model."""

    def __init__(self) -> None:
        super().__init__()
        self.set = RankSet()
        self.model: list[int] = []

    @rule(number=NUMBERS)
    def add(self, number: int) -> None:
        if number in self.model:
            with pytest.raises(ValueError, match="already"):
                self.set.add(number)
        else:
            self.set.add(number)
            insort(self.model, number)

    @rule(number=NUMBERS)
    def remove_any(self, number: int) -> None:
        if number in self.model:
            self.set.remove(number)
            self.model.remove(number)
        else:
            with pytest.raises(KeyError):
                self.set.remove(number)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove_one(self, data: st.DataObject) -> None:
        number = self.model.pop(data.draw(st.integers(0, len(self.model) - 1)))
        self.set.remove(number)
        assert number not in self.set

    @rule(number=NUMBERS)
    def rank(self, number: int) -> None:
        assert self.set.rank(number) == bisect_left(self.model, number)

    @invariant()
    def same(self) -> None:
        assert len(self.set) == len(self.model)
        assert self.set.first() == (self.model[0] if self.model else None)
        assert all(n in self.set for n in self.model[:3])


TestRanks = Ranks.TestCase
