"""The sampler's thread survives defects, and a sample is there before the driver has said anything."""

from __future__ import annotations

import threading
from typing import Any

from llama_orch.core.devices import MemoryReading
from llama_orch.pools.telemetry.nvml import DriverReading
from llama_orch.pools.telemetry.sampler import OPENING_S, Sampler


class Driver:
    """Stands in for :class:`Nvml`."""

    def __init__(self) -> None:
        self.calling = ""
        self.go = threading.Event()
        self.asked = threading.Semaphore(0)
        self.defect: Exception | None = None
        self.closed = False

    def read(self) -> DriverReading:
        self.go.wait(20)
        self.asked.release()
        if self.defect is not None:
            raise self.defect
        return DriverReading(read_at_s=0.0, driver_version="1")

    def close(self) -> None:
        self.closed = True


def sampler_of(driver: Any, now: list[float]) -> Sampler:
    return Sampler("h", period_s=0.001, nvml=driver, memory=lambda: MemoryReading(8, 4), monotonic=lambda: now[0])


def test_before_the_first_answer_there_is_none_and_opening_may_take_its_time() -> None:
    driver, now = Driver(), [1000.0]
    sampler = sampler_of(driver, now)
    sampler.start()
    now[0] += OPENING_S - 1
    sample = sampler.sample()
    assert (sample.trouble, sample.age_ms, sample.memory) == ("no-sample", 19_000, MemoryReading(8, 4))
    now[0] += 2
    assert sampler.sample().trouble == "no-answer"
    assert "loading its library" in sampler.sample().detail
    driver.go.set()
    sampler.wait_first()
    assert (sampler.sample().trouble, sampler.sample().driver_version) == ("", "1")
    sampler.stop()
    assert driver.closed


def test_a_defect_is_said_and_tried_again() -> None:
    driver, now = Driver(), [1.0]
    driver.go.set()
    driver.defect = KeyError("odd")
    sampler = sampler_of(driver, now)
    sampler.start()
    sampler.wait_first()
    sample = sampler.sample()
    assert (sample.trouble, sample.detail) == ("nvml-error", "KeyError('odd')")
    driver.defect = None
    while driver.asked.acquire(blocking=False):
        pass  # it was asked more than once while it was defect
    for _ in range(3):
        assert driver.asked.acquire(timeout=20)
    assert sampler.sample().trouble == ""
    sampler.stop()


def test_the_age_is_that_of_the_drivers_answer() -> None:
    driver, now = Driver(), [0.0]
    driver.go.set()
    sampler = sampler_of(driver, now)
    sampler.start()
    sampler.wait_first()
    sampler.stop()
    now[0] = 2.5
    assert sampler.sample().age_ms == 2_500
