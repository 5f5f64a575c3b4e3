"""Asks the NVIDIA driver through NVML (the package ``nvidia-ml-py``, imported as ``pynvml``); the only place that does.

Any call may fail, for a GPU or for all, and may hang: :class:`Nvml` is used on a thread that may hang with it
(:mod:`.sampler`), or by a command that a person can interrupt. It never raises; what it cannot tell it says.
"""

from __future__ import annotations

import ctypes
import importlib
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ...core.devices import GpuProcess, GpuReading

# Return values of NVML's functions, as its header numbers them.
UNINITIALIZED: Final = 1
NO_PERMISSION: Final = 4
DRIVER_NOT_LOADED: Final = 9
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
LIB_RM_VERSION_MISMATCH: Final = 18
GPU_NOT_FOUND: Final = 28

#: of the whole driver: there is no use in asking on
_OF_ALL: dict[int, str] = {
    UNINITIALIZED: "driver-gone",
    NO_PERMISSION: "no-permission",
    DRIVER_NOT_LOADED: "driver-not-loaded",
    LIBRARY_NOT_FOUND: "library-missing",
    FUNCTION_NOT_FOUND: "symbols-missing",
    LIB_RM_VERSION_MISMATCH: "driver-mismatch",
}
#: of one GPU
_OF_ONE: dict[int, str] = {GPU_IS_LOST: "gpu-lost", GPU_NOT_FOUND: "gpu-lost", RESET_REQUIRED: "reset-required"}
#: what is so by nature, or on purpose, and no reason to look for the GPU again
_LASTING = frozenset({"", "mig-enabled", "memory-unknown"})
_LIBRARY = "libnvidia-ml.so.1"
_TEMPERATURE_OF_GPU = 0
#: between two attempts to find a driver, or a GPU, that is not there: doubled each time
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class DriverReading(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver said in one round of questions."""

    #: when, by the reader's monotonic clock, seconds
    read_at_s: float
    driver_version: str = ""
    cuda_version: str = ""
    #: those seen earlier and gone since are among them, with their trouble
    gpus: list[GpuReading] = []
    #: one of :data:`llama_orch.core.devices.CAUSES`, or ""
    trouble: str = ""
    detail: str = ""


class _NvmlFailedError(Exception):
    """A call failed with a code of NVML's, or 0 where the module says none."""

    def __init__(self, function: str, code: int, said: str) -> None:
        super().__init__(f"{function}: {said}")
        self.code = code


class Nvml:
    """The driver, opened when it is first asked, and again after it was gone.

    :param module: what answers like ``pynvml``; ``None`` = the installed package.
    :param monotonic: seconds, for the pauses between attempts.
    """

    def __init__(self, module: Any = None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._module = module
        self._monotonic = monotonic
        self._open = False
        self._answered = False
        #: the last good reading of each GPU by its UUID, and which one stood at an index
        self._known: dict[str, GpuReading] = {}
        self._at: dict[int, str] = {}
        self._versions = ("", "")
        self._pause_s = FIRST_PAUSE_S
        self._again_s = 0.0
        self._last: DriverReading | None = None
        #: the function of NVML's that is being called, "" = none; read by other threads
        self.calling = ""

    def read(self) -> DriverReading:
        """One round of questions. While a driver that is not there is not due to be looked for again, the last answer."""
        now = self._monotonic()
        last = self._last
        if last is not None and last.trouble and now < self._again_s:
            return last
        if last is not None and not last.trouble and now >= self._again_s and _doubtful(last):
            self.close()  # a GPU that comes back is seen only by a driver that is opened anew
        try:
            self._start()
            gpus = self._gpus()
            reading = DriverReading(
                read_at_s=self._monotonic(), driver_version=self._versions[0], cuda_version=self._versions[1], gpus=gpus
            )
            self._answered = True
        except ImportError as error:
            reading = self._without("package-missing", str(error))
        except _NvmlFailedError as error:
            cause = _OF_ALL.get(error.code, "nvml-error")
            gone = self._answered and cause in {"driver-not-loaded", "driver-gone"}
            reading = self._without("driver-gone" if gone else cause, str(error))
            self.close()
        finally:
            self.calling = ""
        if not reading.trouble and not _doubtful(reading):
            self._pause_s = FIRST_PAUSE_S
            self._again_s = 0.0
        elif now >= self._again_s:
            self._again_s = self._monotonic() + self._pause_s
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        self._last = reading
        return reading

    def close(self) -> None:
        """Close the driver; it is opened again by the next :meth:`read`."""
        if self._open:
            self._open = False
            try:
                self._call("nvmlShutdown")
            except _NvmlFailedError:
                pass  # it is gone already
            finally:
                self.calling = ""

    # --- asking ------------------------------------------------------------------------------------------------------

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call one function. :raises _NvmlFailedError: it answered an error, or this package or driver has it not."""
        assert self._module is not None
        self.calling = function
        call = getattr(self._module, function, None)
        if call is None:
            raise _NvmlFailedError(function, FUNCTION_NOT_FOUND, "not in this version of nvidia-ml-py")
        try:
            return call(*arguments)
        except Exception as error:
            if isinstance(error, self._module.NVMLError):
                raise _NvmlFailedError(function, int(getattr(error, "value", 0)), str(error)) from error
            if type(error).__name__ == "NVMLLibraryMismatchError":  # its own type, for functions that are missing
                raise _NvmlFailedError(function, FUNCTION_NOT_FOUND, str(error)) from error
            raise

    def _maybe(self, function: str, *arguments: Any) -> Any:
        """As :meth:`_call`; ``None`` where this GPU or driver does not say."""
        try:
            return self._call(function, *arguments)
        except _NvmlFailedError as error:
            if error.code in _OF_ONE or error.code in {UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH}:
                raise
            return None

    def _start(self) -> None:
        if self._module is None:
            try:
                ctypes.CDLL(_LIBRARY)
            except OSError as error:  # most machines have none: they need not load the package, which is large
                raise _NvmlFailedError("loading", LIBRARY_NOT_FOUND, str(error)) from error
            self._module = importlib.import_module("pynvml")
        if self._open:
            return
        self._call("nvmlInit")
        self._open = True
        cuda = self._maybe("nvmlSystemGetCudaDriverVersion_v2")
        self._versions = (
            _text(self._maybe("nvmlSystemGetDriverVersion")),
            f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
        )

    def _gpus(self) -> list[GpuReading]:
        found: list[GpuReading] = []
        failed: list[tuple[int, str, str]] = []
        for index in range(self._call("nvmlDeviceGetCount")):
            try:
                found += self._one(index)
            except _NvmlFailedError as error:
                if error.code in _OF_ALL and error.code != NO_PERMISSION:
                    raise
                cause = _OF_ONE.get(error.code, "no-permission" if error.code == NO_PERMISSION else "nvml-error")
                failed.append((index, cause, str(error)))
        listed = {gpu.uuid for gpu in found}
        for index, cause, said in failed:
            # Which one it is can only be told from where it stood before; another may stand there since.
            known = self._known.get(self._at.get(index, ""))
            if known is None or known.uuid in listed:
                known = GpuReading(uuid=f"unknown-{index}", index=index)
            listed.add(known.uuid)
            found.append(_lost(known, cause, said))
        for gpu in found:
            if gpu.trouble in _LASTING:
                self._known[gpu.uuid] = gpu
                if not gpu.parent_uuid:
                    self._at[gpu.index] = gpu.uuid
        # An instance that is not there any more was taken away on purpose.
        self._known = {u: gpu for u, gpu in self._known.items() if u in listed or not gpu.parent_uuid}
        missing = [gpu for uuid, gpu in self._known.items() if uuid not in listed]
        found += [_lost(gpu, "gpu-lost", "the driver does not list it any more") for gpu in missing]
        return sorted(found, key=lambda gpu: gpu.index)

    def _one(self, index: int) -> list[GpuReading]:
        """The GPU at an index, and its MIG instances."""
        handle = self._call("nvmlDeviceGetHandleByIndex", index)
        gpu = self._device(handle, index)
        pci = self._maybe("nvmlDeviceGetPciInfo", handle)
        mode = self._maybe("nvmlDeviceGetMigMode", handle)
        gpu = msgspec.structs.replace(gpu, pci_bus_id=_text(getattr(pci, "busId", "")))
        if not mode or not mode[0]:
            return [gpu]
        parent = msgspec.structs.replace(gpu, trouble="mig-enabled")
        instances: list[GpuReading] = []
        for number in range(self._maybe("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            instance = self._maybe("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if instance is not None:  # there are fewer than there may be
                reading = self._device(instance, index)
                instances.append(msgspec.structs.replace(reading, parent_uuid=gpu.uuid, pci_bus_id=gpu.pci_bus_id))
        return [parent, *instances]

    def _device(self, handle: Any, index: int) -> GpuReading:
        uuid = _text(self._call("nvmlDeviceGetUUID", handle))
        total, used, free, reserved = self._memory(handle)
        rates = self._maybe("nvmlDeviceGetUtilizationRates", handle)
        temperature = self._maybe("nvmlDeviceGetTemperatureV", handle, _TEMPERATURE_OF_GPU)
        if temperature is None:  # older drivers and packages
            temperature = self._maybe("nvmlDeviceGetTemperature", handle, _TEMPERATURE_OF_GPU)
        return GpuReading(
            uuid=uuid,
            name=_text(self._maybe("nvmlDeviceGetName", handle)),
            index=index,
            total_bytes=total,
            used_bytes=used,
            free_bytes=free,
            reserved_bytes=reserved,
            utilization_percent=None if rates is None else int(rates.gpu),
            temperature_c=temperature,
            power_mw=self._maybe("nvmlDeviceGetPowerUsage", handle),
            processes=self._processes(handle),
            trouble="" if total is not None else "memory-unknown",
        )

    def _memory(self, handle: Any) -> tuple[int | None, int | None, int | None, int | None]:
        """Total, used, free and reserved bytes; the second version tells the driver's own memory apart."""
        version = getattr(self._module, "nvmlMemory_v2", None)
        memory = None if version is None else self._maybe("nvmlDeviceGetMemoryInfo", handle, version)
        if memory is not None:
            return int(memory.total), int(memory.used), int(memory.free), int(memory.reserved)
        memory = self._maybe("nvmlDeviceGetMemoryInfo", handle)
        if memory is None:  # e.g. a GPU that shares the host's memory
            return None, None, None, None
        return int(memory.total), int(memory.used), int(memory.free), None

    def _processes(self, handle: Any) -> list[GpuProcess] | None:
        told = [self._maybe(f"nvmlDeviceGet{kind}RunningProcesses", handle) for kind in ("Compute", "Graphics")]
        if all(processes is None for processes in told):
            return None
        # One that computes and draws is listed twice, with all that it takes.
        by_pid: dict[int, int | None] = {}
        for process in [process for processes in told for process in processes or ()]:
            before, taken = by_pid.get(process.pid), process.usedGpuMemory
            by_pid[process.pid] = before if taken is None else max(int(taken), before or 0)
        return [GpuProcess(pid, taken) for pid, taken in sorted(by_pid.items())]

    def _without(self, cause: str, detail: str) -> DriverReading:
        """No driver answers; GPUs that it told of are remembered."""
        gpus = [_lost(gpu, cause, "") for gpu in self._known.values()]
        version, cuda = self._versions
        return DriverReading(
            read_at_s=self._monotonic(),
            driver_version=version,
            cuda_version=cuda,
            gpus=gpus,
            trouble=cause,
            detail=detail,
        )


def _doubtful(reading: DriverReading) -> bool:
    """Whether a GPU is missing that may come back."""
    return any(gpu.trouble not in _LASTING for gpu in reading.gpus)


def _lost(gpu: GpuReading, cause: str, detail: str) -> GpuReading:
    """A GPU of which only is known what it is."""
    return GpuReading(
        uuid=gpu.uuid,
        name=gpu.name,
        index=gpu.index,
        pci_bus_id=gpu.pci_bus_id,
        total_bytes=gpu.total_bytes,
        parent_uuid=gpu.parent_uuid,
        trouble=cause,
        detail=detail,
    )


def _text(value: Any) -> str:
    """Older versions of the package answer bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if value is not None else ""
