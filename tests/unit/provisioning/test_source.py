"""Engines built from sources: a local repository, real git, real CMake."""

import os
import threading
from pathlib import Path

import pytest

from llama_orch.core.settings import ProvisioningSettings
from llama_orch.pools.provisioning import Preparing, ProvisionError, provision
from llama_orch.pools.provisioning.provision import install

from .conftest import tree_of
from .sources import commit, git, repository

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    return repository(tmp_path_factory.mktemp("git") / "a repository's")


def settings(origin, ref="v1", flags=()):
    return ProvisioningSettings(mode="source", git=str(origin), ref=ref, cmake_flags=list(flags))


def test_a_tag_is_built_pinned_to_its_commit_and_stands_in_the_catalog(origin, catalog):
    phases = []
    made = provision(settings(origin), "llamacpp", catalog=catalog, progress=lambda phase, *_: phases.append(phase))
    head = git(origin, "rev-parse", "v1^{commit}")
    assert (made.mode, made.version, made.digest, made.build) == ("source", "b1-abc", f"git:{head}", "cpu")
    assert made.options == ("--fit", "--metrics", "--slots")
    assert [phase for n, phase in enumerate(phases) if phase not in phases[:n]] == [
        *("resolve", "fetch", "configure", "build", "check"),
    ]
    [record] = catalog.records()
    assert os.access(made.argv[0], os.X_OK)
    assert made.argv[0].startswith(str(catalog.directory / record.name))
    assert tree_of(catalog.directory / record.name) == ["llama-server"], "sources and objects are gone"
    assert "cmake" in catalog.log_path(record.name).read_text()
    for path in (catalog.directory / f"{record.name}.json", catalog.log_path(record.name)):
        assert path.stat().st_mode & 0o777 == 0o600
    again = provision(settings(origin), "llamacpp", catalog=catalog, forbid_downloads=True)
    assert again == made, "nothing is fetched or built for it"
    assert catalog.records() == [record]


def test_flags_reach_cmake_one_by_one_and_decide_what_it_is_built_for(origin, catalog):
    flags = ["-DGGML_CUDA=ON", "-DODD=a b; touch x $(touch y)"]
    made = provision(settings(origin, flags=flags), "llamacpp", catalog=catalog, devices=["GPU-1"])
    assert made.build == "cuda"
    assert made.flags == tuple(flags)
    assert sorted(path.name for path in Path(made.library_path).iterdir()) == ["libggml-cuda.so", "llama-server"]
    assert provision(settings(origin), "llamacpp", catalog=catalog).name != made.name


def test_a_build_that_fails_says_how_it_ended_and_leaves_its_log_alone(origin, catalog):
    with pytest.raises(ProvisionError) as caught:
        provision(settings(origin, flags=["-DBREAK=ON"]), "llamacpp", catalog=catalog)
    assert caught.value.cause == "build-failed"
    assert "this was asked to break" in caught.value.message
    assert catalog.records() == []
    [log] = (catalog.directory / "logs").iterdir()
    assert "this was asked to break" in log.read_text()
    assert str(log) in caught.value.what_to_do
    assert not [name for name in tree_of(catalog.directory) if "staging" in name]


def test_a_branch_stays_at_its_commit_until_it_is_asked_for_anew(tmp_path, catalog):
    origin = repository(tmp_path / "origin")
    first = provision(settings(origin, "main"), "llamacpp", catalog=catalog)
    newer = commit(origin, "2")
    assert provision(settings(origin, "main"), "llamacpp", catalog=catalog) == first
    anew = install(settings(origin, "main"), "llamacpp", Preparing(catalog=catalog, refresh=True))
    assert (anew.digest, anew.version) == (f"git:{newer}", "b2-abc")
    assert [record.version for record in catalog.records()] == ["b2-abc"]
    same = install(settings(origin, "main"), "llamacpp", Preparing(catalog=catalog, refresh=True))
    assert same == anew


def test_a_commit_is_fetched_by_itself(tmp_path, catalog):
    origin = repository(tmp_path / "origin")
    first = git(origin, "rev-parse", "HEAD")
    commit(origin, "2")
    made = provision(settings(origin, first), "llamacpp", catalog=catalog)
    assert (made.version, made.digest) == ("b1-abc", f"git:{first}")


@pytest.mark.parametrize("ref", ["absent", "0" * 40])
def test_a_ref_that_is_not_there_is_told(origin, catalog, ref):
    with pytest.raises(ProvisionError) as caught:
        provision(settings(origin, ref), "llamacpp", catalog=catalog)
    assert caught.value.cause == "fetch-failed"


def test_a_repository_that_is_not_there_is_told_with_what_git_said(tmp_path, catalog):
    with pytest.raises(ProvisionError, match="does not appear to be a git repository") as caught:
        provision(settings(tmp_path / "absent"), "llamacpp", catalog=catalog)
    assert caught.value.cause == "fetch-failed"


def test_hooks_and_helpers_of_a_repository_do_not_run(tmp_path, catalog):
    origin = repository(tmp_path / "origin")
    hook = origin / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    with pytest.raises(ProvisionError):
        provision(settings(f"ext::sh -c touch% {tmp_path}/ran"), "llamacpp", catalog=catalog)
    provision(settings(origin), "llamacpp", catalog=catalog)
    assert not (tmp_path / "ran").exists()


def test_secrets_of_this_program_do_not_reach_the_build(origin, catalog, tmp_path):
    environment = {**os.environ, "HF_TOKEN": "very-secret", "HOME": str(tmp_path)}
    made = provision(settings(origin), "llamacpp", catalog=catalog, environment=environment)
    log = catalog.log_path(made.name).read_text()
    assert "very-secret" not in log
    assert not (tmp_path / ".cmake").exists(), "its home is its own directory"


def test_giving_up_ends_the_build_with_all_that_it_started(tmp_path, origin, catalog):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reached = threading.Event()

    def wait_for_the_build():
        # Opening it for writing returns once the build reads from it.
        with pipe.open("wb"):
            reached.set()
            ended.wait()

    ended = threading.Event()
    watcher = threading.Thread(target=wait_for_the_build)
    watcher.start()
    with pytest.raises(ProvisionError) as caught:
        provision(settings(origin, flags=[f"-DWAIT_FOR={pipe}"]), "llamacpp", catalog=catalog, stop=reached.is_set)
    assert caught.value.cause == "cancelled"
    ended.set()
    watcher.join()
    # Nobody reads any more: with a reader left this would succeed.
    with pytest.raises(OSError, match="No such device or address"):
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    assert catalog.records() == []


@pytest.mark.parametrize(
    "git_url, ref, flags, field",
    [
        ("", "v1", [], "git"),
        ("--upload-pack=touch x", "v1", [], "git"),
        ("ext::sh -c x", "v1", [], "git"),
        (f"https://user:{'geheim'}@example.test/x", "v1", [], "git"),
        ("/x", "", [], "ref"),
        ("/x", "--help", [], "ref"),
        ("/x", "a..b", [], "ref"),
        ("/x", "v1", ["-P", "script.cmake"], "cmake_flags"),
        ("/x", "v1", ["-DA=1\n-P"], "cmake_flags"),
        ("/x", "v1", ["--build"], "cmake_flags"),
    ],
)
def test_what_is_no_repository_ref_or_definition_is_refused_before_anything_runs(catalog, git_url, ref, flags, field):
    with pytest.raises(ProvisionError, match=f"provisioning.{field}") as caught:
        provision(settings(git_url, ref, flags), "llamacpp", catalog=catalog)
    assert caught.value.cause == "bad-configuration"
    assert "geheim" not in caught.value.message
    assert not catalog.directory.exists()
