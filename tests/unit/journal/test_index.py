"""The index's packed frame numbers, and its rows built again from frames."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.errors import CorruptJournalError
from llama_orch.core.journal.index import pack_frame_numbers, unpack_frame_numbers

_ascending = st.lists(st.integers(1, 5_000_000), min_size=1, max_size=400).map(lambda steps: [*accumulate(steps)])


@given(_ascending)
def test_frame_numbers_come_back(numbers: list[int]) -> None:
    assert unpack_frame_numbers(pack_frame_numbers(numbers)) == numbers


def test_no_frames_take_no_bytes() -> None:
    assert pack_frame_numbers([]) == b""
    assert unpack_frame_numbers(b"") == []


def test_a_long_stream_takes_few_bytes() -> None:
    assert len(pack_frame_numbers(range(1_000, 101_000))) < 1_000


@pytest.mark.parametrize("numbers", [[3, 3], [5, 4], [1, 2**33]])
def test_numbers_that_cannot_be_packed_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        pack_frame_numbers(numbers)


@given(st.binary(min_size=1, max_size=40))
def test_broken_bytes_are_called_corrupt(raw: bytes) -> None:
    try:
        numbers = unpack_frame_numbers(raw)
    except CorruptJournalError:
        return
    assert raw[0] in (0, 1)
    assert all(isinstance(number, int) for number in numbers)
