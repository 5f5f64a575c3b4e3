"""Installs that are killed in the middle: nothing half done counts, and the next one finishes."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from llama_orch.core.settings import ProvisioningSettings
from llama_orch.pools.identity import process_table
from llama_orch.pools.provisioning import EngineCatalog, provision

from .conftest import SERVER, sha256, tar_of, tree_of
from .sources import repository

pytestmark = pytest.mark.slow
#: installs, and kills itself when it reaches a phase for the given time
INSTALL = """
import os, signal, sys
from pathlib import Path
import msgspec
from llama_orch.core.settings import ProvisioningSettings
from llama_orch.pools.provisioning import EngineCatalog, provision
settings = msgspec.json.decode(sys.argv[1], type=ProvisioningSettings)
left = int(sys.argv[4])
def progress(phase, done, total, unit):
    global left
    if phase == sys.argv[3]:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
provision(settings, "llamacpp", catalog=EngineCatalog(Path(sys.argv[2])), progress=progress)
"""


def install(settings, directory, phase="", times=1):
    import msgspec

    argv = [sys.executable, "-c", INSTALL, msgspec.json.encode(settings).decode(), str(directory), phase, str(times)]
    return subprocess.Popen(argv)


@pytest.mark.parametrize("phase, times", [("download", 1), ("download", 3), ("unpack", 1), ("check", 1)])
def test_a_binary_whose_install_was_killed_is_not_there_and_comes_the_next_time(files, catalog, phase, times):
    archive = tar_of({"bin/llama-server*": SERVER, "bin/lib.so": os.urandom(4_000_000)})
    files.files["/a"] = archive
    settings = ProvisioningSettings(mode="binary", url=f"{files.url}/a", sha256=sha256(archive))
    assert install(settings, catalog.directory, phase, times).wait() == -signal.SIGKILL
    assert catalog.records() == []
    made = provision(settings, "llamacpp", catalog=catalog)
    assert [record.name for record in catalog.records()] == [made.name]
    assert not [name for name in tree_of(catalog.directory) if "staging" in name or ".part" in name]
    if phase == "download" and times == 3:
        assert files.ranges[1].startswith("bytes="), "what had come was not fetched again"


@pytest.mark.parametrize("phase", ["fetch", "configure", "build", "check"])
def test_a_build_that_was_killed_is_not_there_and_comes_the_next_time(tmp_path, catalog, phase):
    settings = ProvisioningSettings(mode="source", git=str(repository(tmp_path / "origin")), ref="v1")
    assert install(settings, catalog.directory, phase).wait() == -signal.SIGKILL
    assert catalog.records() == []
    made = provision(settings, "llamacpp", catalog=catalog)
    assert [record.name for record in catalog.records()] == [made.name]
    assert not [name for name in tree_of(catalog.directory) if "staging" in name]


def test_a_build_whose_installer_was_killed_is_ended_by_the_next_install(tmp_path, catalog):
    origin = repository(tmp_path / "origin")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stuck = ProvisioningSettings(mode="source", git=str(origin), ref="v1", cmake_flags=[f"-DWAIT_FOR={pipe}"])
    first = install(stuck, catalog.directory)
    with pipe.open("wb"):  # the build reads from it: it is in the middle
        first.kill()
        first.wait()
        [name] = [path.name.removeprefix(".staging-") for path in catalog.directory.glob(".staging-*")]
        marker = catalog.marker(name)
        assert list(process_table().marked(marker)), "its compiler lives on"
        with catalog.working(name) as place:
            assert list(place.iterdir()) == []
            assert not list(process_table().marked(marker))


def test_a_command_that_is_told_to_end_ends_its_build(tmp_path, catalog):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    argv = [sys.executable, "-m", "llama_orch.cli.main", "engines", "install", "--data-dir", str(tmp_path / "data")]
    argv += ["--git", str(repository(tmp_path / "origin")), "--ref", "v1", f"--flag=-DWAIT_FOR={pipe}"]
    command = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    with pipe.open("wb"):  # the build reads from it
        command.terminate()
        assert command.wait() == 143
    place = EngineCatalog(tmp_path / "data" / "engine-catalog")
    assert not list(process_table().marked(place.marker("").rpartition("//")[0]))
    assert place.records() == []


def test_an_install_waits_for_the_one_that_another_process_is_at(tmp_path, catalog):
    origin = repository(tmp_path / "origin")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    settings = ProvisioningSettings(mode="source", git=str(origin), ref="v1", cmake_flags=[f"-DWAIT_FOR={pipe}"])
    first = install(settings, catalog.directory)
    made = []
    second = threading.Thread(
        target=lambda: made.append(provision(settings, "llamacpp", catalog=EngineCatalog(catalog.directory)))
    )
    with pipe.open("wb"):
        second.start()
    second.join()
    assert first.wait() == 0
    assert [record.name for record in catalog.records()] == [made[0].name]
