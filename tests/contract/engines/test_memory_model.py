"""What is predicted of a model's memory, beside what the real server takes when every slot's context is full."""

import pytest

from ...engines.real_memory import HELD_OUT, measure

pytestmark = [pytest.mark.slow, pytest.mark.real_llama]


@pytest.mark.parametrize("case", HELD_OUT, ids=lambda case: case.name)
def test_predicted_memory_is_within_a_tenth_of_what_llama_cpp_takes(case, tmp_path):
    found = measure(case, tmp_path)
    assert abs(found.error_permille) <= 100, found
