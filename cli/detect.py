"""What this machine has to run models on."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU, as the driver describes it."""

    index: int
    name: str
    uuid: str
    memory_bytes: int

    @property
    def memory_gib(self) -> float:
        """Memory in GiB."""
        return self.memory_bytes / 2**30


@dataclass(frozen=True, slots=True)
class Machine:
    """Processors and GPUs."""

    cpus: int
    gpus: tuple[Gpu, ...]
    #: why there are no GPUs in the list, in words; "" when there are
    gpu_note: str = ""


def detect() -> Machine:
    """Look at the processors that this process may use, and ask NVML for GPUs; never raises."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus, note = _gpus()
    return Machine(cpus, gpus, note)


def nvidia_device_files() -> bool:
    """Whether the kernel shows NVIDIA devices, asked without NVML."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    if importlib.util.find_spec("pynvml") is None:
        seen = " although the driver is loaded" if nvidia_device_files() else ""
        return (), f"not looked for{seen}: the package nvidia-ml-py is not installed"
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), f"NVML says: {error}"
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(
                Gpu(
                    index=index,
                    name=str(pynvml.nvmlDeviceGetName(handle)),
                    uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
                    memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                )
            )
        return tuple(found), "" if found else "NVML sees none"
    except pynvml.NVMLError as error:
        return (), f"NVML says: {error}"
    finally:
        pynvml.nvmlShutdown()
