"""What this machine has to run models on."""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    #: why there are no GPUs in the list, or not all, in words
    gpu_note: str = ""


def detect(nvml: Any = None) -> Machine:
    """Look at the processors that this process may use, and ask NVML for GPUs; never raises.

    :param nvml: a module like ``pynvml``; ``None`` = the installed one, if any.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if nvml is None:
        if importlib.util.find_spec("pynvml") is None:
            seen = " although the driver is loaded" if nvidia_device_files() else ""
            return Machine(cpus, (), f"not looked for{seen}: the package nvidia-ml-py is not installed")
        nvml = importlib.import_module("pynvml")
    gpus, note = _gpus(nvml)
    return Machine(cpus, gpus, note)


def nvidia_device_files() -> bool:
    """Whether the kernel shows NVIDIA devices, asked without NVML."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()


def _gpus(nvml: Any) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that answer, and why there are none or not all."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return (), f"NVML says: {error}"
    try:
        found: list[Gpu] = []
        note = ""
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                found.append(
                    Gpu(
                        index=index,
                        name=_text(nvml.nvmlDeviceGetName(handle)),
                        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                    )
                )
            except nvml.NVMLError as error:
                note = f"GPU {index}: NVML says: {error}"
        return tuple(found), note or ("" if found else "NVML sees none")
    except nvml.NVMLError as error:
        return (), f"NVML says: {error}"
    finally:
        nvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    """Older bindings answer bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
