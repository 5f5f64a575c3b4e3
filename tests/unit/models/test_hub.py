"""Repositories of a hub that speaks the real one's API, asked through `huggingface_hub`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from llama_orch.pools.models.errors import StagingError

from ...support.model_files import TEMPLATE, gguf, hf_model, sha256, split_gguf

SMALL, LARGE = gguf(1), gguf(2, elements=32 * 1024)


@pytest.fixture
def repository(server):
    """A repository with two quantizations, a projector, and things that are no model."""
    server.publish(
        "org/tiny-GGUF",
        {
            "README.md": b"# tiny",
            "tiny-Q4_K_M.gguf": SMALL,
            "tiny-Q8_0.gguf": LARGE,
            "mmproj-tiny-F16.gguf": gguf(3),
        },
    )
    return server


def test_a_file_of_a_repository_comes_verified_by_the_hubs_own_digest(staged, repository):
    model = staged("hf:org/tiny-GGUF/tiny-Q8_0.gguf")
    assert Path(model.path).read_bytes() == LARGE
    assert (model.verification, model.warnings) == ("verified", [])
    assert model.revision == repository.branches["org/tiny-GGUF"]["main"]
    assert model.source_url == f"{repository.url}/org/tiny-GGUF"


@pytest.mark.parametrize(
    "ref, file",
    [
        ("hf:org/tiny-GGUF", "tiny-Q4_K_M.gguf"),
        ("hf:org/tiny-GGUF:Q8_0", "tiny-Q8_0.gguf"),
        ("hf:org/tiny-GGUF:q8_0", "tiny-Q8_0.gguf"),
        ("hf:org/tiny-GGUF@main:Q8_0", "tiny-Q8_0.gguf"),
    ],
)
def test_a_repository_with_several_models_gives_the_named_or_the_usual_one(staged, repository, ref, file):
    assert Path(staged(ref).path).name == file


def test_when_none_is_named_and_none_is_usual_the_choice_is_told(staged, server):
    server.publish("org/many", {"a-Q2_K.gguf": SMALL, "a-Q8_0.gguf": LARGE})
    with pytest.raises(StagingError, match=r"no model 'Q4_K_M' among its 2 GGUF files: a-Q2_K.gguf, a-Q8_0.gguf"):
        staged("hf:org/many")
    with pytest.raises(StagingError, match="no model 'Q6_K'"):
        staged("hf:org/many:Q6_K")


def test_a_second_ensure_asks_for_the_commit_alone_and_writes_nothing(staged, repository, cache, below):
    staged("hf:org/tiny-GGUF:Q8_0")
    before, asked = below(cache.root.parent), len(repository.asked)
    assert staged("hf:org/tiny-GGUF:Q8_0").fetched_bytes == 0
    assert [one.path for one in repository.asked[asked:]] == ["/api/models/org/tiny-GGUF?blobs=true"]
    assert below(cache.root.parent) == before


def test_a_commit_that_is_here_asks_nobody(staged, repository):
    commit = repository.branches["org/tiny-GGUF"]["main"]
    staged(f"hf:org/tiny-GGUF@{commit}/tiny-Q8_0.gguf")
    asked = len(repository.asked)
    staged(f"hf:org/tiny-GGUF@{commit}/tiny-Q8_0.gguf")
    assert len(repository.asked) == asked


def test_another_quantization_of_the_same_content_is_stored_once_and_fetched_once(staged, server, cache):
    server.publish("org/one", {"one.gguf": LARGE})
    server.publish("org/copy", {"copy.gguf": LARGE})
    staged("hf:org/one")
    asked = len(server.bytes_asked())
    copy = staged("hf:org/copy")
    assert (copy.fetched_bytes, len(server.bytes_asked())) == (0, asked)
    assert Path(copy.path).name == "copy.gguf"
    assert len(list((cache.root / "blobs").iterdir())) == 1


def test_a_repository_without_gguf_gives_a_folder_with_all_that_engines_read(staged, server):
    files = hf_model()
    server.publish(
        "org/hf", {**files, "README.md": b"-", "pytorch_model.bin": b"pickle", "remote_code.py": b"import os"}
    )
    model = staged("hf:org/hf")
    folder = Path(model.path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert model.verification == "verified"
    said = model.metadata
    assert (said.format, said.architecture, said.quantization) == ("hf", "LlamaForCausalLM", "float32")
    assert (said.ctx_max, said.layers, said.parameters, said.kv_bytes_per_token) == (4096, 2, 256, 2 * 2 * 2 * 64)
    assert (said.tokenizer, said.chat_template) == ("PreTrainedTokenizerFast", TEMPLATE)


def test_an_update_fetches_the_changed_files_only(staged, server, cache):
    files = hf_model()
    server.publish("org/hf", files)
    first = staged("hf:org/hf")
    asked = len(server.bytes_asked())
    commit = server.publish("org/hf", {**files, "tokenizer.json": b'{"changed": true}'})
    second = staged("hf:org/hf")
    assert [one.path for one in server.bytes_asked()[asked:]] == [f"/org/hf/resolve/{commit}/tokenizer.json"]
    assert second.fetched_bytes == len(b'{"changed": true}')
    assert Path(second.path, "tokenizer.json").read_bytes() == b'{"changed": true}'
    assert Path(second.path, "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not Path(first.path).exists()
    digests = {file.digest for file in second.files}
    assert {path.name.replace("-", ":", 1) for path in (cache.root / "blobs").iterdir()} == digests


def test_an_update_leaves_what_is_loaded_where_it_is(staged, server, cache):
    server.publish("org/one", {"one.gguf": SMALL})
    first = staged("hf:org/one")
    with cache.hold(first.id):
        server.publish("org/one", {"one.gguf": LARGE})
        second = staged("hf:org/one")
        cache.collect()
        assert Path(first.path).read_bytes() == SMALL
        assert Path(second.path).read_bytes() == LARGE
    cache.collect()
    assert not Path(first.path).exists()
    assert len(list((cache.root / "blobs").iterdir())) == 1


def test_all_parts_of_a_split_model_come_whichever_is_named(staged, server):
    parts = split_gguf(3)
    server.publish("org/big", {**parts, "other.gguf": SMALL})
    model = staged("hf:org/big/big-00002-of-00003.gguf")
    assert Path(model.path).name == "big-00001-of-00003.gguf"
    assert {path.name: path.read_bytes() for path in Path(model.path).parent.iterdir()} == parts
    assert model.metadata.parameters == 3 * 4096


def test_a_split_model_with_a_part_missing_is_refused(staged, server, contents):
    parts = split_gguf(3)
    del parts["big-00002-of-00003.gguf"]
    server.publish("org/big", parts)
    with pytest.raises(StagingError, match="one of 3 parts, and 2 of them are there"):
        staged("hf:org/big/big-00001-of-00003.gguf")
    assert contents() == set()


def test_content_that_is_not_what_the_hub_says_is_refused_and_nothing_is_left(staged, server, contents):
    server.publish("org/one", {"one.gguf": SMALL})
    server.faults[f"/cdn/{sha256(SMALL)}"] = [("flip", 3000)]
    with pytest.raises(StagingError) as caught:
        staged("hf:org/one")
    assert caught.value.cause == "digest-mismatch"
    assert contents() == set()


def test_small_files_are_held_against_gits_own_names(staged, server, contents):
    server.publish("org/hf", hf_model())
    commit = server.branches["org/hf"]["main"]
    server.faults[f"/org/hf/resolve/{commit}/config.json"] = [("flip", 3)]
    with pytest.raises(StagingError, match=r"config.json: expected git object [0-9a-f]{40}, got [0-9a-f]{40}"):
        staged("hf:org/hf")
    assert contents() == set()


@pytest.mark.parametrize(
    "name",
    [
        "../../../escape.gguf",
        "/etc/escape.gguf",
        "a/../../escape.gguf",
        "a//b.gguf",
        "a\\..\\b.gguf",
        "nul\0.gguf",
        "line\nbreak.gguf",
        "right\u202eleft.gguf",
        "-rf.gguf",
        "x" * 300 + ".gguf",
        "d/" * 40 + "deep.gguf",
    ],
)
def test_names_that_lead_elsewhere_are_refused_and_nothing_is_written(staged, server, contents, tmp_path, name):
    lfs = {"sha256": sha256(SMALL), "size": len(SMALL), "pointerSize": 1}
    server.infos["org/evil"] = {
        "id": "org/evil",
        "modelId": "org/evil",
        "sha": "a" * 40,
        "siblings": [{"rfilename": name, "size": len(SMALL), "blobId": "b" * 40, "lfs": lfs}],
    }
    with pytest.raises(StagingError) as caught:
        staged("hf:org/evil")
    assert caught.value.cause in {"hostile-name", "not-found"}
    assert contents() == set()
    assert not server.bytes_asked()
    assert not list(tmp_path.rglob("*escape*"))


def test_a_name_that_is_file_and_folder_is_refused(staged, server, contents):
    one = {"size": 2, "blobId": "b" * 40}
    server.infos["org/evil"] = {
        "id": "org/evil",
        "modelId": "org/evil",
        "sha": "a" * 40,
        "siblings": [{"rfilename": "a.gguf", **one}, {"rfilename": "a.gguf", **one}],
    }
    with pytest.raises(StagingError, match="twice"):
        staged("hf:org/evil")
    assert contents() == set()


@pytest.mark.parametrize("info", [[], {"id": "x"}, {"id": "org/odd", "sha": "../..", "siblings": []}, "text", None])
def test_answers_that_are_none_of_a_hub_are_told_as_such(staged, server, info, contents):
    server.infos["org/odd"] = info
    with pytest.raises(StagingError) as caught:
        staged("hf:org/odd")
    assert caught.value.cause in {"unreachable", "bad-model"}
    assert contents() == set()


def test_what_is_not_there_is_told_by_name(staged, repository):
    with pytest.raises(StagingError, match="no model org/none"):
        staged("hf:org/none")
    with pytest.raises(StagingError, match="no revision 'v9'"):
        staged("hf:org/tiny-GGUF@v9")
    with pytest.raises(StagingError, match=r"no file 'none.gguf'") as caught:
        staged("hf:org/tiny-GGUF/none.gguf")
    assert "tiny-Q8_0.gguf" in caught.value.details["files"]


def test_the_token_goes_to_the_hub_and_no_further_and_stands_nowhere(staged, server, cache, caplog):
    caplog.set_level(logging.DEBUG)
    server.publish("org/gated", {"one.gguf": SMALL})
    server.tokens["org/gated"] = token = "hf_plantedcanary"
    with pytest.raises(StagingError, match="gated") as caught:
        staged("hf:org/gated")
    assert "HF_TOKEN" in caught.value.what_to_do
    staged("hf:org/gated", token=token)
    by_place = {one.path.startswith("/cdn/"): one.headers.get("Authorization") for one in server.asked}
    assert by_place == {False: f"Bearer {token}", True: None}
    for path in cache.root.parent.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes()
    assert token not in caplog.text
    assert token not in json.dumps(caught.value.to_dict())


def test_a_hub_that_is_away_is_told_and_what_is_here_is_used(staged, server, repository):
    class Away(dict):
        def __contains__(self, name):
            raise ConnectionResetError

    staged("hf:org/tiny-GGUF:Q8_0")
    server.infos = Away()
    assert "could not be asked" in staged("hf:org/tiny-GGUF:Q8_0").warnings[0]
    with pytest.raises(StagingError) as caught:
        staged("hf:org/tiny-GGUF")
    assert caught.value.cause == "unreachable"
