"""A driver that is not there is looked for with growing pauses, and asked anew when it may be back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llama_orch.pools.telemetry.nvml import FIRST_PAUSE_S, LONGEST_PAUSE_S, Nvml


class NvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class Module:
    """Answers like ``pynvml`` about one GPU that tells its name and memory."""

    NVMLError = NvmlError

    def __init__(self) -> None:
        #: code of what opens the driver, and of what asks for a GPU; 0 = it works
        self.init, self.lost = 0, 0
        self.opened: list[float] = []
        self.now = 100.0
        self.defect: Exception | None = None

    def _fail(self, code: int) -> None:
        if self.defect is not None:
            raise self.defect
        if code:
            raise NvmlError(code)

    def nvmlInit(self) -> None:
        self.opened.append(self.now)
        self._fail(self.init)

    def nvmlShutdown(self) -> None:
        self._fail(0)

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._fail(self.lost)
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return b"GPU-1"

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return "Qu\xe9bec".encode()

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=8, used=2, free=6)


def run(module: Module, seconds: float) -> Nvml:
    """One look every quarter of a second."""
    nvml = Nvml(module, monotonic=lambda: module.now)
    for _ in range(int(seconds * 4)):
        nvml.read()
        module.now += 0.25
    return nvml


def test_pauses_grow_to_a_bound_while_there_is_no_driver() -> None:
    module = Module()
    module.init = 9
    run(module, 200)
    pauses = [later - earlier for earlier, later in zip(module.opened, module.opened[1:], strict=False)]
    assert pauses[0] == FIRST_PAUSE_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S
    assert len(module.opened) < 15


def test_a_driver_that_answers_is_opened_once() -> None:
    module = Module()
    run(module, 100)
    assert len(module.opened) == 1


def test_a_lost_card_has_the_driver_opened_anew_now_and_then_until_it_is_back() -> None:
    module = Module()
    nvml = run(module, 5)
    module.lost = 15
    for _ in range(4 * 20):
        assert nvml.read().gpus[0].trouble == "gpu-lost"
        module.now += 0.25
    assert 3 <= len(module.opened) <= 7
    module.lost = 0
    opened = len(module.opened)
    reading = nvml.read()
    for _ in range(4 * 100):
        reading = nvml.read()
        module.now += 0.25
    assert (reading.gpus[0].trouble, reading.gpus[0].name) == ("", "Qu\xe9bec")
    assert len(module.opened) <= opened + 1
    module.lost = 15
    before = module.now
    nvml.read()
    module.now += FIRST_PAUSE_S
    nvml.read()
    assert module.opened[-1] == before + FIRST_PAUSE_S, "pauses begin anew"


def test_what_the_package_lacks_is_a_gap_and_no_error() -> None:
    reading = run(Module(), 0.25).read()
    (gpu,) = reading.gpus
    assert (gpu.uuid, gpu.total_bytes, gpu.used_bytes, gpu.reserved_bytes) == ("GPU-1", 8, 2, None)
    assert (gpu.utilization_percent, gpu.temperature_c, gpu.power_mw, gpu.processes) == (None, None, None, None)
    assert (reading.driver_version, reading.cuda_version, reading.trouble) == ("", "", "")


def test_closing_a_driver_that_is_gone_is_no_error() -> None:
    module = Module()
    nvml = run(module, 1)
    module.defect = NvmlError(1)
    nvml.close()
    nvml.close()
    assert nvml.read().trouble == "driver-gone"
