"""Causes: from what engines, drivers and the system really say."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama_orch.plugins.engines._llama_log import LOG_CAUSES
from llama_orch.pools.causes import CAUSES, in_log, of_exit, trouble
from llama_orch.pools.hosts import free_port
from llama_orch.pools.oom import OomKills

from ...engines.tiny_gguf import VARIANTS, write_model

#: log line -> cause
SAID = {
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 21870.00 MiB on device 0: cudaMalloc failed: out of memory": "vram-oom",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.76 GiB": "vram-oom",
    "ValueError: Free memory on device (3.1/23.7 GiB) on startup is less than desired GPU memory utilization": "vram-oom",
    "ggml_vulkan: Device memory allocation of size 4294967296 failed. vk::Device::allocateMemory: ErrorOutOfDeviceMemory": "vram-oom",
    "CUDA error: unspecified launch failure": "driver-reset",
    "NVRM: Xid (PCI:0000:01:00): 79, pid=1234, GPU has fallen off the bus.": "driver-reset",
    "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected": "driver-gone",
    "CUDA error: CUDA driver version is insufficient for CUDA runtime version": "driver-gone",
    "llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file: No such file": "missing-library",
    "ModuleNotFoundError: No module named 'vllm'": "missing-package",
    "OSError: [Errno 98] Address already in use": "port-taken",
    "llama_model_load: error loading model: unknown model architecture: 'nonesuch'": "wrong-architecture",
    "terminate called after throwing an instance of 'std::bad_alloc'": "host-oom",
}


@pytest.mark.parametrize("line", SAID)
@pytest.mark.parametrize("patterns", [LOG_CAUSES, ()], ids=["llamacpp", "any engine"])
def test_what_an_engine_said_names_its_cause_with_advice(line, patterns):
    if line.startswith(("torch.", "ValueError: ")):
        patterns = ()  # llama.cpp says no such thing
    found = of_exit(1, f"starting\n{line}\n  at somewhere\n", patterns)
    assert found.cause == SAID[line]
    assert found.detail == line[:500]
    assert found.advice


def test_a_damaged_model_is_known_by_its_engine():
    found = of_exit(3, "llama_model_load: error loading model: tensor data is not within the file bounds", LOG_CAUSES)
    assert (found.cause, found.permanent) == ("bad-model", True)


def test_signal_nine_is_lack_of_memory_only_when_the_system_says_so():
    assert of_exit(-signal.SIGKILL, "CUDA error: out of memory").cause == "killed"
    assert of_exit(-signal.SIGKILL, "", oom_kills=1).cause == "host-oom"
    assert of_exit(None, "", oom_kills=1).cause == "host-oom"


def test_other_ends_keep_the_last_words():
    assert of_exit(-signal.SIGSEGV, "one\ntwo\n") == trouble("engine-crashed", "ended by SIGSEGV; two")
    assert of_exit(7, "one\ntwo\n") == trouble("engine-exited", "exit status 7; two")
    assert of_exit(None, "") == trouble("engine-exited")


def test_a_port_is_for_a_person_to_free_only_when_no_other_may_be_taken():
    line = "port-taken: 127.0.0.1:8000"
    assert of_exit(3, line, LOG_CAUSES, fixed_port=True).permanent
    assert not of_exit(3, line, LOG_CAUSES).permanent


def test_what_a_launcher_calls_out_of_memory_is_told_apart():
    vague = ((r"out of memory", "out-of-memory", "Make it smaller."),)
    device = in_log("cudaMalloc failed: out of memory", vague)
    host = in_log("out of memory", vague)
    assert device is not None
    assert host is not None
    assert (device.cause, host.cause) == ("vram-oom", "host-oom")


def test_every_cause_says_what_to_do():
    for name, cause in CAUSES.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
        assert cause.advice.endswith((".", "`")), name


@pytest.mark.slow
@pytest.mark.real_llama
def test_real_llama_cpp_without_address_space_is_told_as_lack_of_memory(tmp_path):
    model = write_model(tmp_path / "m.gguf", VARIANTS["plain"])
    log = tmp_path / "log"

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))

    argv = [sys.executable, "-m", "llama_orch.pools.llamacpp_server", "--model", str(model), "--port", str(free_port())]
    with log.open("wb") as out:
        done = subprocess.run(
            [*argv, "--ctx-size", str(64 * 2**20), "--parallel", "1", "--threads", "1"],
            stdout=out,
            stderr=out,
            preexec_fn=limit,
            check=False,
            timeout=120,
        )
    found = of_exit(done.returncode, log.read_text(errors="replace"), LOG_CAUSES)
    assert found.cause == "host-oom", log.read_text(errors="replace")[-2000:]
    assert "quantization" in found.advice


def test_kills_by_lack_of_memory_are_counted_of_the_system_and_of_the_own_group(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "user/app").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/user/app\n")
    (proc / "vmstat").write_text("nr_free_pages 5\noom_kill 2\n")
    (groups / "user/app/memory.events").write_text("low 0\noom 4\noom_kill 3\n")
    kills = OomKills(proc, groups)
    assert kills.count() == 5
    (groups / "user/app/memory.events").write_text("oom_kill 4\n")
    assert kills.count() == 6
    assert OomKills(tmp_path / "none", tmp_path / "none").count() == 0


def test_the_runbook_names_every_cause():
    page = (Path(__file__).resolve().parents[3] / "docs/runbooks/pool-not-ready.md").read_text()
    named = {name for row in page.splitlines() if row.startswith("| `") for name in re.findall(r"`([^`]+)`", row)}
    assert {*CAUSES, "circuit-open"} - named == set()
