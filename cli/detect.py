"""What this machine has to run models on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core.devices import HostSample


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
    #: why there are no GPUs in the list, or not all, in words, and what to do about it
    gpu_note: str = ""
    gpu_advice: str = ""


def detect(look: Callable[[], HostSample] | None = None) -> Machine:
    """Look at the processors that this process may use, and ask the driver for GPUs; never raises.

    :param look: takes one sample of this machine; ``None`` = through NVML, as the server does.
    """
    from ..core.devices import advice, words

    if look is None:
        from ..pools.telemetry.sampler import look_once

        look = look_once
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sample = look()
    usable = tuple(Gpu(gpu.index, gpu.name, gpu.uuid, gpu.total_bytes or 0) for gpu in sample.gpus if not gpu.trouble)
    doubtful = [gpu for gpu in sample.gpus if gpu.trouble]
    notes = [f"GPU {gpu.index}: {words(gpu.trouble, gpu.detail)}" for gpu in doubtful]
    causes = list(dict.fromkeys(gpu.trouble for gpu in doubtful))
    if sample.trouble:
        missing = sample.trouble == "package-missing"
        notes, causes = [words(sample.trouble, "" if missing else sample.detail)], [sample.trouble]
    note = "; ".join(notes) or ("" if usable else "the driver sees none")
    return Machine(cpus, usable, note, " ".join(map(advice, causes)))


def nvidia_device_files() -> bool:
    """Whether the kernel shows NVIDIA devices, asked without NVML."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()
