"""Looks at a host's devices again and again, on a thread of its own: a driver that hangs keeps that thread and nobody else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ...core.devices import HostSample, MemoryReading
from .memory import read_memory
from .nvml import DriverReading, Nvml

_log = logging.getLogger("llama_orch.pools.telemetry")
#: a driver that says nothing for so long, and for so many periods, hangs
_PATIENCE_S, _PATIENCE_PERIODS = 5.0, 3
#: loading and opening it takes long where nothing keeps it awake and GPUs are many
OPENING_S = 20.0
_OPENING = frozenset({"", "nvmlInit", "nvmlShutdown"})
_JOIN_S = 1.0


class Sampler:
    """Keeps the latest sample of a host.

    :param host: name that samples bear.
    :param period_s: seconds between two looks; may be changed while it runs.
    :param nvml: asks the driver; used on the sampler's thread alone.
    :param patience_s: silence after which the driver hangs, once it is open.
    :param memory: reads the host's memory.
    :param monotonic: seconds; the clock that ``nvml`` has too.
    """

    def __init__(
        self,
        host: str,
        *,
        period_s: float = 1.0,
        patience_s: float = _PATIENCE_S,
        nvml: Nvml | None = None,
        memory: Callable[[], MemoryReading | None] = read_memory,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.host = host
        self.period_s = period_s
        self._patience_s = patience_s
        self._nvml = nvml if nvml is not None else Nvml(monotonic=monotonic)
        self._memory = memory
        self._monotonic = monotonic
        #: replaced as a whole, so that any thread may read it
        self._reading: DriverReading | None = None
        #: since when the driver is being asked; 0 = it is not
        self._asking_s = 0.0
        self._stop = threading.Event()
        self._first = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look. The thread is a daemon: should the driver hang, the program still ends."""
        self._asking_s = self._monotonic()
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; a thread that hangs in the driver is left behind."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def wait_first(self, timeout_s: float = OPENING_S) -> None:
        """Wait until the driver answered for the first time, whatever it said; not longer than a driver needs to open."""
        self._first.wait(timeout_s)

    def sample(self) -> HostSample:
        """The latest sample, with its age; never waits for the driver, and may be called from any thread."""
        reading, asking_s, now = self._reading, self._asking_s, self._monotonic()
        silent_s = now - asking_s if asking_s else 0.0
        trouble = detail = ""
        if reading is not None:
            trouble, detail = reading.trouble, reading.detail
        calling = self._nvml.calling
        patience_s = OPENING_S if calling in _OPENING else self._patience_s
        if silent_s > max(patience_s, _PATIENCE_PERIODS * self.period_s):
            trouble = "no-answer"
            detail = f"{calling or 'loading its library'} has not returned for {silent_s:.0f} s"
        elif reading is None:
            trouble = "no-sample"
        return HostSample(
            host=self.host,
            memory=self._memory(),
            driver_version=reading.driver_version if reading is not None else "",
            cuda_version=reading.cuda_version if reading is not None else "",
            gpus=reading.gpus if reading is not None else [],
            trouble=trouble,
            detail=detail,
            age_ms=round(max(0.0, now - reading.read_at_s) * 1000) if reading is not None else round(silent_s * 1000),
        )

    def _run(self) -> None:
        while True:
            self._asking_s = self._monotonic()
            try:
                reading = self._nvml.read()
            except Exception as error:  # a defect, ours or the package's: it is said, and tried again
                _log.exception("asking the NVIDIA driver failed")
                reading = DriverReading(read_at_s=self._monotonic(), trouble="nvml-error", detail=repr(error))
            self._reading, self._asking_s = reading, 0.0
            self._first.set()
            if self._stop.wait(self.period_s):
                break
        self._nvml.close()


def look_once(host: str = "local") -> HostSample:
    """One sample, for a command that wants no more; a driver that hangs is said to."""
    sampler = Sampler(host)
    sampler.start()
    sampler.wait_first()
    try:
        return sampler.sample()
    finally:
        sampler.stop()
