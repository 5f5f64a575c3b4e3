"""What this machine has, as one sample of it tells."""

from __future__ import annotations

from llama_orch.cli.detect import Gpu, detect
from llama_orch.core.devices import GpuReading, HostSample

FIRST = GpuReading(uuid="GPU-0", name="NVIDIA GeForce RTX 3090", index=0, total_bytes=24 * 2**30)
SECOND = GpuReading(uuid="GPU-1", name="NVIDIA GeForce RTX 3060", index=1, total_bytes=12 * 2**30)


def test_all_cards_are_found():
    machine = detect(lambda: HostSample(host="local", gpus=[FIRST, SECOND]))
    assert machine.cpus >= 1
    assert machine.gpus[0] == Gpu(0, "NVIDIA GeForce RTX 3090", "GPU-0", 24 * 2**30)
    assert (machine.gpus[1].name, machine.gpus[1].memory_gib) == ("NVIDIA GeForce RTX 3060", 12)
    assert machine.gpu_note == ""


def test_a_card_that_is_lost_is_said_and_does_not_hide_the_other():
    lost = GpuReading(uuid="GPU-1", index=1, trouble="gpu-lost", detail="GPU is lost")
    machine = detect(lambda: HostSample(host="local", gpus=[FIRST, lost]))
    assert [gpu.uuid for gpu in machine.gpus] == ["GPU-0"]
    assert machine.gpu_note == "GPU 1: the GPU is lost: it fell off the bus, or was taken away (GPU is lost)"
    assert "dmesg" in machine.gpu_advice


def test_without_a_driver_there_is_a_reason():
    machine = detect(
        lambda: HostSample(host="local", trouble="driver-not-loaded", detail="nvmlInit: Driver Not Loaded")
    )
    assert (machine.gpus, machine.gpu_note) == ((), "the NVIDIA driver is not loaded (nvmlInit: Driver Not Loaded)")
    machine = detect(lambda: HostSample(host="local"))
    assert (machine.gpus, machine.gpu_note) == ((), "the driver sees none")


def test_without_the_package_gpus_are_not_looked_for_and_that_is_said():
    machine = detect(lambda: HostSample(host="local", trouble="package-missing", detail="No module named 'pynvml'"))
    assert machine.gpus == ()
    assert machine.gpu_note.startswith("the package nvidia-ml-py is not installed, so GPUs are not looked for")
    assert "No module" not in machine.gpu_note
    assert "llama-orch[nvidia]" in machine.gpu_advice
