"""Engines fetched as an archive or a program, the catalog they go to, and modes that fetch nothing."""

import errno
import os
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.settings import ProvisioningSettings
from llama_orch.pools.provisioning import EngineCatalog, ProvisionError, provision
from llama_orch.pools.provisioning.elf import needed
from llama_orch.pools.provisioning.inspection import ask, build_of
from llama_orch.pools.provisioning.problems import disk_problem
from llama_orch.pools.provisioning.provision import package_build

from .conftest import SERVER, sha256, tar_of, tree_of, zip_of

ELF = b"\x7fELF\x02\x01\x01" + bytes(57)
CPU = tar_of({"build/bin/llama-server*": SERVER, "build/bin/libggml-cpu.so": ELF})
CUDA = tar_of({"build/bin/llama-server*": SERVER, "build/bin/libggml-cuda.so": ELF})


def settings(files, content=CPU, path="/llama.tar.gz", **more):
    files.files[path] = content
    return ProvisioningSettings(mode="binary", url=files.url + path, sha256=more.pop("sha256", sha256(content)), **more)


def test_an_archive_is_fetched_checked_unpacked_asked_and_recorded(files, catalog):
    heard = []
    made = provision(settings(files), "llamacpp", catalog=catalog, installed=heard.append)
    assert heard == catalog.records()
    assert (made.mode, made.version, made.build) == ("binary", "b4711-abc1234", "cpu")
    assert made.digest == f"sha256:{sha256(CPU)}"
    assert made.options == ("--fit", "--metrics", "--model", "--no-webui", "--slots")
    assert made.argv == (str(catalog.directory / made.name / "build/bin/llama-server"),)
    assert made.library_path == str(catalog.directory / made.name / "build/bin")
    [record] = catalog.records()
    written = msgspec.json.decode((catalog.directory / f"{record.name}.json").read_bytes())
    assert {name: written[name] for name in ("engine", "mode", "version", "build", "path", "digest")} == {
        "engine": "llamacpp",
        "mode": "binary",
        "version": "b4711-abc1234",
        "build": "cpu",
        "path": str(catalog.directory / record.name),
        "digest": made.digest,
    }
    assert written["installed_at_ms"] > 0
    assert (catalog.directory / f"{record.name}.json").stat().st_mode & 0o777 == 0o600
    assert catalog.directory.stat().st_mode & 0o777 == 0o700
    left = [name for name in tree_of(catalog.directory) if ".part" in name or "staging" in name]
    assert left == []


def test_the_same_again_asks_nobody(files, catalog):
    made = provision(settings(files), "llamacpp", catalog=catalog)
    asked = len(files.ranges)
    before = {path: path.stat().st_mtime_ns for path in catalog.directory.rglob("*") if path.is_file()}
    unwanted = []
    again = provision(settings(files), "llamacpp", catalog=catalog, forbid_downloads=True, installed=unwanted.append)
    assert unwanted == []
    assert again == made
    elsewhere = settings(files, path="/mirror.tar.gz")
    assert provision(elsewhere, "llamacpp", catalog=catalog) == made, "the digest names it, wherever it lies"
    assert len(files.ranges) == asked
    assert {path: path.stat().st_mtime_ns for path in catalog.directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", [SERVER, zip_of({"bin/llama-server": SERVER})], ids=["program", "zip"])
def test_a_program_and_a_zip_do_as_well(files, catalog, content):
    made = provision(settings(files, content), "llamacpp", catalog=catalog)
    assert os.access(made.argv[0], os.X_OK)


def test_without_a_digest_nothing_is_fetched(files, catalog):
    with pytest.raises(ProvisionError, match=r"provisioning\.sha256 is empty") as caught:
        provision(settings(files, sha256=""), "llamacpp", catalog=catalog)
    assert caught.value.cause == "bad-configuration"
    assert files.ranges == []


def test_forbidden_downloads_are_refused_with_what_to_do_and_files_that_are_here_are_not(files, catalog, tmp_path):
    with pytest.raises(ProvisionError, match=r"manager\.forbid_downloads") as caught:
        provision(settings(files), "llamacpp", catalog=catalog, forbid_downloads=True)
    assert (caught.value.cause, files.ranges) == ("downloads-forbidden", [])
    assert "engines install" in caught.value.what_to_do
    wanted = ProvisioningSettings(mode="source", git=str(tmp_path), ref="y")
    with pytest.raises(ProvisionError) as caught:
        provision(wanted, "llamacpp", catalog=catalog, forbid_downloads=True)
    assert caught.value.cause == "downloads-forbidden"
    (tmp_path / "here.tar.gz").write_bytes(CPU)
    local = ProvisioningSettings(mode="binary", url=str(tmp_path / "here.tar.gz"), sha256=sha256(CPU))
    assert provision(local, "llamacpp", catalog=catalog, forbid_downloads=True).build == "cpu"


@pytest.mark.parametrize(
    "content, cause, match",
    [
        (tar_of({"README": b"x"}), "bad-archive", "there is no llama-server in it; it holds README"),
        (tar_of({"../llama-server*": SERVER}), "bad-archive", "climbs"),
        (b"#!/bin/sh\nexit 7\n", "bad-archive", "ended with 7"),
        (
            b"#!/bin/sh\necho 'error while loading shared libraries: libcuda.so.1' >&2; exit 127\n",
            "missing-library",
            "libcuda",
        ),
        (ELF, "wrong-architecture", "cannot be run"),
        (b"#!/absent/interpreter\n", "bad-archive", "cannot be run"),
    ],
    ids=["no-server", "hostile", "fails", "library", "other-machine", "no-interpreter"],
)
def test_what_does_not_work_here_does_not_count_and_leaves_nothing(files, catalog, content, cause, match):
    with pytest.raises(ProvisionError, match=match) as caught:
        provision(settings(files, content), "llamacpp", catalog=catalog)
    assert caught.value.cause == cause
    assert catalog.records() == []
    assert {name.split("/")[0] for name in tree_of(catalog.directory)} <= {".locks", "logs", "downloads"}


def test_a_wrong_digest_does_not_count_either(files, catalog):
    with pytest.raises(ProvisionError) as caught:
        provision(settings(files, sha256="0" * 64), "llamacpp", catalog=catalog)
    assert caught.value.cause == "wrong-digest"
    assert catalog.records() == []


def test_engines_without_a_program_are_refused_by_name(files, catalog):
    with pytest.raises(ProvisionError, match="'vllm' does not come as a program"):
        provision(settings(files), "vllm", catalog=catalog)


def test_a_build_for_processors_is_refused_for_a_gpu_with_the_one_command(files, catalog):
    with pytest.raises(ProvisionError) as caught:
        provision(settings(files), "llamacpp", catalog=catalog, devices=["GPU-1"])
    assert caught.value.cause == "cpu-build"
    assert caught.value.what_to_do.endswith("llama-orch engines install llamacpp --cuda")
    assert provision(settings(files, CUDA), "llamacpp", catalog=catalog, devices=["GPU-1"]).build == "cuda"


def test_the_package_serves_processors_and_gpus_get_what_was_installed_for_them(files, catalog):
    package = ProvisioningSettings()
    made = provision(package, "llamacpp", catalog=catalog)
    assert (made.mode, made.argv, made.container) == ("package", (), None)
    assert made.version == f"xllamacpp {metadata.version('xllamacpp')}"
    assert made.build == "cpu"
    with pytest.raises(ProvisionError) as caught:
        provision(package, "llamacpp", catalog=catalog, devices=["GPU-1"])
    assert caught.value.cause == "cpu-build"
    provision(settings(files), "llamacpp", catalog=catalog)
    with pytest.raises(ProvisionError):
        provision(package, "llamacpp", catalog=catalog, devices=["GPU-1"])
    cuda = provision(settings(files, CUDA), "llamacpp", catalog=catalog, devices=["GPU-1"])
    assert provision(package, "llamacpp", catalog=catalog, devices=["GPU-1"]) == cuda
    assert provision(package, "llamacpp", catalog=catalog) == made


def test_an_external_engine_needs_nothing_and_other_packages_are_their_plugins_business(catalog):
    assert provision(ProvisioningSettings(mode="external", url="http://x"), "any", catalog=catalog).mode == "external"
    assert provision(ProvisioningSettings(), "mock", catalog=catalog).mode == "package"
    assert package_build("no-such-package") == ("", "")
    assert not catalog.directory.exists()


def test_installing_side_by_side_fetches_once(files, catalog):
    made, errors = [], []
    wanted = settings(files)

    def go():
        try:
            made.append(provision(wanted, "llamacpp", catalog=EngineCatalog(catalog.directory)))
        except ProvisionError as error:
            errors.append(error)

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert made == [made[0]] * 6
    assert len(files.ranges) == 1


def test_what_is_removed_is_gone_with_its_files_and_can_come_again(files, catalog):
    made = provision(settings(files), "llamacpp", catalog=catalog)
    assert catalog.remove(made.name)
    assert not catalog.remove(made.name)
    assert catalog.records() == []
    assert not [name for name in tree_of(catalog.directory) if made.name in name and not name.startswith(".locks")]
    assert provision(settings(files), "llamacpp", catalog=catalog) == made


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b", "/etc"])
def test_names_that_are_none_find_and_remove_nothing(catalog, name, tmp_path):
    catalog.directory.mkdir(parents=True)
    assert catalog.get(name) is None
    assert not catalog.remove(name)


def test_records_that_are_damaged_or_lost_their_files_do_not_count(files, catalog):
    made = provision(settings(files), "llamacpp", catalog=catalog)
    record = catalog.directory / f"{made.name}.json"
    whole = record.read_bytes()
    for damaged in (b"", b"{", whole[:100], whole.replace(made.name.encode(), b"another")):
        record.write_bytes(damaged)
        assert catalog.records() == []
    record.write_bytes(whole)
    assert len(catalog.records()) == 1
    Path(made.argv[0]).unlink()
    assert catalog.records() == []
    assert provision(settings(files), "llamacpp", catalog=catalog) == made, "it is made anew"


@pytest.mark.parametrize(
    "name, content, build",
    [
        ("libggml-cuda.so", ELF, "cuda"),
        ("libggml-vulkan.so", ELF, "vulkan"),
        ("llama-server", ELF + b"libcuda.so.1\0", "cpu"),
        ("readme-about-libcuda.so", b"libcudart.so", "cpu"),
    ],
)
def test_what_a_program_was_built_for_is_told_by_the_libraries_it_needs(tmp_path, name, content, build):
    (tmp_path / name).write_bytes(content)
    assert build_of([tmp_path / "absent", tmp_path / name]) == build


def test_the_libraries_that_a_program_needs_are_read_from_it(tmp_path):
    (tmp_path / "cuda.c").write_text("int cuda(void) { return 1; }")
    (tmp_path / "main.c").write_text("int cuda(void); int main(void) { return cuda(); }")
    (tmp_path / "plain.c").write_text("int main(void) { return 0; }")
    for argv in (
        ["-shared", "-fPIC", "-Wl,-soname,libcudart.so.12", "-o", "libcudart.so", "cuda.c"],
        ["-o", "llama-server", "main.c", "libcudart.so"],
        ["-o", "plain", "plain.c"],
    ):
        subprocess.run(["cc", *argv], cwd=tmp_path, check=True)
    assert needed(tmp_path / "llama-server")[0] == "libcudart.so.12"
    assert "libcudart.so.12" not in needed(tmp_path / "plain")
    assert build_of([tmp_path / "llama-server"]) == "cuda"
    assert build_of([tmp_path / "plain"]) == "cpu"
    content = (tmp_path / "llama-server").read_bytes()
    (tmp_path / "half").write_bytes(content[: len(content) // 50])
    (tmp_path / "text").write_text("#!/bin/sh")
    assert needed(tmp_path / "half") == needed(tmp_path / "text") == []


@given(st.data())
def test_a_damaged_program_needs_nothing_absurd(tmp_path_factory, data):
    raw = bytearray(Path(sys.executable).resolve().read_bytes()[:6000])
    for _ in range(data.draw(st.integers(0, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1) | st.integers(0, 300))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("elf") / "x"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    assert all(len(name) <= 512 for name in needed(path))


def test_a_disk_that_is_full_or_closed_is_told_as_such(files, catalog, tmp_path):
    catalog.directory.parent.mkdir(parents=True)
    catalog.directory.write_text("not a folder")
    with pytest.raises(ProvisionError) as caught:
        provision(settings(files), "llamacpp", catalog=catalog)
    assert (caught.value.cause, caught.value.permanent) == ("disk-failed", False)
    assert str(catalog.directory) in caught.value.message
    full = disk_problem(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"))
    assert (full.cause, full.message) == ("disk-full", "/x: No space left on device")


@pytest.mark.parametrize(
    "said, version",
    [
        ("version: 4711 (abc1234)", "b4711-abc1234"),
        ("version: 0.5.0-dev (build 1, commit bc36bfc)", "0.5.0-dev b1-bc36bfc"),
        ("version: 0 (unknown)", "b0-unknown"),
        ("version: 7", "7"),
        ("a server of 2030", "a server of 2030"),
    ],
)
def test_the_version_is_the_programs_own_word(tmp_path, said, version):
    program = tmp_path / "llama-server"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\n")
    program.chmod(0o700)
    assert ask(program, {"PATH": os.defpath}).version == version
