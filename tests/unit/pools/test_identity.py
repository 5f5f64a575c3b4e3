"""Which process is whose."""

import os
import subprocess
import sys

import msgspec
import pytest

from llama_orch.plugins import LaunchPlan
from llama_orch.pools import identity as identities
from llama_orch.pools.identity import MARKER, Identity, LinuxProcessTable, PosixProcessTable, process_table

IDENTITY = Identity(
    pool_id="a",
    generation=3,
    pid=1234,
    start_ticks=99,
    boot_id="boot",
    plan_digest="sha256:00",
    url="http://127.0.0.1:1",
    port=1,
    marker="owner/a/3",
)


class Table:
    """A process table of the test's own making."""

    def __init__(self, boot="boot", ticks=None):
        self.boot, self.ticks = boot, ticks or {}

    def boot_id(self):
        return self.boot

    def start_ticks(self, pid):
        return self.ticks.get(pid)

    def marked(self, prefix):
        return iter(())


def test_a_record_survives_its_way_over_the_disk(tmp_path):
    path = tmp_path / "engines" / "a.json"
    identities.write(path, IDENTITY)
    assert identities.read(path) == IDENTITY
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["a.json"], "no half-written file is left"


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": "x"}', b"\xff"])
def test_a_record_that_cannot_be_read_is_none(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert identities.read(path) is None


def test_a_record_that_is_not_there_is_none_and_can_be_forgotten(tmp_path):
    assert identities.read(tmp_path / "a.json") is None
    identities.forget(tmp_path / "a.json")


def test_a_write_that_fails_leaves_the_old_record(tmp_path):
    path = tmp_path / "a.json"
    identities.write(path, IDENTITY)
    blocked = tmp_path / "a.json.d"
    blocked.mkdir()
    with pytest.raises(OSError):
        identities.write(blocked, IDENTITY)
    assert identities.read(path) == IDENTITY
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.json.d"]


@pytest.mark.parametrize(
    "table, lives",
    [
        (Table(ticks={1234: 99}), True),
        (Table(ticks={1234: 100}), False),  # the pid went to another process
        (Table(boot="another", ticks={1234: 99}), False),
        (Table(), False),
    ],
)
def test_a_process_is_its_pid_its_start_and_the_boot(table, lives):
    assert identities.alive(IDENTITY, table) is lives


@pytest.mark.parametrize("table", [process_table(), PosixProcessTable()], ids=["native", "ps"])
def test_a_living_process_has_a_start_that_does_not_change_and_a_dead_one_has_none(table):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    first = table.start_ticks(child.pid)
    assert first is not None
    assert first == table.start_ticks(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert table.start_ticks(child.pid) is None, "its remains count as dead"
    child.communicate()
    assert table.start_ticks(child.pid) is None
    assert table.boot_id() == table.boot_id() != ""


def test_a_process_name_with_parentheses_and_spaces_is_read_rightly(tmp_path):
    (tmp_path / "7").mkdir()
    fields = " ".join(str(n) for n in range(4, 60))
    (tmp_path / "7" / "stat").write_text(f"7 (a) R (b c) S {fields}\n")
    assert LinuxProcessTable(tmp_path).start_ticks(7) == 22
    (tmp_path / "7" / "stat").write_text(f"7 (x) Z {fields}\n")
    assert LinuxProcessTable(tmp_path).start_ticks(7) is None


def test_marked_processes_are_found_by_their_environment():
    table = LinuxProcessTable()
    environment = {**os.environ, MARKER: "0123456789abcdef/test_marked/1"}
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment)
    try:
        assert list(table.marked("0123456789abcdef/test_marked/")) == [(child.pid, environment[MARKER])]
        assert list(table.marked("0123456789abcdef/test_mark/")) == []
    finally:
        child.communicate()


def test_plans_differ_when_what_they_start_differs():
    plan = LaunchPlan(argv=("a", "b"), url="http://x")
    digest = identities.plan_digest(plan)
    assert digest == identities.plan_digest(msgspec.structs.replace(plan, log_causes=(("a", "b", "c"),)))
    assert digest != identities.plan_digest(msgspec.structs.replace(plan, argv=("a", "c")))
    assert digest != identities.plan_digest(msgspec.structs.replace(plan, env={"V": "1"}))


def test_owners_are_told_apart_without_telling_their_paths(tmp_path):
    assert identities.owner_of(tmp_path) == identities.owner_of(tmp_path / "x" / "..")
    assert identities.owner_of(tmp_path) != identities.owner_of(tmp_path / "x")
    assert str(tmp_path) not in identities.owner_of(tmp_path)
