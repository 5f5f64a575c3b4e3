"""What memory a host has free, and what processes take of it: by the latest sample of its devices."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ..core import devices
from ..core.devices import CPU, HostSample
from . import causes
from .lifecycle import Trouble

#: what a sample may say of a GPU or its driver, and the cause that a pool has then
_CAUSES: Final[dict[str, str]] = {
    "gpu-lost": "driver-reset",
    "reset-required": "driver-reset",
    "driver-gone": "driver-gone",
    "driver-not-loaded": "driver-gone",
    "driver-mismatch": "driver-gone",
    "library-missing": "driver-gone",
    "no-answer": "driver-gone",
}


class HostRoom:
    """See :class:`~llama_orch.pools.preparing.Memory`.

    Args:
        sample: the latest look at the host's devices; called from any thread.
        proc: where procfs is.
    """

    def __init__(self, sample: Callable[[], HostSample], proc: Path = Path("/proc")) -> None:
        self._sample = sample
        self._proc = proc

    def free_bytes(self, wanted: Sequence[str]) -> Mapping[str, int]:
        """Free bytes of those devices that can be told."""
        sample = self._sample()
        found = {gpu.uuid: gpu.free_bytes for gpu in sample.gpus if gpu.free_bytes is not None and not gpu.trouble}
        if sample.memory is not None:
            found[CPU] = sample.memory.available_bytes
        return {device: found[device] for device in wanted if device in found}

    def total_bytes(self) -> Mapping[str, int]:
        """Memory of the GPUs that tell it, by UUID."""
        return {gpu.uuid: gpu.total_bytes for gpu in self._sample().gpus if gpu.total_bytes is not None}

    def trouble(self, wanted: Sequence[str]) -> Trouble | None:
        """Why these GPUs cannot be used now; ``None`` = nothing is known against it."""
        gpus = [device for device in wanted if device != CPU]
        if not gpus:
            return None
        sample = self._sample()
        cause = sample.trouble
        detail = sample.detail
        if cause not in _CAUSES:
            doubtful = next((gpu for gpu in sample.gpus if gpu.uuid in gpus and gpu.trouble in _CAUSES), None)
            if doubtful is None:
                return None
            cause, detail = doubtful.trouble, f"{doubtful.uuid} {doubtful.detail}".strip()
        return causes.trouble(_CAUSES[cause], devices.words(cause, detail), devices.advice(cause))

    def taken_bytes(self, pids: Sequence[int], wanted: Sequence[str]) -> Mapping[str, int]:
        """What these processes take: resident memory, and what the driver says of its GPUs."""
        found: dict[str, int] = {}
        if CPU in wanted:
            found[CPU] = sum(self._resident(pid) for pid in pids)
        for gpu in self._sample().gpus:
            if gpu.uuid in wanted and gpu.processes is not None:
                used = [one.used_bytes for one in gpu.processes if one.pid in pids and one.used_bytes is not None]
                if used:
                    found[gpu.uuid] = sum(used)
        return {device: count for device, count in found.items() if count}

    def _resident(self, pid: int) -> int:
        try:
            return int((self._proc / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0
