"""Images, through a stand-in for podman and docker that writes down what it was told."""

import json
import sys

import pytest

from llama_orch.core.engine_ports import ContainerSpec
from llama_orch.core.settings import ProvisioningSettings
from llama_orch.pools.provisioning import ProvisionError, provision
from llama_orch.pools.provisioning.container import end_strays, runtime_of

DIGEST = "sha256:" + "ab" * 32
NAME = "example.test/ggml/llama.cpp:server-cuda"
STANDIN = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
place = Path(__file__).parent
words = sys.argv[1:]
with open(place / "calls", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
state = json.loads((place / "state").read_text())
if words[:2] == ["image", "inspect"]:
    found = state["images"].get(words[2])
    if found is None:
        sys.exit("no such image")
    print(json.dumps([found]))
elif words[0] == "pull":
    if words[1] not in state["registry"]:
        print("manifest unknown")
        sys.exit(1)
    state["images"][words[1]] = state["registry"][words[1]]
    (place / "state").write_text(json.dumps(state))
elif words[0] == "ps":
    for line in state["running"]:
        print(line)
elif words[0] != "rm":
    sys.exit(9)
"""


class Runtime:
    """A directory with a stand-in on the PATH."""

    def __init__(self, folder):
        self.folder = folder
        self.say()

    def add(self, *kinds):
        for kind in kinds:
            (self.folder / kind).write_text(STANDIN)
            (self.folder / kind).chmod(0o755)
        return self

    def say(self, images=None, registry=None, running=()):
        state = {"images": images or {}, "registry": registry or {}, "running": list(running)}
        (self.folder / "state").write_text(json.dumps(state))

    @property
    def environment(self):
        return {"PATH": str(self.folder), "HOME": str(self.folder), "HF_TOKEN": "very-secret"}

    @property
    def calls(self):
        log = self.folder / "calls"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def runtime(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    return Runtime(folder)


def image(*digests):
    return {"Id": "sha256:" + "cd" * 32, "RepoDigests": list(digests)}


def prepared(runtime, catalog, name=NAME, **more):
    settings = ProvisioningSettings(mode="container", image=name, runtime=more.pop("wanted", ""))
    return provision(settings, "llamacpp", catalog=catalog, environment=runtime.environment, **more)


def test_an_image_is_pulled_once_and_runs_by_the_digest_that_came(runtime, catalog):
    runtime.add("podman").say(registry={NAME: image(f"example.test/ggml/llama.cpp@{DIGEST}")})
    made = prepared(runtime, catalog)
    assert made.container == ContainerSpec(
        kind="podman", runtime=str(runtime.folder / "podman"), image=f"example.test/ggml/llama.cpp@{DIGEST}"
    )
    assert (made.mode, made.digest, made.build) == ("container", DIGEST, "cuda")
    assert [call[0] for call in runtime.calls] == ["image", "pull", "image"]
    assert any("not pinned" in warning and f"{NAME}@{DIGEST}" in warning for warning in made.warnings)
    assert prepared(runtime, catalog, forbid_downloads=True) == made
    assert [call[0] for call in runtime.calls[3:]] == ["image"], "it was only looked for"
    [record] = catalog.records()
    assert record.image == f"example.test/ggml/llama.cpp@{DIGEST}"


def test_a_pinned_image_is_taken_by_its_word(runtime, catalog):
    name = f"{NAME}@{DIGEST}"
    runtime.add("docker").say(images={name: image(name)})
    made = prepared(runtime, catalog, name)
    assert made.warnings == ()
    assert made.container is not None
    assert (made.container.kind, made.container.image, made.digest) == ("docker", name, DIGEST)


def test_an_image_that_was_built_here_has_no_digest_and_says_so(runtime, catalog):
    runtime.add("docker").say(images={"mine:1": image()})
    made = prepared(runtime, catalog, "mine:1")
    assert made.container is not None
    assert made.container.image == "mine:1"
    assert "has no digest" in made.warnings[0]


def test_a_pull_that_is_forbidden_or_fails_is_told_and_nothing_counts(runtime, catalog):
    runtime.add("podman")
    with pytest.raises(ProvisionError) as caught:
        prepared(runtime, catalog, forbid_downloads=True)
    assert caught.value.cause == "downloads-forbidden"
    assert [call[0] for call in runtime.calls] == ["image"]
    with pytest.raises(ProvisionError, match="manifest unknown") as caught:
        prepared(runtime, catalog)
    assert caught.value.cause == "fetch-failed"
    assert catalog.records() == []


def test_a_runtime_whose_daemon_is_not_there_is_told_as_that(runtime, catalog):
    (runtime.folder / "docker").write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon at x.' >&2; exit 1\n")
    (runtime.folder / "docker").chmod(0o755)
    with pytest.raises(ProvisionError, match="docker: Cannot connect to the Docker daemon") as caught:
        prepared(runtime, catalog, forbid_downloads=True)
    assert caught.value.cause == "missing-tool"


def test_the_runtime_is_the_configured_or_the_first_that_is_there(runtime, tmp_path):
    with pytest.raises(ProvisionError, match="podman or docker") as caught:
        runtime_of("", runtime.environment)
    assert caught.value.cause == "missing-tool"
    runtime.add("docker")
    assert runtime_of("", runtime.environment)[0] == "docker"
    runtime.add("podman")
    assert runtime_of("", runtime.environment)[0] == "podman"
    assert runtime_of("docker", runtime.environment)[0] == "docker"
    (runtime.folder / "podman").unlink()
    with pytest.raises(ProvisionError, match="no podman on"):
        runtime_of("podman", runtime.environment)


@pytest.mark.parametrize("name", ["", "--privileged", "a b", "x@sha256:12", "x;rm", "X/y", "x@y"])
def test_what_is_no_image_is_refused_before_anything_runs(runtime, catalog, name):
    with pytest.raises(ProvisionError, match=r"provisioning\.image") as caught:
        prepared(runtime.add("podman"), catalog, name)
    assert caught.value.cause == "bad-configuration"
    assert runtime.calls == []


@pytest.mark.parametrize(
    "name, build",
    [
        ("ghcr.test/ggml-org/llama.cpp:server-cuda", "cuda"),
        ("ghcr.test/ggml-org/llama.cpp:server-rocm", "rocm"),
        ("ghcr.test/ggml-org/llama.cpp:server-vulkan", "vulkan"),
        ("ghcr.test/ggml-org/llama.cpp:server-intel", "sycl"),
        ("ghcr.test/ggml-org/llama.cpp:server", "cpu"),
        ("ghcr.test/ggml-org/llama.cpp:server-b4711", "cpu"),
        ("mine/engine:1", "unknown"),
    ],
)
def test_the_name_of_an_image_tells_what_it_was_built_for(runtime, catalog, name, build):
    runtime.add("docker").say(images={name: image()})
    assert prepared(runtime, catalog, name).build == build


def test_an_image_for_processors_is_refused_for_a_gpu(runtime, catalog):
    runtime.add("docker").say(images={"x/llama.cpp:server": image()})
    with pytest.raises(ProvisionError) as caught:
        prepared(runtime, catalog, "x/llama.cpp:server", devices=["GPU-1"])
    assert caught.value.cause == "cpu-build"


def test_containers_that_nobody_looks_after_are_ended_and_no_others(runtime, catalog):
    runtime.add("docker").say(images={"mine:1": image()}, running=["llama-orch-o-a-1", "llama-orch-o-a-2"])
    asked = []

    def kept():
        asked.append(runtime.calls[-1][0])
        return ["llama-orch-o-a-2", "llama-orch-o-b-1"]

    assert end_strays(catalog, "o", kept, environment=runtime.environment) == []
    assert runtime.calls == [], "without a container in the catalog nothing is asked"
    prepared(runtime, catalog, "mine:1")
    assert end_strays(catalog, "o", kept, environment=runtime.environment) == ["llama-orch-o-a-1"]
    listing, removal = runtime.calls[-2:]
    assert listing[:4] == ["ps", "--all", "--filter", "label=llama-orch.owner=o"]
    assert removal == ["rm", "--force", "llama-orch-o-a-1"]
    assert asked == ["ps"], "what is looked after is asked once it is known what there is"
    (runtime.folder / "docker").unlink()
    assert end_strays(catalog, "o", kept, environment=runtime.environment) == []
