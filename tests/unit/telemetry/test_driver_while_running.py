"""GPUs through the real nvidia-ml-py and a real library, in a process of its own, changed while it looks (PLC-3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_orch.core.devices import GpuProcess, GpuReading, HostSample

from ...nvml import RTX_3060, RTX_3090, FakeDriver, FakeGpu, Kind, Looking

MIB = 1_048_576
Start = Callable[[dict[str, str]], Looking]


def gpu(sample: HostSample, of: FakeGpu) -> GpuReading:
    return next(gpu for gpu in sample.gpus if gpu.uuid == of.uuid)


def both_answer(sample: HostSample) -> bool:
    return len(sample.gpus) == 2 and not sample.trouble and not any(gpu.trouble for gpu in sample.gpus)


def explained(sample: HostSample) -> bool:
    """Something is wrong, and not only that a busy machine has let the driver wait."""
    return sample.trouble not in ("", "no-sample", "no-answer")


def test_all_that_the_driver_tells_is_told(driver: FakeDriver, looking: Start) -> None:
    driver.set(RTX_3090.but(procs={71: 900, 5: None}), RTX_3060)
    sample = looking(driver.env).until(both_answer, "two GPUs")
    assert sample.host == "here"
    assert (sample.driver_version, sample.cuda_version) == ("580.42", "13.2")
    assert gpu(sample, RTX_3090) == GpuReading(
        uuid=RTX_3090.uuid,
        name="NVIDIA GeForce RTX 3090",
        index=0,
        pci_bus_id="00000000:01:00.0",
        total_bytes=24_576 * MIB,
        used_bytes=1_024 * MIB,
        free_bytes=(24_576 - 1_024 - 300) * MIB,
        reserved_bytes=300 * MIB,
        utilization_percent=7,
        temperature_c=41,
        power_mw=60_000,
        processes=[GpuProcess(5, None), GpuProcess(71, 900 * MIB)],
    )
    assert gpu(sample, RTX_3060).index == 1
    assert gpu(sample, RTX_3060).processes == []
    assert sample.memory is not None
    assert 0 < sample.memory.available_bytes <= sample.memory.total_bytes


def test_a_card_that_fills_is_seen(driver: FakeDriver, looking: Start) -> None:
    driver.set(RTX_3090, RTX_3060)
    looks = looking(driver.env)
    looks.until(both_answer, "two GPUs")
    driver.set(RTX_3090.but(used=20_480, util=93, temp=71, power=340_000), RTX_3060)
    sample = looks.until(lambda s: gpu(s, RTX_3090).used_bytes == 20_480 * MIB, "a full card")
    full = gpu(sample, RTX_3090)
    assert (full.utilization_percent, full.temperature_c, full.power_mw) == (93, 71, 340_000)
    assert full.free_bytes == (24_576 - 20_480 - 300) * MIB
    assert gpu(sample, RTX_3060).used_bytes == 512 * MIB


@pytest.mark.parametrize("how", ["is lost", "is not listed"])
def test_a_card_that_vanishes_is_said_to_be_lost_and_comes_back_by_itself(
    how: str, driver: FakeDriver, looking: Start
) -> None:
    driver.set(RTX_3090, RTX_3060)
    looks = looking(driver.env)
    looks.until(both_answer, "two GPUs")
    driver.set(*([RTX_3090.but(lost=15), RTX_3060] if how == "is lost" else [RTX_3060]))
    sample = looks.until(lambda s: gpu(s, RTX_3090).trouble == "gpu-lost" and not s.trouble, "a lost card")
    lost = gpu(sample, RTX_3090)
    assert (lost.name, lost.total_bytes) == ("NVIDIA GeForce RTX 3090", 24_576 * MIB)
    assert (lost.used_bytes, lost.free_bytes, lost.utilization_percent, lost.processes) == (None, None, None, None)
    assert not sample.trouble
    assert gpu(sample, RTX_3060).used_bytes == 512 * MIB, "the other one goes on"
    driver.set(RTX_3090, RTX_3060)
    looks.until(both_answer, "both again")


def test_a_card_that_is_lost_from_the_start_is_said_too(driver: FakeDriver, looking: Start) -> None:
    driver.set(RTX_3090, RTX_3060.but(lost=15))
    looks = looking(driver.env)
    sample = looks.until(lambda s: len(s.gpus) == 2, "two GPUs")
    assert [(g.uuid, g.trouble) for g in sample.gpus] == [(RTX_3090.uuid, ""), ("unknown-1", "gpu-lost")]


def test_a_card_that_wants_a_reset_says_so(driver: FakeDriver, looking: Start) -> None:
    driver.set(RTX_3090, RTX_3060.but(lost=16))
    sample = looking(driver.env).until(lambda s: len(s.gpus) == 2, "two GPUs")
    assert sample.gpus[1].trouble == "reset-required"


@pytest.mark.parametrize(
    "code, cause", [(9, "driver-gone"), (1, "driver-gone"), (18, "driver-mismatch"), (999, "nvml-error")]
)
def test_a_driver_that_goes_is_said_and_found_again_when_it_is_back(
    code: int, cause: str, driver: FakeDriver, looking: Start
) -> None:
    driver.set(RTX_3090, RTX_3060)
    looks = looking(driver.env)
    looks.until(both_answer, "two GPUs")
    driver.set(lines=[f"gone {code}"])
    sample = looks.until(explained, "a driver that is gone")
    assert sample.trouble == cause
    assert [(g.uuid, g.trouble) for g in sample.gpus] == [(RTX_3090.uuid, cause), (RTX_3060.uuid, cause)]
    assert sample.memory is not None, "the host's memory goes on"
    driver.set(RTX_3090, RTX_3060)
    looks.until(both_answer, "both again")


@pytest.mark.parametrize("code, cause", [(9, "driver-not-loaded"), (18, "driver-mismatch"), (4, "no-permission")])
def test_a_driver_that_was_never_there_is_said_and_found_when_it_comes(
    code: int, cause: str, driver: FakeDriver, looking: Start
) -> None:
    driver.set(lines=[f"gone {code}"])
    looks = looking(driver.env)
    sample = looks.until(explained, "a reason")
    assert (sample.trouble, sample.gpus) == (cause, [])
    driver.set(RTX_3090, RTX_3060)
    looks.until(both_answer, "both")


def test_a_call_that_hangs_leaves_the_age_to_grow_and_nobody_else_waits(driver: FakeDriver, looking: Start) -> None:
    driver.set(RTX_3090, RTX_3060)
    looks = looking(driver.env)
    looks.until(both_answer, "two GPUs")
    driver.set(RTX_3090.but(used=9_999), RTX_3060, lines=["hang nvmlDeviceGetUtilizationRates"])
    hangs = "nvmlDeviceGetUtilizationRates has not returned"
    first = looks.until(lambda s: s.trouble == "no-answer" and s.detail.startswith(hangs), "a hanging driver")
    later = looks.until(lambda s: s.age_ms > first.age_ms + 200, "a growing age")
    assert later.trouble == "no-answer"
    assert gpu(later, RTX_3090).used_bytes == 1_024 * MIB, "what was known, with its age"
    driver.set(RTX_3090.but(used=9_999), RTX_3060)
    back = looks.until(both_answer, "answers again")
    assert back.age_ms < later.age_ms


def test_a_program_ends_while_a_call_hangs(driver: FakeDriver, looking: Start) -> None:
    driver.set(RTX_3090, lines=["hang nvmlDeviceGetName"])
    looks = looking(driver.env)
    looks.until(lambda s: s.trouble == "no-answer", "a hanging driver")
    assert looks.end() == 0


def test_functions_that_an_old_driver_lacks_leave_gaps_and_no_more(
    library: Callable[[Kind], Path], tmp_path: Path, looking: Start
) -> None:
    driver = FakeDriver(tmp_path, library("old"))
    driver.set(RTX_3090)
    sample = looking(driver.env).until(lambda s: bool(s.gpus), "a GPU")
    (only,) = sample.gpus
    assert (only.trouble, only.temperature_c, only.power_mw) == ("", 41, 60_000)
    assert (only.used_bytes, only.reserved_bytes) == ((1_024 + 300) * MIB, None), "reserved ones are among the used"
    assert (only.pci_bus_id, only.processes) == ("", None)


def test_a_driver_without_functions_that_are_needed_is_said(
    library: Callable[[Kind], Path], tmp_path: Path, looking: Start
) -> None:
    driver = FakeDriver(tmp_path, library("bare"))
    driver.set(RTX_3090)
    sample = looking(driver.env).until(explained, "a reason")
    assert (sample.trouble, sample.gpus) == ("symbols-missing", [])
    assert "nvmlDeviceGetCount" in sample.detail


def test_a_library_that_is_not_there_is_said_and_found_when_it_comes(
    library: Callable[[Kind], Path], tmp_path: Path, looking: Start
) -> None:
    place = tmp_path / "driver"
    place.mkdir()
    driver = FakeDriver(tmp_path, place)
    driver.set(RTX_3090, RTX_3060)
    looks = looking(driver.env)
    looks.until(lambda s: s.trouble == "library-missing", "a missing library")
    (place / "libnvidia-ml.so.1").symlink_to(library("full") / "libnvidia-ml.so.1")
    looks.until(both_answer, "both")


def test_what_a_card_does_not_tell_is_not_guessed(driver: FakeDriver, looking: Start) -> None:
    driver.set(
        FakeGpu("GPU-silent", total=8_192, used=1, util=None, temp=None, power=None, quiet=1), FakeGpu("GPU-shared")
    )
    sample = looking(driver.env).until(lambda s: len(s.gpus) == 2, "two GPUs")
    silent, shared = sample.gpus
    assert (silent.utilization_percent, silent.temperature_c, silent.power_mw) == (None, None, None)
    assert (silent.processes, silent.pci_bus_id, silent.trouble) == (None, "", "")
    assert (shared.total_bytes, shared.used_bytes, shared.trouble) == (None, None, "memory-unknown")


def test_instances_of_a_divided_card_are_devices_of_their_own(driver: FakeDriver, looking: Start) -> None:
    divided = RTX_3090.but(mig=1)
    instances = [f"mig gpu={divided.uuid}|uuid=MIG-{n}|name=1g.5gb|total=4864|used={n}|reserved=8" for n in (1, 2)]
    driver.set(divided, lines=instances)
    looks = looking(driver.env)
    sample = looks.until(lambda s: len(s.gpus) == 3, "a card and its instances")
    assert [(g.uuid, g.trouble) for g in sample.gpus] == [(divided.uuid, "mig-enabled"), ("MIG-1", ""), ("MIG-2", "")]
    assert sample.gpus[1].parent_uuid == divided.uuid
    assert sample.gpus[2].used_bytes == 2 * MIB
    driver.set(divided, lines=instances[:1])
    sample = looks.until(lambda s: len(s.gpus) == 2, "one instance fewer")
    assert not sample.gpus[1].trouble, "an instance that was taken away is not lost"
