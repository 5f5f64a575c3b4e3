"""What this machine has, as NVML tells it."""

from __future__ import annotations

from types import SimpleNamespace

from llama_orch.cli.detect import Gpu, detect


class FakeNvml:
    """Two cards; the second may have fallen off the bus."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, init_fails: bool = False, second_lost: bool = False) -> None:
        self._init_fails, self._second_lost = init_fails, second_lost
        self.open = False

    def nvmlInit(self) -> None:
        if self._init_fails:
            raise self.NVMLError("Driver Not Loaded")
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 1 and self._second_lost:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return ("NVIDIA GeForce RTX 3090", b"NVIDIA GeForce RTX 3060")[handle]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=(24 - 12 * handle) * 2**30)


def test_all_cards_are_found_and_nvml_is_closed_again():
    nvml = FakeNvml()
    machine = detect(nvml)
    assert machine.cpus >= 1
    assert machine.gpus[0] == Gpu(0, "NVIDIA GeForce RTX 3090", "GPU-0", 24 * 2**30)
    assert (machine.gpus[1].name, machine.gpus[1].memory_gib) == ("NVIDIA GeForce RTX 3060", 12)
    assert machine.gpu_note == ""
    assert not nvml.open


def test_a_card_that_is_lost_is_said_and_does_not_hide_the_other():
    machine = detect(FakeNvml(second_lost=True))
    assert [gpu.uuid for gpu in machine.gpus] == ["GPU-0"]
    assert machine.gpu_note == "GPU 1: NVML says: GPU is lost"


def test_without_a_driver_there_is_a_reason():
    machine = detect(FakeNvml(init_fails=True))
    assert (machine.gpus, machine.gpu_note) == ((), "NVML says: Driver Not Loaded")
