"""How a `llama-server` program and a container of it are started, and how GPUs are named to them."""

from pathlib import Path

import msgspec
import pytest

from llama_orch.plugins import ConfigError, ContainerSpec, ProvisionedEngine
from llama_orch.plugins.engines._llama_launch import plan

from ...engines.tiny_gguf import Shape, write_model

BIG, SMALL = "GPU-11111111-0000-0000-0000-000000000024", "GPU-22222222-0000-0000-0000-000000000012"
MEMORY = {BIG: 24 * 2**30, SMALL: 12 * 2**30}
DIGEST = "sha256:" + "ab" * 32
PROGRAM = ProvisionedEngine(
    mode="source",
    name="llamacpp-source-1",
    digest="git:1",
    build="cuda",
    argv=("/opt/llama-server",),
    library_path="/opt/lib",
)


def container(kind):
    return ProvisionedEngine(
        mode="container",
        build="cuda",
        container=ContainerSpec(kind=kind, runtime=f"/usr/bin/{kind}", image=f"example.test/llama@{DIGEST}"),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models, mine") / "m.gguf", Shape(layers=1, words=50))


def planned(model, engine, **more):
    return plan({"model_path": str(model), "port": 4711, "slots": 2, "ctx": 100, "provisioned": engine, **more})


def values(argv, option):
    return [argv[n + 1] for n, word in enumerate(argv) if word == option]


def test_a_program_that_can_cache_prompts_does_so_only_as_far_as_somebody_says(model):
    able = msgspec.structs.replace(PROGRAM, options=("--metrics", "--cache-ram"))
    assert values(planned(model, able).argv, "--cache-ram") == ["0"]
    assert values(planned(model, able, options={"cache_ram_mib": 64}).argv, "--cache-ram") == ["64"]
    unable = msgspec.structs.replace(PROGRAM, options=("--metrics",))
    assert "--cache-ram" not in planned(model, unable).argv


def test_a_program_is_started_with_upstreams_arguments_and_its_libraries(model):
    found = planned(model, PROGRAM, alias="m", env={"GGML_CUDA_FORCE_MMQ": 1}, options={"kv_type_k": "q8_0"})
    assert found.argv[0] == "/opt/llama-server"
    assert values(found.argv, "--model") == [str(model.resolve())]
    assert values(found.argv, "--host") == ["127.0.0.1"]
    assert values(found.argv, "--port") == ["4711"]
    assert values(found.argv, "--parallel") == ["2"]
    assert values(found.argv, "--ctx-size") == ["200"]
    assert values(found.argv, "--alias") == ["m"]
    assert values(found.argv, "--cache-type-k") == ["q8_0"]
    assert {"--metrics", "--slots", "--no-webui", "--no-context-shift"} <= set(found.argv)
    assert found.env["LD_LIBRARY_PATH"] == "/opt/lib"
    assert found.env["GGML_CUDA_FORCE_MMQ"] == "1"
    assert found.stop_argv == ()


def test_a_program_is_told_only_what_its_help_names(model):
    known = ProvisionedEngine(mode="binary", argv=("/x",), options=("--metrics", "--slots", "--fit", "--offline"))
    argv = planned(model, known).argv
    assert values(argv, "--fit") == ["off"]
    assert "--offline" in argv
    assert not {"--no-webui", "--no-context-shift", "--no-kv-unified"} & set(argv)


def test_a_program_of_another_build_is_another_plan(model):
    plans = [planned(model, ProvisionedEngine(mode="binary", argv=("/x",), digest=d)) for d in ("a", "b", "a")]
    assert plans[0].env != plans[1].env
    assert plans[0].env == plans[2].env


def test_one_gpu_is_named_by_its_uuid_and_holds_all_layers(model):
    found = planned(model, PROGRAM, devices=[SMALL])
    assert found.env["CUDA_VISIBLE_DEVICES"] == SMALL
    assert found.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert values(found.argv, "--n-gpu-layers") == ["999"]
    assert values(found.argv, "--device") == ["CUDA0"], "a GPU that is not there is an error"
    assert values(found.argv, "--split-mode") == ["none"]
    assert not values(found.argv, "--tensor-split")


@pytest.mark.parametrize("engine", [PROGRAM, None], ids=["program", "package"])
def test_no_gpu_is_seen_by_a_pool_of_the_processors(model, engine):
    found = planned(model, engine, devices=["cpu"])
    assert found.env["CUDA_VISIBLE_DEVICES"] == ""
    assert values(found.argv, "--n-gpu-layers") == ["0"]
    assert not values(found.argv, "--device")


def test_a_build_for_processors_is_told_nothing_of_gpus(model):
    found = planned(model, ProvisionedEngine(mode="binary", argv=("/x",), build="cpu"))
    assert not {"--n-gpu-layers", "--device", "--split-mode", "--tensor-split"} & set(found.argv)


@pytest.mark.parametrize(
    "devices, wanted, memory, shares",
    [
        ([BIG, SMALL], [], MEMORY, "2,1"),
        ([SMALL, BIG], [], MEMORY, "1,2"),
        ([BIG, SMALL], [1, 1], MEMORY, "2,1"),
        ([BIG, SMALL], [3, 1], MEMORY, "3,1"),
        ([BIG, SMALL], [], {}, "1,1"),
        ([BIG, SMALL], [5, 7], {}, "5,7"),
    ],
)
def test_several_gpus_share_the_model_explicitly_and_the_smallest_is_not_overfilled(
    model, devices, wanted, memory, shares
):
    found = planned(model, PROGRAM, devices=devices, tensor_split=wanted, gpu_memory_bytes=memory)
    assert values(found.argv, "--tensor-split") == [shares]
    assert values(found.argv, "--split-mode") == ["layer"]
    assert values(found.argv, "--device") == ["CUDA0,CUDA1"]
    assert found.env["CUDA_VISIBLE_DEVICES"] == ",".join(devices)


def test_shares_that_do_not_match_the_gpus_are_refused_by_name(model):
    for wrong in ([1], [1, 2, 3], [0, 0]):
        with pytest.raises(ConfigError) as caught:
            planned(model, PROGRAM, devices=[BIG, SMALL], tensor_split=wrong)
        assert caught.value.field == "tensor_split"


def test_a_build_whose_gpus_have_no_uuid_is_refused_for_them(model):
    vulkan = ProvisionedEngine(mode="binary", argv=("/x",), build="vulkan")
    with pytest.raises(ConfigError) as caught:
        planned(model, vulkan, devices=[BIG])
    assert caught.value.field == "devices"
    assert planned(model, vulkan, devices=["cpu"]).argv


@pytest.mark.parametrize("kind", ["podman", "docker"])
def test_a_container_is_confined_published_on_loopback_and_named_after_its_start(model, kind):
    found = planned(model, container(kind), marker="0123456789abcdef/pool-a/7", devices=[BIG])
    argv = found.argv
    assert argv[:3] == (f"/usr/bin/{kind}", "run", "--rm")
    assert values(argv, "--pull") == ["never"]
    assert values(argv, "--name") == ["llama-orch-0123456789abcdef-pool-a-7"]
    assert values(argv, "--label") == [
        "llama-orch.owner=0123456789abcdef",
        "llama-orch.pool=pool-a",
        "llama-orch.generation=7",
    ]
    assert values(argv, "--publish") == ["127.0.0.1:4711:4711/tcp"]
    assert values(argv, "--cap-drop") == ["ALL"]
    assert "no-new-privileges" in values(argv, "--security-opt")
    assert "--read-only" in argv
    uid, _, gid = values(argv, "--user")[0].partition(":")
    assert uid.isdigit()
    assert gid.isdigit()
    assert not {"--privileged", "--net", "--network", "--volume", "--ipc", "--pid"} & set(argv)
    image = argv.index(f"example.test/llama@{DIGEST}")
    assert values(argv[image:], "--host") == ["0.0.0.0"], "its own network; published on loopback alone"
    assert values(argv[image:], "--model") == ["/models/m.gguf"]
    assert found.stop_argv == (f"/usr/bin/{kind}", "rm", "--force", "llama-orch-0123456789abcdef-pool-a-7")


def test_the_model_alone_is_seen_inside_and_cannot_be_written(model):
    [mount] = values(planned(model, container("docker")).argv, "--mount")
    assert mount == f'type=bind,"source={model.resolve()}",target=/models/m.gguf,readonly', "commas are quoted"


def test_a_model_in_parts_is_seen_with_all_of_them(tmp_path, model):
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(model.read_bytes())
    argv = planned(part, container("podman")).argv
    assert values(argv, "--mount") == [f"type=bind,source={tmp_path.resolve()},target=/models,readonly"]
    assert values(argv, "--model") == ["/models/m-00001-of-00002.gguf"]


def test_podman_and_docker_each_get_the_gpus_in_their_own_words(model):
    podman = planned(model, container("podman"), devices=[BIG, SMALL], gpu_memory_bytes=MEMORY)
    assert values(podman.argv, "--device") == [f"nvidia.com/gpu={BIG}", f"nvidia.com/gpu={SMALL}", "CUDA0,CUDA1"]
    docker = planned(model, container("docker"), devices=[BIG, SMALL], gpu_memory_bytes=MEMORY)
    assert values(docker.argv, "--gpus") == [f'"device={BIG},{SMALL}"']
    assert values(planned(model, container("docker"), devices=[BIG]).argv, "--gpus") == [f"device={BIG}"]
    for found in (podman, docker):
        assert values(found.argv, "--tensor-split") == ["2,1"]
        assert "CUDA_VISIBLE_DEVICES" in values(found.argv, "--env")
    plain = planned(model, container("podman"))
    assert not values(plain.argv, "--device")


def test_values_of_variables_stay_out_of_the_arguments(model):
    found = planned(model, container("docker"), env={"HF_TOKEN": "very-secret"})
    assert "HF_TOKEN" in values(found.argv, "--env")
    assert not any("very-secret" in word for word in found.argv)
    assert found.env["HF_TOKEN"] == "very-secret"


def test_a_container_can_be_bounded_in_memory(model):
    argv = planned(model, container("docker"), options={"memory_limit_mib": 2048, "batch": 64}).argv
    assert values(argv, "--memory") == ["2048m"]
    assert values(argv, "--batch-size") == ["64"]
    assert "--memory" not in planned(model, container("docker")).argv
    for wrong in ("2g", True, -1):
        with pytest.raises(ConfigError, match="memory_limit_mib"):
            planned(model, container("docker"), options={"memory_limit_mib": wrong})
    with pytest.raises(ConfigError, match="memory_limit_mib"):
        planned(model, PROGRAM, options={"memory_limit_mib": 1})


def test_no_word_of_any_plan_is_a_shells(model):
    odd = Path(model).with_name("$(touch x); rm -rf.gguf")
    odd.write_bytes(Path(model).read_bytes())
    for engine in (PROGRAM, container("podman"), container("docker")):
        argv = planned(odd, engine, alias="a; b").argv
        assert "a; b" in argv
        assert not {"sh", "bash", "-c"} & set(argv[:3])
