"""An NVIDIA driver that is a file: a real ``libnvidia-ml.so.1``, loaded by the real ``nvidia-ml-py``, whose GPUs a test
changes while the program under test runs.

>>> driver = FakeDriver(tmp_path, build_nvml(tmp_path))
>>> driver.set(RTX_3090, RTX_3060)
>>> process = subprocess.Popen([...], env=os.environ | driver.env)
>>> driver.set(RTX_3090.but(used=20_000))               # the other one is gone
>>> driver.set(RTX_3090, lines=["hang nvmlDeviceGetUtilizationRates"])
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from llama_orch.core.devices import HostSample

SOURCE = Path(__file__).with_name("fake_nvml.c")
Kind = Literal["full", "old", "bare"]


def build_nvml(folder: Path, kind: Kind = "full") -> Path:
    """The folder of a built library. :raises RuntimeError: there is no C compiler, or it fails."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError(
            "these tests build a small C library and found neither cc nor gcc; "
            "install a C compiler (Debian, Ubuntu: apt-get install gcc libc6-dev)"
        )
    target = folder / f"nvml-{kind}"
    target.mkdir(exist_ok=True)
    define = {"full": [], "old": ["-DOLD"], "bare": ["-DBARE"]}[kind]
    command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", *define, "-Wl,-soname,libnvidia-ml.so.1"]
    done = subprocess.run(
        [*command, "-o", str(target / "libnvidia-ml.so.1"), str(SOURCE)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{SOURCE.name} does not build:\n{done.stderr}")
    return target


@dataclasses.dataclass(frozen=True)
class FakeGpu:
    """One GPU; memory in MiB, power in milliwatts. ``None`` is what the driver does not tell."""

    uuid: str
    name: str = ""
    total: int | None = None
    used: int | None = 0
    reserved: int | None = None
    util: int | None = 0
    temp: int | None = 40
    power: int | None = 30_000
    pci: str = ""
    #: error code of all that is asked of it; 0 = it answers
    lost: int = 0
    mig: int = 0
    #: it does not tell of its processes
    quiet: int = 0
    #: pid -> MiB; ``None`` where the driver does not tell how much
    procs: dict[int, int | None] = dataclasses.field(default_factory=dict)

    def but(self, **changes: Any) -> FakeGpu:
        """The same GPU, changed."""
        return dataclasses.replace(self, **changes)

    def line(self) -> str:
        """As the library reads it."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "procs"}
        given["procs"] = ",".join(f"{pid}:{'-' if used is None else used}" for pid, used in self.procs.items())
        return "gpu " + "|".join(f"{name}={value}" for name, value in given.items() if value not in (None, ""))


RTX_3090 = FakeGpu(
    "GPU-3a90c0de-0000-4000-8000-000000000001",
    "NVIDIA GeForce RTX 3090",
    total=24_576,
    used=1_024,
    reserved=300,
    util=7,
    temp=41,
    power=60_000,
    pci="00000000:01:00.0",
)
RTX_3060 = FakeGpu(
    "GPU-3060c0de-0000-4000-8000-000000000002",
    "NVIDIA GeForce RTX 3060",
    total=12_288,
    used=512,
    reserved=200,
    util=0,
    temp=35,
    power=20_000,
    pci="00000000:05:00.0",
)


class FakeDriver:
    """The library and the file of its GPUs.

    :param library: folder that :func:`build_nvml` answered.
    """

    def __init__(self, folder: Path, library: Path) -> None:
        self._library = library
        self._file = folder / "gpus.txt"
        self.set()

    @property
    def env(self) -> dict[str, str]:
        """Environment variables for the process that shall see these GPUs."""
        return {"LD_LIBRARY_PATH": str(self._library), "FAKE_NVML": str(self._file)}

    def set(self, *gpus: FakeGpu, lines: Sequence[str] = ()) -> None:
        """From now on there are these GPUs, and these other lines; see fake_nvml.c."""
        part = self._file.with_suffix(".part")
        part.write_text("\n".join([*(gpu.line() for gpu in gpus), *lines, ""]), "utf-8")
        part.replace(self._file)


class Looking:
    """A process that looks at a driver's GPUs all the time."""

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("look.py"))],
            env=os.environ | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def until(self, condition: Callable[[HostSample], bool], what: str) -> HostSample:
        """The first sample from now on of which the condition holds."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + 30
        sample = None
        while time.monotonic() < deadline:
            line = self._process.stdout.readline()
            assert line, f"it ended before {what}; last seen: {sample}"
            sample = msgspec.json.decode(line, type=HostSample)
            if condition(sample):
                return sample
        raise AssertionError(f"never came: {what}; last seen: {sample}")

    def end(self) -> int:
        """End it in order; its exit status."""
        assert self._process.stdout is not None
        if not self._process.stdout.closed:
            self._process.communicate(timeout=20)
        return self._process.wait()
