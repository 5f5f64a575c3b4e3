"""How llama.cpp's server is started, what its log means, and which weights it runs."""

import hashlib
import re
import struct
import sys

import pytest

from llama_orch.plugins import ConfigError, read_head
from llama_orch.plugins.engines._llama_identity import engine_version, file_digest, model_digest
from llama_orch.plugins.engines._llama_launch import LOG_CAUSES, plan
from llama_orch.plugins.engines._llama_wire import Meta

from ...engines.tiny_gguf import Shape, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m.gguf", Shape(layers=1, words=50))


def value_of(argv, option):
    return argv[argv.index(option) + 1]


def test_a_plan_starts_the_packages_server_on_loopback_without_a_shell(model):
    planned = plan({"model_path": str(model), "port": 4711, "slots": 3, "ctx": 500, "alias": "m"})
    assert planned.argv[:3] == (sys.executable, "-m", "llama_orch.pools.llamacpp_server")
    assert planned.url == "http://127.0.0.1:4711"
    assert value_of(planned.argv, "--host") == "127.0.0.1"
    assert value_of(planned.argv, "--parallel") == "3"
    assert value_of(planned.argv, "--ctx-size") == "1500", "the server divides its context by its slots"
    assert value_of(planned.argv, "--alias") == "m"
    assert value_of(planned.argv, "--threads") == "1", "a small model"


@pytest.mark.parametrize("slots, ctx, total", [(0, 0, 4 * 2048), (2, 0, 2 * 2048), (64, 0, 64 * 512), (1, 10, 10)])
def test_without_a_context_each_slot_gets_the_models_within_reason(model, slots, ctx, total):
    planned = plan({"model_path": str(model), "port": 1, "slots": slots, "ctx": ctx})
    assert value_of(planned.argv, "--ctx-size") == str(total)


def test_prompts_are_cached_in_the_hosts_memory_only_as_far_as_somebody_says(model):
    assert value_of(plan({"model_path": str(model), "port": 1}).argv, "--cache-ram") == "0"
    said = plan({"model_path": str(model), "port": 1, "options": {"cache_ram_mib": 512}}).argv
    assert value_of(said, "--cache-ram") == "512"
    assert said.count("--cache-ram") == 1


def test_options_of_the_plugin_become_arguments_and_others_are_refused_by_name(model):
    planned = plan({"model_path": str(model), "port": 1, "options": {"batch": 64, "gpu_layers": 0}})
    assert value_of(planned.argv, "--batch-size") == "64"
    assert value_of(planned.argv, "--n-gpu-layers") == "0"
    assert planned.argv.count("--n-gpu-layers") == 1
    for wrong in ({"bach": 64}, {"batch": "64"}, {"batch": True}, {"kv_type_k": "q9"}, {"kv_type_v": 8}):
        with pytest.raises(ConfigError) as caught:
            plan({"model_path": str(model), "port": 1, "options": wrong})
        assert caught.value.field == f"provisioning.options.{next(iter(wrong))}"


def test_a_model_that_is_missing_or_none_is_told_before_anything_starts(tmp_path):
    for content in (None, b"", b"GGUF", b"not a model at all", b"GGUF" + struct.pack("<IQQ", 9, 0, 0)):
        path = tmp_path / "m.gguf"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            plan({"model_path": str(path), "port": 1})
        assert caught.value.field == "model"
        assert caught.value.what_to_do


@pytest.mark.parametrize(
    "line, cause",
    [
        ("ModuleNotFoundError: No module named 'xllamacpp'", "missing-package"),
        ("error: missing-package: No module named xllamacpp", "missing-package"),
        ("ImportError: libgomp.so.1: cannot open shared object file: No such file or directory", "missing-library"),
        ("error: port-taken: 127.0.0.1:1: Address already in use", "port-taken"),
        (
            "E llama_model_load: error loading model: llama_model_loader: failed to load model from bad.gguf",
            "bad-model",
        ),
        (
            "tensor 'blk.0.attn_q.weight' data is not within the file bounds, model is corrupted or incomplete",
            "bad-model",
        ),
        ("gguf_init_from_reader: invalid magic characters: 'PK..', expected 'GGUF'", "bad-model"),
        ("llama_model_load: error loading model: unknown model architecture: 'mamba9'", "wrong-architecture"),
        ("CUDA error: no kernel image is available for execution on the device", "wrong-architecture"),
        ("E llama_init_from_model: failed to initialize the context: std::bad_alloc", "host-oom"),
        ("ggml_aligned_malloc: insufficient memory (attempted to allocate 9.0 MB); Cannot allocate memory", "host-oom"),
        (
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 144817.04 MiB on device 0: cudaMalloc failed: out of memory",
            "vram-oom",
        ),
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", "vram-oom"),
        ("ggml_gallocr_reserve_n_impl: failed to allocate CUDA1 buffer of size 54262464512", "vram-oom"),
        ("CUDA error: unspecified launch failure", "driver-reset"),
        ("CUDA error: an illegal memory access was encountered", "driver-reset"),
        ("terminate called: vk::Queue::submit: ErrorDeviceLost", "driver-reset"),
        ("NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.", "driver-reset"),
        ("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", "driver-gone"),
        ("ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient", "driver-gone"),
        ('error while handling argument "--device": invalid device: CUDA0', "driver-gone"),
        (
            "E llama_init_from_model: K cache type q8_0 with block size 32 does not divide n_embd_head_k=16",
            "bad-configuration",
        ),
        ("Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=GPU-1", "driver-gone"),
        (
            "llama-server: error while loading shared libraries: libcuda.so.1: cannot open shared object file",
            "missing-library",
        ),
        (
            "docker: Error response: driver failed: Bind for 127.0.0.1:80 failed: port is already allocated",
            "port-taken",
        ),
        ("Error: ghcr.io/x/y@sha256:00: image not known", "missing-image"),
    ],
)
def test_a_line_of_the_log_names_its_cause(line, cause):
    found = next(found for pattern, found, advice in LOG_CAUSES if re.search(pattern, line) and advice)
    assert found == cause


@pytest.mark.parametrize(
    "log, cause",
    [
        (
            (
                "allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory\n"
                "llama_model_load: error loading model: unable to allocate CUDA0 buffer\n"
                "srv load_model: failed to load model, 'm.gguf'"
            ),
            "vram-oom",
        ),
        ("error loading model: unknown model architecture: 'x'\nfailed to load model, 'm.gguf'", "wrong-architecture"),
        (
            "W ggml_cuda_host_malloc: failed to allocate 9 MiB of pinned memory: x\nE error loading model: bad",
            "bad-model",
        ),
    ],
)
def test_of_several_lines_the_one_that_says_why_wins(log, cause):
    causes = [name for pattern, name, _ in LOG_CAUSES if any(re.search(pattern, line) for line in log.splitlines())]
    assert causes[0] == cause


def test_the_version_is_the_builds_own_or_the_packages():
    assert engine_version("b4711-abc", "xllamacpp 1.2") == "b4711-abc"
    assert engine_version("b0-unknown", "xllamacpp 1.2") == "xllamacpp 1.2"
    assert engine_version("", "xllamacpp 1.2") == "xllamacpp 1.2"
    assert engine_version("b0-unknown", "") == "b0-unknown"
    assert engine_version("", "") == "unknown"


def test_weights_are_told_by_their_file_where_it_can_be_read(model, tmp_path):
    digest = f"sha256:{hashlib.sha256(model.read_bytes()).hexdigest()}"
    assert file_digest(model) == digest
    meta = Meta(n_params=5, size=model.stat().st_size // 2)
    assert model_digest(str(model), "127.0.0.1", "m", meta) == digest
    # A file of that name here says nothing about a server that runs elsewhere, nor does one that is too small.
    for path, host, told in (
        (str(model), "10.0.0.1", meta),
        (str(tmp_path / "absent"), "127.0.0.1", meta),
        ("m.gguf", "127.0.0.1", meta),
        (str(model), "127.0.0.1", Meta(n_params=5, size=model.stat().st_size * 2)),
    ):
        assert model_digest(path, host, "m", told).startswith("meta:")
    assert model_digest("", "x", "m", meta) != model_digest("", "x", "m", Meta(n_params=6))


def test_a_file_that_changed_has_another_digest(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    first = file_digest(path)
    path.write_bytes(b"three")
    assert file_digest(path) != first


def test_the_head_of_a_model_says_context_and_tokenizer(model, tmp_path):
    head = read_head(model)
    assert head.context_length == 2048
    assert head.metadata["general.architecture"] == "llama"
    assert head.metadata["tokenizer.ggml.bos_token_id"] == 1
    same = write_model(tmp_path / "a.gguf", Shape(layers=1, words=50, seed=8), template="{{ messages }}")
    other = write_model(tmp_path / "b.gguf", Shape(layers=1, words=51))
    assert read_head(same).tokenizer_digest == head.tokenizer_digest, "neither weights nor template are the tokenizer"
    assert read_head(other).tokenizer_digest != head.tokenizer_digest


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("ranker") / "r.gguf", Shape(layers=1, words=50, ranks=True))


def test_a_server_that_embeds_reads_each_input_at_once(model):
    planned = plan({"model_path": str(model), "port": 1, "options": {"embedding": True, "pooling": "mean"}})
    assert "--embedding" in planned.argv
    assert value_of(planned.argv, "--pooling") == "mean"
    assert value_of(planned.argv, "--ubatch-size") == value_of(planned.argv, "--batch-size") == "2048"
    told = {"embedding": True, "pooling": "last", "ubatch": 64}
    planned = plan({"model_path": str(model), "port": 1, "options": told})
    assert planned.argv.count("--ubatch-size") == 1
    assert "--batch-size" not in planned.argv


def test_a_server_that_ranks_is_started_for_a_model_with_a_head_for_it(ranker):
    planned = plan({"model_path": str(ranker), "port": 1, "options": {"reranking": True}})
    assert "--reranking" in planned.argv
    assert "--pooling" not in planned.argv


@pytest.mark.parametrize(
    "options, field",
    [
        ({"embedding": True}, "pooling"),
        ({"embedding": True, "pooling": "sum"}, "pooling"),
        ({"pooling": "mean"}, "pooling"),
        ({"embedding": "yes"}, "embedding"),
        ({"reranking": True}, "reranking"),
        ({"reranking": True, "embedding": True}, "reranking"),
    ],
)
def test_what_a_model_cannot_embed_or_rank_is_refused_before_anything_starts(model, options, field):
    with pytest.raises(ConfigError) as caught:
        plan({"model_path": str(model), "port": 1, "options": options})
    assert caught.value.field == f"provisioning.options.{field}"


def test_a_model_that_says_how_it_pools_need_not_be_told(ranker):
    planned = plan({"model_path": str(ranker), "port": 1, "options": {"embedding": True}})
    assert "--embedding" in planned.argv
    assert "--pooling" not in planned.argv


def test_no_embedding_is_asked_for_where_the_switch_is_off(model):
    planned = plan({"model_path": str(model), "port": 1, "options": {"embedding": False, "reranking": False}})
    assert not {"--embedding", "--reranking", "--ubatch-size"} & set(planned.argv)
