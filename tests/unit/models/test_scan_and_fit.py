"""What other programs have on the disk, and where a model fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_orch.core.gguf import read_head
from llama_orch.plugins.memory.need import need, shape_of_gguf
from llama_orch.pools.models.errors import StagingError
from llama_orch.pools.models.fitting import Device, fits, remote_shape, shape_of
from llama_orch.pools.models.references import parse
from llama_orch.pools.models.scan import scan
from llama_orch.pools.models.sources import source_of

from ...support.model_files import gguf, hf_model, sha256, split_gguf

GIB = 2**30


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def home(tmp_path):
    """A home with one model of each program."""
    hub = tmp_path / ".cache/huggingface/hub"
    blob = put(hub / "models--org--tiny" / "blobs" / sha256(gguf(1)), gguf(1))
    for commit in ("old", "new"):
        link = hub / "models--org--tiny" / "snapshots" / commit / "tiny-Q8_0.gguf"
        link.parent.mkdir(parents=True)
        link.symlink_to(blob)
    for name, content in hf_model().items():
        put(hub / "models--org--whole" / "snapshots" / "new" / name, content)
    put(tmp_path / ".ollama/models/blobs" / f"sha256-{sha256(gguf(2))}", gguf(2))
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{sha256(b'')}", "size": 0},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{sha256(gguf(2))}", "size": 1},
    ]
    put(
        tmp_path / ".ollama/models/manifests/registry.example/library/tiny/1b",
        json.dumps({"layers": layers}).encode(),
    )
    for name, content in split_gguf(2).items():
        put(tmp_path / ".lmstudio/models/org/big" / name, content)
    put(tmp_path / ".lmstudio/models/org/big/mmproj-big.gguf", gguf(9))
    put(tmp_path / ".cache/llama.cpp/org_small.gguf", gguf(3))
    return tmp_path


def found(home, *folders, **environ):
    everything = scan(home, environ, tuple(folders))
    return [one for one in everything if one.path.startswith(str(home))]


def test_each_programs_models_are_found_once_with_what_they_are(home):
    seen = {(one.program, one.name): one for one in found(home)}
    assert set(seen) == {
        ("huggingface", "org/tiny/tiny-Q8_0.gguf"),
        ("huggingface", "org/whole"),
        ("ollama", "tiny:1b"),
        ("lmstudio", "org/big/big-00001-of-00002.gguf"),
        ("llama.cpp", "org_small.gguf"),
    }
    assert all(one.metadata is not None and not one.problem for one in seen.values())
    big = seen["lmstudio", "org/big/big-00001-of-00002.gguf"]
    assert big.size_bytes == sum(len(content) for content in split_gguf(2).values())
    assert big.metadata is not None
    assert big.metadata.parameters == 2 * 4096
    whole = seen["huggingface", "org/whole"].metadata
    assert whole is not None
    assert whole.format == "hf"


def test_what_it_finds_can_be_staged_as_it_is(home, staged):
    for one in found(home):
        model = staged(one.path)
        assert model.path == one.path
        assert model.metadata == one.metadata


def test_variables_of_the_programs_say_where_to_look(home):
    (home / ".ollama").rename(home / "elsewhere")
    assert "ollama" not in {one.program for one in found(home)}
    assert "ollama" in {one.program for one in found(home, OLLAMA_MODELS=str(home / "elsewhere/models"))}


def test_further_folders_are_looked_through(home):
    put(home / "data/deep/down/other.gguf", gguf(4))
    assert [one.name for one in found(home, home / "data") if one.program == "folder"] == ["deep/down/other.gguf"]


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}',
        b"[" * 100_000,
    ],
)
def test_a_hostile_manifest_leads_nowhere(home, manifest):
    put(home / ".ollama/models/manifests/registry.example/library/evil/1b", manifest)
    assert [one.name for one in found(home) if one.program == "ollama"] == ["tiny:1b"]


def test_a_broken_model_is_listed_with_what_is_wrong(home):
    put(home / ".cache/llama.cpp/cut.gguf", gguf(5)[:-10])
    (broken,) = [one for one in found(home) if one.problem]
    assert (broken.name, broken.metadata) == ("cut.gguf", None)
    assert "cut off" in broken.problem


def test_scanning_writes_nothing(home, below):
    before = below(home)
    found(home)
    assert below(home) == before


# --- fit ---------------------------------------------------------------------------------------------------------------


def device(name: str, total: int, free: int | None = None) -> Device:
    return Device(id=name, name=name, total_bytes=total, free_bytes=total if free is None else free)


@pytest.fixture
def shape(tmp_path):
    return shape_of(put(tmp_path / "tiny.gguf", gguf(1)), hf=False)


def test_the_context_that_is_told_fits_and_the_next_step_does_not(shape):
    room = need(shape, ctx=1024, slots=4, devices=1).per_device[0]
    (told,) = fits(shape, [device("gpu", room)], slots=4, ctx=0, hf=False)
    assert told.ctx == told.ctx_empty == 1024
    assert told.need.per_device[0] <= room < need(shape, ctx=1280, slots=4, devices=1).per_device[0]


def test_a_full_card_fits_when_it_is_empty_only(shape):
    (told,) = fits(shape, [device("gpu", 24 * GIB, 10)], slots=1, ctx=0, hf=False)
    assert (told.ctx, told.ctx_empty) == (0, 2048)


def test_a_context_that_is_asked_for_fits_or_does_not(shape):
    room = need(shape, ctx=1024, slots=1, devices=1).per_device[0]
    told = [fits(shape, [device("gpu", room)], slots=1, ctx=ctx, hf=False)[0].ctx for ctx in (512, 1024, 1280)]
    assert told == [512, 1024, 0]


def test_each_device_is_told_and_all_gpus_together(shape):
    devices = [device("big", 24 * GIB), device("small", 12 * GIB), device("cpu", 64 * GIB)]
    told = fits(shape, devices, slots=1, ctx=0, hf=False)
    assert [one.devices for one in told] == [["big"], ["small"], ["cpu"], ["big", "small"]]


def test_a_model_for_vllm_is_not_for_the_processors(tmp_path):
    for name, content in hf_model().items():
        put(tmp_path / "hf" / name, content)
    config = json.loads(hf_model()["config.json"])
    put(tmp_path / "hf" / "config.json", json.dumps(config | {"vocab_size": 600, "intermediate_size": 256}).encode())
    shape = shape_of(tmp_path / "hf", hf=True)
    told = fits(shape, [device("gpu", 24 * GIB), device("cpu", 64 * GIB)], slots=1, ctx=0, hf=True)
    assert [(one.devices, one.ctx) for one in told] == [(["gpu"], 4096)]
    (none,) = fits(shape, [device("gpu", GIB // 4)], slots=1, ctx=0, hf=True)
    assert (none.ctx, none.ctx_empty) == (0, 0)


def test_of_a_model_that_is_not_here_the_head_alone_is_fetched(server, tmp_path):
    large = gguf(1, elements=4 * 1024 * 1024)
    server.publish("org/large", {"large.gguf": large})
    source = source_of(parse("hf:org/large"), {"HF_ENDPOINT": server.url})
    (file,) = source.listing().files
    here = put(tmp_path / "large.gguf", large)
    assert remote_shape(source, [file]) == (shape_of_gguf(read_head(here)), False)
    assert len(server.gets(f"/cdn/{sha256(large)}")) == 1


def test_of_a_split_model_all_heads_are_read_and_of_an_hf_model_its_configuration(server, tmp_path):
    server.publish("org/big", split_gguf(3))
    source = source_of(parse("hf:org/big/big-00002-of-00003.gguf"), {"HF_ENDPOINT": server.url})
    shape, vllm = remote_shape(source, source.listing().files)
    assert (shape.parameters, vllm) == (3 * 4096, False)
    config = json.loads(hf_model()["config.json"]) | {"vocab_size": 600, "intermediate_size": 256}
    files = hf_model() | {"config.json": json.dumps(config).encode()}
    server.publish("org/hf", files)
    source = source_of(parse("hf:org/hf"), {"HF_ENDPOINT": server.url})
    for name, content in files.items():
        put(tmp_path / "hf" / name, content)
    assert remote_shape(source, source.listing().files) == (shape_of(tmp_path / "hf", hf=True), True)
    assert not [one for one in server.asked if "safetensors" in one.path]


def test_a_head_that_is_hostile_is_refused(server):
    server.publish("org/evil", {"evil.gguf": gguf(1)[:16] + b"\xff" * 8 + gguf(1)[24:]})
    source = source_of(parse("hf:org/evil"), {"HF_ENDPOINT": server.url})
    with pytest.raises(StagingError) as caught:
        remote_shape(source, source.listing().files)
    assert caught.value.cause == "bad-model"
