"""Why an engine does not serve: stable causes with advice, told from its log, its exit status, and what was asked of it.

A cause never changes its name: clients, runbooks and tests go by it. What the log of one kind of engine says is known by
its plugin (``LaunchPlan.log_causes``); what all programs say alike (loaders, drivers, allocators) is known here.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from .lifecycle import Trouble


class Cause(Struct, frozen=True):
    """One cause."""

    advice: str
    #: trying again cannot help by itself
    permanent: bool = False


_LOG = "`llama-orch pools logs POOL` may say more."

CAUSES: Final[dict[str, Cause]] = {
    # on its way, or as wanted
    "starting": Cause("It will be ready by itself."),
    "provisioning": Cause("Its engine is being made available; it will be ready by itself."),
    "staging": Cause("Its model is being made available; it will be ready by itself."),
    "loading": Cause("The engine is loading its model; it will be ready by itself."),
    "reloading": Cause("It changes its model; it will be ready by itself."),
    "unloaded": Cause("A task for its model loads it."),
    # memory
    "vram-short": Cause("Lower ctx or slots, use a smaller quantization, or free memory of the GPU."),
    "ram-short": Cause("Lower ctx or slots, use a smaller quantization, or free memory of the machine."),
    "vram-oom": Cause("Lower ctx or slots, use a smaller quantization, or name more GPUs in `devices`."),
    "host-oom": Cause("The system's memory was exhausted: lower ctx or slots, use a smaller model, or add memory."),
    "killed": Cause("Somebody killed it with signal 9; it is started again."),
    # driver
    "driver-reset": Cause(
        "The GPU was reset or fell off the bus: look at `dmesg` for NVRM Xid lines; check power and cooling."
    ),
    "driver-gone": Cause(
        "The GPU's driver does not answer: check `nvidia-smi`; load the driver or restart the machine."
    ),
    # what somebody has to mend
    "bad-model": Cause("The model's file is damaged: fetch it again with `llama-orch models rm` and `pull`.", True),
    "wrong-architecture": Cause("This engine does not know the model's architecture: use a newer engine.", True),
    "missing-library": Cause("Install the library that the message names, or install the engine again.", True),
    "missing-package": Cause("Install the engine: `llama-orch engines install llamacpp`.", True),
    "missing-image": Cause("Pull the image: `llama-orch engines install llamacpp --image IMAGE`.", True),
    "cpu-build": Cause("Get the build for the GPU: `llama-orch engines install llamacpp --cuda`.", True),
    "bad-configuration": Cause("Correct what the message names; `llama-orch config check` checks all.", True),
    "cannot-start": Cause("Check that the data directory can be written and that the engine's program exists.", True),
    "port-taken": Cause("Another process listens there: stop it, or set provisioning.port to 0 for any free one."),
    "wrong-digest": Cause("What was fetched is not what was named: check the digest and where it comes from.", True),
    "fetch-failed": Cause("Check the network and the model's or engine's address; it is tried again."),
    # what a look from outside finds
    "unreachable": Cause("Start the engine, or correct provisioning.url."),
    "unhealthy": Cause(_LOG),
    "not-understood": Cause("Check that provisioning.url is a server of the engine that the pool names."),
    "preload-failed": Cause(f"The engine runs but does not decode. {_LOG}"),
    "unresponsive": Cause("The engine's process runs but does not answer; it is started again."),
    "stuck": Cause("The engine is busy with work that nobody waits for; it is started again."),
    "start-timeout": Cause(
        "Its log says how far it came: a slow disk or too little memory? `llama-orch pools logs POOL`."
    ),
    "plugin-failed": Cause("The engine's plugin has a defect; tell its author."),
    # none of these
    "engine-exited": Cause(_LOG),
    "engine-crashed": Cause(f"{_LOG} A newer engine, or another quantization, may not crash."),
}

#: what programs of any kind say; the first that matches a line names the cause
_GENERAL: Final[tuple[tuple[str, str], ...]] = (
    (
        (
            r"(?i)cudaMalloc failed|CUDA error.*out of memory|CUDA out of memory|hipErrorOutOfMemory|HIP out of memory|"
            r"ErrorOutOfDeviceMemory|OutOfDeviceMemory|unable to allocate (CUDA|ROCm|Vulkan|SYCL)\S* buffer|"
            r"failed to allocate (CUDA|ROCm|Vulkan|SYCL)\S* buffer|Free memory on device .* is less than desired"
        ),
        "vram-oom",
    ),
    (
        (
            r"(?i)GPU has fallen off the bus|\bXid\b|VK_ERROR_DEVICE_LOST|ErrorDeviceLost|GPU is lost|"
            r"CUDA error: (unspecified launch failure|the launch timed out|an illegal memory access|unknown error)|"
            r"cudaErrorECCUncorrectable|uncorrectable ECC"
        ),
        "driver-reset",
    ),
    (
        (
            r"(?i)no CUDA-capable device|CUDA driver version is insufficient|driver not loaded|driver/library version mismatch|"
            r"failed to initialize (CUDA|NVML)|couldn't communicate with the NVIDIA driver|cuInit.*(failed|error)|"
            r"no NVIDIA driver|CUDA initialization.*error"
        ),
        "driver-gone",
    ),
    (r"error while loading shared libraries|cannot open shared object file|Library not loaded:", "missing-library"),
    (r"No module named '?\w|ModuleNotFoundError", "missing-package"),
    (r"(?i)port-taken|address already in use|couldn't bind|EADDRINUSE", "port-taken"),
    (r"(?i)unknown model architecture|unknown architecture|architectures? .* not supported", "wrong-architecture"),
    (
        (
            r"(?i)std::bad_alloc|cannot allocate memory|out of memory|MemoryError|failed to allocate|unable to allocate|"
            r"ENOMEM|mmap failed"
        ),
        "host-oom",
    ),
)
_COMPILED: Final = tuple((re.compile(pattern), cause) for pattern, cause in _GENERAL)
#: a launcher's names for what is told apart here
_REFINED: Final = frozenset({"out-of-memory"})


def trouble(cause: str, detail: str = "", advice: str = "", *, fixed_port: bool = False) -> Trouble:
    """A cause as it is told. :param fixed_port: the pool may use no other port, so that one taken is not mended by itself."""
    known = CAUSES.get(cause, Cause(_LOG))
    permanent = known.permanent or (cause == "port-taken" and fixed_port)
    return Trouble(cause, detail[:500], advice or known.advice, permanent)


def in_log(log: str, log_causes: Iterable[tuple[str, str, str]] = (), *, fixed_port: bool = False) -> Trouble | None:
    """The cause that a log names, by what its plugin knows first; ``None`` when it names none."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    general = _general(lines, fixed_port)
    for pattern, cause, advice in log_causes:
        for line in lines:
            if re.search(pattern, line):
                if cause in _REFINED and general is not None:
                    return general
                return trouble("host-oom" if cause in _REFINED else cause, line, advice, fixed_port=fixed_port)
    return general


def of_exit(
    status: int | None,
    log: str,
    log_causes: Iterable[tuple[str, str, str]] = (),
    *,
    oom_kills: int = 0,
    fixed_port: bool = False,
) -> Trouble:
    """Why a process ended.

    Args:
        status: as :class:`subprocess.Popen` has it: negative = a signal; ``None`` = not known, it was not our child.
        log: the end of what it said.
        log_causes: ``(pattern, cause, advice)`` of its plugin.
        oom_kills: how often the system's out-of-memory killer struck while it ran.
        fixed_port: the pool may use no other port.
    """
    if status == -signal.SIGKILL:
        if oom_kills:
            return trouble("host-oom", "the engine was killed (signal 9) as the system ran out of memory")
        return trouble("killed", "the engine was killed (signal 9)")
    named = in_log(log, log_causes, fixed_port=fixed_port)
    if named is not None:
        return named
    if status is None and oom_kills:
        return trouble("host-oom", "the engine ended as the system ran out of memory")
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    if status is None:
        return trouble("engine-exited", last)
    if status < 0:
        name = signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
        return trouble("engine-crashed", f"ended by {name}; {last}".rstrip("; "))
    return trouble("engine-exited", f"exit status {status}; {last}".rstrip("; "))


def _general(lines: list[str], fixed_port: bool) -> Trouble | None:
    for pattern, cause in _COMPILED:
        for line in lines:
            if pattern.search(line):
                return trouble(cause, line, fixed_port=fixed_port)
    return None
