"""`engines`: what it would do, what it does, what it lists and removes; and who is told that a GPU lies idle."""

from __future__ import annotations

import hashlib
import json
import os
from argparse import Namespace
from pathlib import Path

import pytest

from llama_orch.cli.commands.server import serve
from llama_orch.cli.config import load
from llama_orch.cli.detect import Gpu, Machine
from llama_orch.cli.engine_choice import choose
from llama_orch.cli.exits import CliError
from llama_orch.cli.gpu_build import notice

SERVER = b"#!/bin/sh\necho 'version: 7 (abc)'\n"
DIGEST = hashlib.sha256(SERVER).hexdigest()
COMMAND = "llama-orch engines install llamacpp --cuda"
GPUS = Machine(4, (Gpu(0, "NVIDIA GeForce RTX 3090", "GPU-1", 24 * 2**30),))


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "llama-server"
    path.write_bytes(SERVER)
    return path


def tools(folder, *names):
    """A PATH on which programs of these names are, and no others."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    return str(folder)


def plan(call, *arguments):
    done = call("engines", "install", "--dry-run", "--json", *arguments)
    assert done.status == 0, done.err
    return json.loads(done.out)


def installed(call, program):
    done = call("engines", "install", "--url", str(program), "--sha256", DIGEST)
    assert done.status == 0, done.err
    return done


def test_a_build_is_installed_listed_shown_and_removed(call, program):
    done = installed(call, program)
    name, _, rest = done.out.partition(":")
    assert rest == " b7-abc (cpu)\n"
    assert f"    sha256: {DIGEST}" in done.err, "the lines that name it in a configuration"
    assert installed(call, program).out == f"{name}: b7-abc (cpu), was there already\n"
    rows = [line.split("\t") for line in call("engines", "list").out.splitlines()]
    assert [row[:5] for row in rows[1:] if row[0] == name] == [[name, "llamacpp", "binary", "cpu", "b7-abc"]]
    assert [row[2] for row in rows[1:]] == ["package", "binary"]
    listed = json.loads(call("engines", "list", "--json").out)
    assert [engine["name"] for engine in listed["engines"]] == [name]
    shown = json.loads(call("engines", "show", name, "--json").out)
    assert shown["digest"] == f"sha256:{DIGEST}"
    assert os.access(shown["program"], os.X_OK)
    assert f"digest:       sha256:{DIGEST}" in call("engines", "show", name).out
    assert call("engines", "rm", name).status == 0
    assert not Path(shown["program"]).exists()
    for again in (call("engines", "rm", name), call("engines", "show", name)):
        assert (again.status, "engines list" in again.err) == (1, True)


def test_json_tells_whether_it_was_there(call, program):
    arguments = ("engines", "install", "--url", str(program), "--sha256", DIGEST, "--json")
    assert [json.loads(call(*arguments).out)["installed"] for _ in range(2)] == [True, False]


def test_what_cannot_be_installed_is_told_with_its_cause_and_leaves_nothing(call, program):
    failed = call("engines", "install", "--url", str(program), "--sha256", "0" * 64)
    assert (failed.status, DIGEST in failed.err) == (1, True)
    failed = call("engines", "install", "--url", "http://127.0.0.1:1/x", "--sha256", DIGEST, "--json")
    # A refusal that may pass is tried for a while; its cause is stable.
    assert json.loads(failed.err)["error"]["code"] == "fetch-failed"
    assert json.loads(call("engines", "list", "--json").out)["engines"] == []


def test_downloads_can_be_forbidden_for_all(call, tmp_path):
    call.environ["LLORCH_MANAGER__FORBID_DOWNLOADS"] = "true"
    refused = call("engines", "install", "--git", str(tmp_path), "--ref", "v1")
    assert (refused.status, "manager.forbid_downloads" in refused.err) == (1, True)


def test_the_one_command_builds_with_cuda_where_the_compilers_are(call, tmp_path):
    call.environ["PATH"] = tools(tmp_path / "bin", "git", "cmake", "g++", "nvcc", "podman")
    told = plan(call, "llamacpp", "--cuda")
    assert told["provisioning"] == {
        "mode": "source",
        "git": "https://github.com/ggml-org/llama.cpp",
        "ref": "master",
        "cmake_flags": ["-DGGML_CUDA=ON"],
    }
    assert "build it with -DGGML_CUDA=ON" in told["would"][-1]


@pytest.mark.parametrize("runtime", ["podman", "docker"])
def test_without_compilers_it_pulls_upstreams_image(call, tmp_path, runtime):
    call.environ["PATH"] = tools(tmp_path / "bin", "git", runtime)
    told = plan(call, "--cuda", "llamacpp")
    assert told["provisioning"] == {
        "mode": "container",
        "image": "ghcr.io/ggml-org/llama.cpp:server-cuda",
        "runtime": runtime,
    }
    assert "a C++ compiler" in told["would"][0]


def test_with_neither_it_says_what_each_way_lacks(call, tmp_path):
    path = tools(tmp_path / "bin", "git")
    call.environ["PATH"] = path
    refused = call("engines", "install", "llamacpp", "--cuda")
    assert (refused.status, "--sha256" in refused.err) == (1, True)
    nothing = Namespace(engine="llamacpp", build="cuda", pool="", url="", sha256="", git="", ref="", flag=[], image="")
    with pytest.raises(CliError) as caught:
        choose(nothing, [], {"PATH": path}, gpu_seen=True, cuda_folders=())
    assert all(word in caught.value.message for word in ("C++ compiler", "nvcc", "podman or docker"))


def test_the_cuda_compiler_is_found_beside_the_path_and_named_to_the_build(tmp_path):
    nothing = Namespace(engine="llamacpp", build="", pool="", url="", sha256="", git="", ref="", flag=[], image="")
    environ = {"PATH": tools(tmp_path / "bin", "git", "cmake", "c++")}
    folder = tools(tmp_path / "cuda", "nvcc")
    choice = choose(nothing, [], environ, gpu_seen=True, cuda_folders=(folder,))
    assert choice.settings.cmake_flags == ["-DGGML_CUDA=ON"]
    assert choice.environment == {"CUDACXX": f"{folder}/nvcc"}
    assert choose(nothing, [], environ, gpu_seen=False, cuda_folders=()).settings.cmake_flags == []


def test_a_pool_of_the_configuration_that_has_a_gpu_build_says_how(call, tmp_path, program):
    config = tmp_path / "c.yaml"
    config.write_text(
        "pools:\n"
        "  - {id: cpu, model: haiku}\n"
        "  - id: gpu\n"
        "    model: haiku\n"
        "    devices: GPU-1\n"
        f"    provisioning: {{mode: binary, url: '{program}?cuda', sha256: '{DIGEST}'}}\n"
    )
    for arguments in (("--cuda",), ("--pool", "gpu")):
        told = plan(call, *arguments, "--config", str(config))
        assert told["provisioning"]["sha256"] == DIGEST
        assert "pool gpu" in told["would"][0]
    refused = call("engines", "install", "--pool", "cpu", "--config", str(config))
    assert (refused.status, "mode package" in refused.err) == (1, True)
    refused = call("engines", "install", "--pool", "absent", "--config", str(config))
    assert (refused.status, "It has: cpu, gpu" in refused.err) == (2, True)


def test_what_is_named_goes_before_what_is_guessed(call, tmp_path):
    told = plan(call, "--cuda", "--ref", "b4711", "--flag=-DGGML_RPC=ON")
    assert told["provisioning"]["ref"] == "b4711"
    assert told["provisioning"]["cmake_flags"] == ["-DGGML_CUDA=ON", "-DGGML_RPC=ON"]
    told = plan(call, "--image", "x/y:1", "--runtime", "podman")
    assert told["provisioning"] == {"mode": "container", "image": "x/y:1", "runtime": "podman"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--url", "http://x/y"),
        ("--sha256", DIGEST),
        ("--url", "http://x/y", "--sha256", DIGEST, "--image", "z"),
        ("--cuda", "--cpu"),
        ("vllm", "--cuda"),
        ("--git", "ext::sh", "--ref", "x"),
        ("--flag=--script",),
    ],
)
def test_what_contradicts_itself_or_names_nothing_is_a_wrong_call(call, arguments):
    assert call("engines", "install", *arguments).status == 2


# --- a GPU beside a build for processors --------------------------------------------------------------------------


def told(tmp_path, config="", build="cpu", seen=True, version="1.0"):
    path = tmp_path / "c.yaml"
    path.write_text(config)
    loaded = load(path, environ={}, flags={"data_dir": str(tmp_path / "data")})
    return notice(loaded, seen=lambda: seen, look=lambda: GPUS, package=lambda: (version, build))


def test_a_gpu_that_the_engine_cannot_use_is_one_line_with_the_one_command(tmp_path):
    line = told(tmp_path)
    assert line.endswith(COMMAND)
    assert "RTX 3090" in line
    assert "\n" not in line
    assert told(tmp_path, version="", build="").endswith(COMMAND)


def test_nothing_is_said_where_there_is_nothing_to_do(tmp_path, call, program):
    external = "pools: [{id: a, model: m, provisioning: {mode: external, url: 'http://127.0.0.1:1'}}]\n"
    assert told(tmp_path, seen=False) == ""
    assert told(tmp_path, build="cuda") == ""
    assert told(tmp_path, external) == ""
    installed(call, program)
    assert told(tmp_path).endswith(COMMAND), "a build for processors helps no GPU"
    [record] = (tmp_path / "data" / "engine-catalog").glob("*.json")
    record.write_text(record.read_text().replace('"build": "cpu"', '"build": "cuda"'))
    assert told(tmp_path) == ""


def test_serve_says_it_before_it_starts(call, monkeypatch, tmp_path):
    assert serve.__module__ == "llama_orch.cli.commands.server"
    from llama_orch.cli import daemon, gpu_build

    monkeypatch.setattr(gpu_build, "notice", lambda loaded: f"… {COMMAND}")
    monkeypatch.setattr(daemon, "serve", lambda loaded, shell, *, until_eof: 0)
    assert call("serve").err == f"… {COMMAND}\n"
    assert call("serve", "--until-eof").err == "", "whoever starts it says so"
