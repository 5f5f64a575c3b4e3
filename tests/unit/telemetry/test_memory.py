"""What a host's processes may use is what the machine has, or less where their control group is limited."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.core.devices import MemoryReading
from llama_orch.pools.telemetry.memory import read_memory

KIB = 1_024


class Machine:
    """Folders that look like /proc and /sys/fs/cgroup."""

    def __init__(self, folder: Path, group: str = "/") -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()
        (self.proc / "meminfo").write_text(
            "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  600 kB\nHugePages_Total: 0\n"
        )
        (self.proc / "self" / "cgroup").write_text(f"0::{group}\n")

    def limit(self, group: str, most: str, taken: int, inactive: int = 0) -> None:
        folder = self.cgroups / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{taken}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")

    def read(self) -> MemoryReading | None:
        return read_memory(self.proc, self.cgroups)


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "/a")
    machine.limit("a", "max", 5)
    assert machine.read() == MemoryReading(1000 * KIB, 600 * KIB, 0)


def test_a_limit_holds_and_cache_that_can_be_dropped_is_free(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "/a/b")
    machine.limit("a/b", str(400 * KIB), 300 * KIB, inactive=50 * KIB)
    assert machine.read() == MemoryReading(400 * KIB, 150 * KIB, 400 * KIB)


def test_the_tightest_of_the_groups_above_decides(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "/a/b")
    machine.limit("a/b", str(500 * KIB), 100 * KIB)
    machine.limit("a", str(450 * KIB), 440 * KIB)
    assert machine.read() == MemoryReading(450 * KIB, 10 * KIB, 450 * KIB)


def test_a_limit_beyond_the_machine_is_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.limit("", str(9000 * KIB), 100)
    assert machine.read() == MemoryReading(1000 * KIB, 600 * KIB, 0)


def test_more_taken_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "/x")
    machine.limit("x", str(100 * KIB), 120 * KIB)
    reading = machine.read()
    assert reading is not None
    assert reading.available_bytes == 0


@pytest.mark.parametrize("group", ["/../../other", "", "garbage"])
def test_a_group_that_cannot_be_seen_leaves_the_root_of_what_can(tmp_path: Path, group: str) -> None:
    machine = Machine(tmp_path, group)
    machine.limit("", str(400 * KIB), 0)
    assert machine.read() == MemoryReading(400 * KIB, 400 * KIB, 400 * KIB)


@pytest.mark.parametrize("text", [None, "MemTotal: 5 kB\n", "MemTotal: x kB\n"])
def test_a_system_that_does_not_say_is_not_guessed(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    assert read_memory(tmp_path, tmp_path) is None
