"""Shares of a model that spans GPUs, whatever the GPUs."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.scheduling.tensor_split import tensor_shares

GIB = 2**30
sizes = st.lists(st.integers(1, 200), min_size=1, max_size=6)


def parts(shares):
    return [Fraction(share, sum(shares)) for share in shares]


@given(sizes)
def test_without_a_wish_each_gpu_gets_its_part_of_the_memory(gib):
    assert parts(tensor_shares([size * GIB for size in gib])) == parts(gib)


@given(st.data(), sizes)
def test_no_gpu_smaller_than_the_largest_gets_more_than_its_part_of_the_memory(data, gib):
    wanted = data.draw(st.lists(st.integers(0, 50), min_size=len(gib), max_size=len(gib)).filter(any))
    shares = tensor_shares([size * GIB for size in gib], wanted)
    assert len(shares) == len(gib)
    assert min(shares) >= 0
    assert sum(shares) > 0
    for size, part, memory in zip(gib, parts(shares), parts(gib), strict=True):
        assert size == max(gib) or part <= memory
    allowed = all(w <= m or s == max(gib) for s, w, m in zip(gib, parts(wanted), parts(gib), strict=True))
    if allowed:
        assert parts(shares) == parts(wanted), "what fits is left as it was wanted"


@given(st.data(), sizes)
def test_what_is_capped_stays_capped_when_asked_again(data, gib):
    wanted = data.draw(st.lists(st.integers(0, 50), min_size=len(gib), max_size=len(gib)).filter(any))
    memory = [size * GIB for size in gib]
    shares = tensor_shares(memory, wanted)
    assert tensor_shares(memory, shares) == shares


@pytest.mark.parametrize("wanted", [[1], [1, 2, 3], [0, 0], [-1, 2]])
def test_shares_for_other_gpus_are_refused(wanted):
    with pytest.raises(ValueError, match="tensor_split"):
        tensor_shares([GIB, GIB], wanted)


def test_the_next_larger_one_is_capped_too_when_it_is_given_too_much():
    shares = tensor_shares([8 * GIB, 12 * GIB, 24 * GIB], [20, 19, 61])
    assert parts(shares)[0] == Fraction(8, 44)
    shares = tensor_shares([8 * GIB, 12 * GIB, 24 * GIB], [10, 60, 30])
    assert parts(shares)[:2] == [Fraction(8, 44), Fraction(12, 44)]
