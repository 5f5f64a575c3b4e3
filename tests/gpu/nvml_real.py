"""Telemetry on a machine with an NVIDIA GPU, held against the driver's own tool.

    .venv/bin/python tests/gpu/nvml_real.py                       # says what it found; skips without a GPU
    REQUIRE_REAL_GPU=1 .venv/bin/python tests/gpu/nvml_real.py    # fails without one

It is no part of the test suite: it needs the extra ``nvidia``, a driver with a GPU, and ``nvidia-smi`` beside it. What it
shows: the same GPUs, names, UUIDs, PCI addresses, totals and driver version as the tool; used memory, temperature and power
near those of the tool, which looks at another moment; samples whose age stays below what is configured for a while; and
how long one look takes, which is what the period has to be held against.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from llama_orch.core.coarse import coarse
from llama_orch.core.devices import GpuReading, HostSample
from llama_orch.pools.telemetry.nvml import Nvml
from llama_orch.pools.telemetry.sampler import Sampler

MIB = 1_048_576
FIELDS = "uuid,name,pci.bus_id,memory.total,memory.used,temperature.gpu,power.draw,driver_version,mig.mode.current"
#: what may pass between our look and the tool's
NEAR_MIB, NEAR_C, NEAR_MW = 512, 10, 100_000
LOOKS, WATCH_S, PERIOD_S = 50, 5.0, 0.5


class Failed(Exception):
    """Something is not as it has to be."""


def expect(condition: object, what: str) -> None:
    """:raises Failed: the condition does not hold."""
    if not condition:
        raise Failed(what)


def smi() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU."""
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    names = FIELDS.split(",")
    return [dict(zip(names, (v.strip() for v in line.split(",")), strict=True)) for line in done.stdout.splitlines()]


def number(text: str) -> float | None:
    """A value of the tool's; ``None`` for "[N/A]"."""
    try:
        return float(text)
    except ValueError:
        return None


def one_card(told: dict[str, str], gpu: GpuReading) -> None:
    """:raises Failed: our reading and the tool's are of different cards, or too far apart."""
    divided = told["mig.mode.current"] == "Enabled"
    expect(gpu.trouble == ("mig-enabled" if divided else ""), f"{gpu.uuid}: trouble {gpu.trouble!r} {gpu.detail}")
    expect(gpu.name == told["name"], f"{gpu.uuid}: {gpu.name!r}, the tool says {told['name']!r}")
    same = gpu.pci_bus_id.lower().lstrip("0") == told["pci.bus_id"].lower().lstrip("0")
    expect(same, f"{gpu.uuid}: at {gpu.pci_bus_id}, the tool says {told['pci.bus_id']}")
    near: list[tuple[str, float | None, float | None, float]] = [
        ("total MiB", number(told["memory.total"]), None if gpu.total_bytes is None else gpu.total_bytes / MIB, 1),
        ("used MiB", number(told["memory.used"]), None if gpu.used_bytes is None else gpu.used_bytes / MIB, NEAR_MIB),
        ("temperature", number(told["temperature.gpu"]), gpu.temperature_c, NEAR_C),
        (
            "power mW",
            None if number(told["power.draw"]) is None else float(told["power.draw"]) * 1_000,
            gpu.power_mw,
            NEAR_MW,
        ),
    ]
    for what, theirs, ours, tolerance in near:
        if theirs is None or ours is None:
            print(f"  {what}: ours {ours}, the tool's {theirs}")
        expect(
            (theirs is None) == (ours is None) or divided, f"{gpu.uuid}: {what} told by one of both: {theirs}, {ours}"
        )
        if theirs is not None and ours is not None:
            expect(abs(theirs - ours) <= tolerance, f"{gpu.uuid}: {what} {ours}, the tool says {theirs}")
    expect(gpu.processes is not None or divided, f"{gpu.uuid}: processes are not told")


def same_cards(sample: HostSample) -> None:
    """:raises Failed: the tool sees others."""
    told = smi()
    whole = {gpu.uuid: gpu for gpu in sample.gpus if not gpu.parent_uuid}
    expect(sorted(whole) == sorted(row["uuid"] for row in told), f"other GPUs: {sorted(whole)}, the tool: {told}")
    for row in told:
        expect(
            sample.driver_version == row["driver_version"], f"driver {sample.driver_version}, {row['driver_version']}"
        )
        one_card(row, whole[row["uuid"]])


def samples(sampler: Sampler) -> Iterator[HostSample]:
    """Samples for a while."""
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        time.sleep(PERIOD_S / 5)
        yield sampler.sample()


def watched(sampler: Sampler) -> None:
    """:raises Failed: a sample gets old or doubtful, or an idle machine makes a storm of events."""
    told, events, oldest = None, 0, 0
    for sample in samples(sampler):
        expect(not sample.trouble, f"{sample.trouble} {sample.detail}")
        oldest = max(oldest, sample.age_ms)
        loads = {gpu.uuid: 1_000 * (gpu.utilization_percent or 0) for gpu in sample.gpus}
        now = coarse(told, sample, loads)
        events += now != told
        told = now
    expect(oldest < 10 * PERIOD_S * 1_000, f"a sample was {oldest} ms old at a period of {PERIOD_S * 1000:.0f} ms")
    print(f"  {WATCH_S:.0f} s at {PERIOD_S * 1000:.0f} ms: oldest sample {oldest} ms, {events} coarse changes")


def cost() -> None:
    """How long one look takes."""
    nvml = Nvml()
    nvml.read()
    times = []
    for _ in range(LOOKS):
        before = time.perf_counter()
        nvml.read()
        times.append((time.perf_counter() - before) * 1_000)
    nvml.close()
    times.sort()
    print(f"  one look: median {statistics.median(times):.2f} ms, longest of {LOOKS} {times[-1]:.2f} ms")


def main() -> int:
    """Run all of it; 0 = well, 1 = failed."""
    required = os.environ.get("REQUIRE_REAL_GPU") == "1"
    sampler = Sampler("here", period_s=PERIOD_S)
    sampler.start()
    sampler.wait_first()
    sample = sampler.sample()
    if not sample.gpus:
        print(f"no GPU: {sample.trouble or 'the driver sees none'} {sample.detail}")
        return 1 if required else 0
    if shutil.which("nvidia-smi") is None:
        print("nvidia-smi is not there to compare with")
        return 1 if required else 0
    for gpu in sample.gpus:
        print(f"{gpu.index} {gpu.name} {gpu.uuid} {(gpu.total_bytes or 0) // MIB} MiB {gpu.trouble}")
    checks: list[Callable[[], None]] = [lambda: same_cards(sampler.sample()), lambda: watched(sampler), cost]
    for check in checks:
        try:
            check()
        except (Failed, subprocess.SubprocessError) as error:
            print(f"FAILED: {error}")
            return 1
    sampler.stop()
    print("as the driver's own tool says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
