"""Whatever a driver does, its reader never raises, forgets no card, guesses nothing, and finds again what came back (PLC-3)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llama_orch.core.devices import CAUSES
from llama_orch.pools.telemetry.nvml import LONGEST_PAUSE_S, DriverReading, Nvml

UUIDS = ["GPU-0", "GPU-1", "GPU-2"]
CODES = st.sampled_from([1, 2, 3, 4, 6, 9, 10, 12, 13, 15, 16, 18, 28, 99, 999])
FUNCTIONS = st.sampled_from([
    "nvmlInit",
    "nvmlShutdown",
    "nvmlSystemGetDriverVersion",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetComputeRunningProcesses",
])  # fmt: skip


class NvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class Module:
    """A driver with the faults that are set."""

    NVMLError = NvmlError

    def __init__(self) -> None:
        self.cards = {uuid: 100 * n for n, uuid in enumerate(UUIDS, 1)}
        #: function -> code
        self.faults: dict[str, int] = {}
        #: card -> code
        self.lost: dict[str, int] = {}
        self.gone = 0
        self.open = False
        self.opened = 0

    def _enter(self, function: str, card: str = "") -> None:
        code = self.gone or self.faults.get(function, 0) or self.lost.get(card, 0)
        if function not in ("nvmlInit", "nvmlShutdown") and not self.open:
            code = 1
        if not code and card and card not in self.cards:
            code = 15
        if code:
            raise NvmlError(code)

    def nvmlInit(self) -> None:
        self.opened += 1
        self._enter("nvmlInit")
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False
        self._enter("nvmlShutdown")

    def nvmlSystemGetDriverVersion(self) -> str:
        self._enter("nvmlSystemGetDriverVersion")
        return "1"

    def nvmlDeviceGetCount(self) -> int:
        self._enter("nvmlDeviceGetCount")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self._enter("nvmlDeviceGetHandleByIndex")
        if index >= len(self.cards):
            raise NvmlError(2)
        card = sorted(self.cards)[index]
        self._enter("", card)
        return card

    def nvmlDeviceGetUUID(self, card: str) -> str:
        self._enter("nvmlDeviceGetUUID", card)
        return card

    def nvmlDeviceGetName(self, card: str) -> str:
        self._enter("nvmlDeviceGetName", card)
        return f"name of {card}"

    def nvmlDeviceGetMemoryInfo(self, card: str) -> Any:
        self._enter("nvmlDeviceGetMemoryInfo", card)
        used = self.cards[card]
        return SimpleNamespace(total=1_000, used=used, free=1_000 - used)

    def nvmlDeviceGetUtilizationRates(self, card: str) -> Any:
        self._enter("nvmlDeviceGetUtilizationRates", card)
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetPowerUsage(self, card: str) -> int:
        self._enter("nvmlDeviceGetPowerUsage", card)
        return 7

    def nvmlDeviceGetComputeRunningProcesses(self, card: str) -> list[Any]:
        self._enter("nvmlDeviceGetComputeRunningProcesses", card)
        return []


class NvmlMachine(RuleBasedStateMachine):
    """Cards come and go, functions fail, the driver goes; one look a second."""

    @initialize()
    def begin(self) -> None:
        self.module = Module()
        self.now = 0.0
        self.nvml = Nvml(self.module, monotonic=lambda: self.now)
        self.seen: set[str] = set()
        self.reading: DriverReading | None = None

    @rule(code=CODES)
    def the_driver_goes(self, code: int) -> None:
        self.module.gone = code

    @rule(function=FUNCTIONS, code=CODES)
    def a_function_fails(self, function: str, code: int) -> None:
        self.module.faults[function] = code

    @rule(uuid=st.sampled_from(UUIDS), code=st.sampled_from([15, 16, 28, 999]))
    def a_card_is_lost(self, uuid: str, code: int) -> None:
        self.module.lost[uuid] = code

    @rule(uuid=st.sampled_from(UUIDS))
    def a_card_is_taken_out(self, uuid: str) -> None:
        self.module.cards.pop(uuid, None)

    @rule(uuid=st.sampled_from(UUIDS), used=st.integers(0, 1_000))
    def a_card_is_put_in(self, uuid: str, used: int) -> None:
        self.module.cards[uuid] = used

    @rule()
    def all_is_well_again(self) -> None:
        self.module.gone = 0
        self.module.faults.clear()
        self.module.lost.clear()

    @rule(seconds=st.integers(1, 40))
    def looks(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.reading = self.nvml.read()
            self.seen |= {gpu.uuid for gpu in self.reading.gpus if gpu.uuid in UUIDS and not gpu.trouble}

    @rule()
    def looks_until_what_is_well_has_to_be_found(self) -> None:
        self.all_is_well_again()
        self.looks(int(LONGEST_PAUSE_S) + 2)
        reading = self.reading
        assert reading is not None
        assert not reading.trouble
        for uuid, used in self.module.cards.items():
            (gpu,) = [gpu for gpu in reading.gpus if gpu.uuid == uuid]
            assert (gpu.trouble, gpu.used_bytes, gpu.free_bytes) == ("", used, 1_000 - used)

    @invariant()
    def what_is_said_is_whole(self) -> None:
        if self.reading is None:
            return
        uuids = [gpu.uuid for gpu in self.reading.gpus]
        assert len(set(uuids)) == len(uuids), "a card is told twice"
        assert self.seen <= set(uuids), "a card that was there is forgotten"
        assert self.reading.trouble in {"", *CAUSES}
        for gpu in self.reading.gpus:
            assert gpu.trouble in {"", *CAUSES}
            if gpu.trouble:
                assert (gpu.used_bytes, gpu.free_bytes, gpu.utilization_percent, gpu.processes) == (None,) * 4 or (
                    gpu.trouble == "memory-unknown" and gpu.free_bytes is None
                )
        assert self.nvml.calling == "", "it is not asking any more"

    @invariant()
    def a_driver_is_not_opened_all_the_time(self) -> None:
        if hasattr(self, "module"):
            # A second's pause at first, doubled up to half a minute; each recovery begins anew.
            assert self.module.opened <= self.now + 1


def test_a_card_at_the_place_of_another_is_not_taken_for_it() -> None:
    module = Module()
    nvml = Nvml(module, monotonic=lambda: 0.0)
    module.lost["GPU-2"] = 15
    nvml.read()
    del module.cards["GPU-0"]
    told = [(gpu.uuid, gpu.trouble) for gpu in nvml.read().gpus]
    assert sorted(told) == [("GPU-0", "gpu-lost"), ("GPU-1", ""), ("unknown-1", "gpu-lost")]


NvmlMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestNvmlMachine = NvmlMachine.TestCase
