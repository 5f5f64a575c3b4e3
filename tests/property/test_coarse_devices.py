"""Coarse observations of devices: what trembles makes no storm of events, and memory never looks freer than it is (PLC-3)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.coarse import (
    GPU_STEP_MIB,
    MIB,
    TEMPERATURE_STEP_C,
    at_least,
    at_most,
    coarse,
    near,
    pressing,
    smoothed,
)
from llama_orch.core.devices import GpuReading, HostSample, MemoryReading
from llama_orch.core.events.gpu import GpuObserved

VALUES = st.integers(0, 1_000_000)
STEPS = st.integers(4, 10_000)


@given(VALUES, STEPS, st.lists(st.integers(-1_000, 1_000), min_size=2, max_size=50))
def test_a_value_that_trembles_by_less_than_a_quarter_of_a_step_changes_at_most_once(
    centre: int, step: int, jitter: list[int]
) -> None:
    for rule in (near, at_least, at_most):
        told = rule(max(0, centre), step)
        changes = 0
        for tremble in jitter:
            now = rule(max(0, centre + tremble * (step // 8) // 1_000), step, told)
            changes += now != told
            told = now
        assert changes <= 1


@given(VALUES, STEPS, st.none() | VALUES)
def test_what_is_told_is_a_multiple_of_the_step_and_close(value: int, step: int, told: int | None) -> None:
    for rule, below, above in ((near, step, step), (at_least, 0, 2 * step), (at_most, 2 * step, 0)):
        now = rule(value, step, told)
        assert now % step == 0
        assert -below <= now - value <= above


@given(st.lists(st.integers(0, 100), min_size=1, max_size=200))
def test_smoothed_utilisation_stays_a_share(percents: list[int]) -> None:
    before = None
    for percent in percents:
        before = smoothed(before, percent)
        assert min(percents) * 1_000 - 1_000 <= before <= max(percents) * 1_000


def sample(
    used: int, *, temperature: int = 40, util: int | None = 5, available: int = 8 << 30, trouble: str = ""
) -> HostSample:
    gpu = GpuReading(
        uuid="GPU-1",
        total_bytes=24 << 30,
        used_bytes=used,
        reserved_bytes=300 * MIB,
        utilization_percent=util,
        temperature_c=temperature,
        trouble=trouble,
    )
    return HostSample(host="h", gpus=[gpu], memory=MemoryReading(16 << 30, available))


def after(told: GpuObserved | None, seen: HostSample) -> GpuObserved:
    return coarse(told, seen, {"GPU-1": 5_000})


@given(
    st.integers(0, 24 << 30),
    st.lists(
        st.tuples(st.integers(-7 * MIB, 7 * MIB), st.integers(-1, 1), st.integers(-12 * MIB, 12 * MIB)), max_size=60
    ),
)
def test_a_host_whose_values_tremble_makes_one_event_and_at_most_one_more_for_each_value(
    used: int, moves: list[tuple[int, int, int]]
) -> None:
    told = after(None, sample(used))
    events = 0
    for by, warmer, less in moves:
        seen = sample(max(0, used + by), temperature=42 + warmer, available=(8 << 30) + less)
        now = after(told, seen)
        events += now != told
        told = now
    assert events <= 3


@given(st.integers(0, 24 << 30), st.integers(0, 24 << 30), st.integers(0, 16 << 30), st.integers(0, 16 << 30))
def test_memory_never_looks_freer_than_it_is(first: int, second: int, available: int, later: int) -> None:
    told = after(after(None, sample(first, available=available)), sample(second, available=later))
    assert told.gpus[0].used_mib * MIB >= second
    assert told.gpus[0].used_mib * MIB - second < (2 * GPU_STEP_MIB + 1) * MIB
    assert told.memory_available_mib * MIB <= later


@given(st.integers(0, 24 << 30))
def test_the_same_sample_again_changes_nothing(used: int) -> None:
    told = after(None, sample(used))
    assert after(told, sample(used)) == told


def test_what_is_not_told_is_not_zero() -> None:
    bare = GpuReading(uuid="GPU-1", trouble="memory-unknown")
    (record,) = coarse(None, HostSample(host="h", gpus=[bare]), {}).gpus
    assert (record.utilization_percent, record.temperature_c, record.power_mw) == (-1, -1, -1)
    assert (record.total_mib, record.trouble) == (0, "memory-unknown")


def test_what_is_there_and_what_is_wrong_is_told_at_once_and_a_tremble_later() -> None:
    told = after(None, sample(0))
    assert pressing(None, told)
    assert not pressing(told, after(told, sample(0, temperature=40 + 2 * TEMPERATURE_STEP_C)))
    assert not pressing(told, after(told, sample(64 * MIB)))
    assert pressing(told, after(told, sample(2 << 30)))
    assert pressing(told, after(told, sample(0, trouble="gpu-lost")))
    assert pressing(told, after(told, HostSample(host="h")))
    assert pressing(told, after(told, HostSample(host="h", trouble="driver-gone")))
    assert pressing(told, after(told, sample(0, available=4 << 30)))
