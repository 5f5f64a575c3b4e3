"""What `doctor` finds."""

from __future__ import annotations

import pytest

from llama_orch.cli import checks
from llama_orch.cli.detect import Gpu, Machine
from llama_orch.cli.starter_config import render

GPU = Gpu(0, "NVIDIA GeForce RTX 3090", "GPU-1234", 24 * 2**30)
NO_GPU = Machine(4, (), "NVML says: no driver")


def test_an_old_python_fails():
    assert checks.python_version((3, 10, 9)).verdict == "failed"
    assert checks.python_version().verdict == "ok"


def test_a_gpu_beside_a_build_for_processors_is_told_with_what_to_do():
    found = checks.engine(Machine(4, (GPU,)), lambda: ("1.0", "cpu"))
    assert (found.verdict, "RTX 3090" in found.detail) == ("warning", True)
    assert found.remedy.endswith("llama-orch engines install llamacpp --cuda")
    assert checks.engine(NO_GPU, lambda: ("1.0", "cpu"), gpu_seen=True).verdict == "warning"
    assert checks.engine(NO_GPU, lambda: ("1.0", "cpu"), gpu_seen=False).verdict == "ok"
    assert checks.engine(Machine(4, (GPU,)), lambda: ("1.0", "cuda")).verdict == "ok"


def test_gpus_in_trouble_are_a_warning_with_what_to_do_and_none_at_all_is_none():
    assert checks.gpus(Machine(4, (GPU,))).verdict == "ok"
    lost = checks.gpus(Machine(4, (GPU,), "GPU 1: lost", "Reboot."))
    assert (lost.verdict, lost.detail, lost.remedy) == (
        "warning",
        "NVIDIA GeForce RTX 3090, 24 GiB; GPU 1: lost",
        "Reboot.",
    )
    unseen = Machine(4, (), "no package", "Install it.")
    assert checks.gpus(unseen, gpu_seen=True).remedy == "Install it."
    assert checks.gpus(unseen, gpu_seen=False).verdict == "ok"


def test_a_missing_engine_fails_with_the_command_that_installs_it():
    found = checks.engine(NO_GPU, lambda: ("", ""))
    assert (found.verdict, found.remedy) == ("failed", "python -m pip install 'llama-orch[llamacpp]'")


@pytest.mark.parametrize(
    "free, mounts, verdict",
    [
        (2**40, "/dev/sda / ext4 rw 0 0\n", "ok"),
        (2**29, "/dev/sda / ext4 rw 0 0\n", "warning"),
        (2**20, "/dev/sda / ext4 rw 0 0\n", "failed"),
        (2**40, "host:/ / nfs4 rw 0 0\n", "warning"),
    ],
)
def test_room_and_kind_of_disk_decide_about_the_data_directory(tmp_path, free, mounts, verdict):
    assert checks.data_directory(tmp_path, free, mounts).verdict == verdict


def test_a_data_directory_that_is_a_file_fails(tmp_path):
    (tmp_path / "file").write_text("")
    assert checks.data_directory(tmp_path / "file" / "x", 2**40, "").verdict == "failed"


def test_the_bundled_model_is_there():
    assert checks.bundled_model().verdict == "ok"


def test_the_log_check_wants_lines_about_tasks():
    assert checks._log('{"task_id": "t", "human": "Task t ended."}\nplain\n').verdict == "ok"
    assert checks._log('{"msg": "x"}\n').verdict == "failed"


@pytest.mark.parametrize("machine", [NO_GPU, Machine(16, (GPU, Gpu(1, "odd\n  - id: x", "GPU-2", 12 * 2**30)))])
def test_the_starter_configuration_is_sound_on_any_machine(machine, tmp_path, call):
    path = tmp_path / "c.yaml"
    path.write_text(render(machine))
    done = call("config", "check", str(path))
    assert (done.status, done.err) == (0, "")
    for gpu in machine.gpus:
        assert gpu.uuid in render(machine)


def test_init_writes_once_and_replaces_only_when_forced(call, tmp_path):
    path = tmp_path / "deep" / "c.yaml"
    assert call("init", str(path)).out == f"{path}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    again = call("init", str(path))
    assert (again.status, "exists already" in again.err) == (1, True)
    assert call("init", str(path), "--force").status == 0
    assert call("init", "x.toml").status == 2
    assert call("init").out.endswith("llama-orch/config.yaml\n")
