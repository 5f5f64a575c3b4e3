"""Samples of a host's devices: its GPUs as NVML tells of them, and its memory, which is the device "cpu" (PLC-3).

What NVML does not say is ``None``, never zero; what is wrong has a stable cause, with words and advice in :data:`CAUSES`.
"""

from __future__ import annotations

import msgspec

#: the device of pools that run on the processors
CPU = "cpu"

#: stable causes of missing or doubtful samples: what is so, and what a person can do
CAUSES: dict[str, tuple[str, str]] = {
    "package-missing": (
        "the package nvidia-ml-py is not installed, so GPUs are not looked for",
        "With an NVIDIA GPU: python -m pip install 'llama-orch[nvidia]'",
    ),
    "library-missing": (
        "the driver's library libnvidia-ml.so.1 is not there",
        "With an NVIDIA GPU: install its driver; in a container pass it in (NVIDIA container toolkit).",
    ),
    "driver-not-loaded": (
        "the NVIDIA driver is not loaded",
        "Load it (modprobe nvidia) and look at the kernel's log (dmesg) for why it was not; it is looked for again by itself.",
    ),
    "driver-gone": (
        "the NVIDIA driver answered before and does not any more",
        "It was unloaded, reset or crashed: dmesg says which (Xid). It is looked for again by itself.",
    ),
    "driver-mismatch": (
        "the driver's library and its kernel module are of different versions",
        "The driver was updated: reboot, or reload the module, then start this program again.",
    ),
    "no-permission": (
        "this user may not speak to the driver",
        "Give it access to /dev/nvidia* (the groups video and render, or the container's devices).",
    ),
    "symbols-missing": (
        "the driver's library lacks functions that are needed",
        "Update the driver; it is too old for this version of nvidia-ml-py.",
    ),
    "no-answer": (
        "the driver has not answered for a while",
        "A call into it hangs. dmesg may say why (Xid); often only a reset of the GPU or a reboot helps.",
    ),
    "gpu-lost": (
        "the GPU is lost: it fell off the bus, or was taken away",
        "dmesg says why (Xid 79); check power and seating, then reboot. It is looked for again by itself.",
    ),
    "reset-required": ("the GPU has to be reset", "nvidia-smi --gpu-reset, with nothing running on it, or a reboot."),
    "mig-enabled": (
        "the GPU is split into MIG instances, which are devices of their own",
        "Use the instances' UUIDs (MIG-…), or switch MIG off: nvidia-smi -mig 0.",
    ),
    "memory-unknown": (
        "the driver does not tell this GPU's memory",
        "It shares the host's memory: nothing is placed on it by itself; name it in a pool's `devices`.",
    ),
    "nvml-error": ("NVML answers with an error", "dmesg may say more; it is asked again by itself."),
    "stale": (
        "the last sample is old",
        "The host's pool-managerd has not sent a newer one: `llama-orch status` and its log say more.",
    ),
    "no-sample": (
        "there is no sample of this host yet",
        "Its pool-managerd has not sent one: `llama-orch status` and its log say more.",
    ),
}


class GpuProcess(msgspec.Struct, frozen=True, gc=False):
    """A process that uses a GPU."""

    pid: int
    #: bytes that it takes on the GPU; ``None``: the driver does not say
    used_bytes: int | None = None


class GpuReading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU, or one MIG instance of one, at one moment."""

    #: "GPU-…", or "MIG-…" of an instance
    uuid: str
    name: str = ""
    #: as NVML counts; it may change with a reboot
    index: int = 0
    pci_bus_id: str = ""
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    #: the driver's own, beside ``used_bytes``; ``None``: it is part of them
    reserved_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_c: int | None = None
    power_mw: int | None = None
    #: ``None``: the driver does not say
    processes: list[GpuProcess] | None = None
    #: UUID of the GPU that this is an instance of
    parent_uuid: str = ""
    #: one of :data:`CAUSES`, or ""
    trouble: str = ""
    #: what the driver said
    detail: str = ""


class MemoryReading(msgspec.Struct, frozen=True, gc=False):
    """A host's memory, as far as this program's processes may use it."""

    #: the machine's, or its control group's limit where that is less
    total_bytes: int
    #: that can be taken without swapping
    available_bytes: int
    #: the control group's limit; 0 = none
    limit_bytes: int = 0


class HostSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All devices of one host at one moment."""

    host: str
    memory: MemoryReading | None = None
    driver_version: str = ""
    cuda_version: str = ""
    gpus: list[GpuReading] = []
    #: one of :data:`CAUSES`, or "": why GPUs are not known, or not known to be so any more
    trouble: str = ""
    #: what the driver or the system said
    detail: str = ""
    #: of what is said of the GPUs, when this was sent; memory is read at that moment
    age_ms: int = 0


def words(cause: str, detail: str = "") -> str:
    """A cause as a sentence's part, with what the driver said."""
    said = CAUSES.get(cause, (cause, ""))[0]
    return f"{said} ({detail})" if detail else said


def advice(cause: str) -> str:
    """What a person can do about a cause."""
    return CAUSES.get(cause, ("", ""))[1]
