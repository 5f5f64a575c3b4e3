"""Files of this host: used where they lie, read once, then known by what the disk says of them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from llama_orch.pools.models.cache import Cache
from llama_orch.pools.models.errors import StagingError
from llama_orch.pools.models.locks import Locks

from ...support.model_files import gguf, hf_model, sha256, split_gguf

MODEL = gguf(4)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "files" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(MODEL)
    return path


def test_a_file_is_used_where_it_lies_with_its_digest(staged, file, contents):
    model = staged("files/tiny.gguf", base_dir=file.parent.parent)
    assert (model.path, model.digest, model.fetched_bytes) == (str(file), f"sha256:{sha256(MODEL)}", 0)
    assert {name.split("/")[0] for name in contents()} == {"names", "handoff"}


def test_a_second_ensure_reads_and_writes_nothing(staged, file, cache, below):
    staged(str(file))
    before = below(cache.root.parent)
    file.chmod(0o200)  # nobody but the head's reader would notice, and root reads anyway: the bytes are changed below
    seen = []
    assert not staged(str(file), progress=seen.append).changed
    assert [one for one in seen if one.phase == "verify"] == []
    assert below(cache.root.parent) == before


def test_a_file_that_was_written_again_is_read_again(staged, file):
    first = staged(str(file))
    file.write_bytes(gguf(5))
    second = staged(str(file))
    assert second.digest == f"sha256:{sha256(gguf(5))}" != first.digest
    assert second.changed


def test_strict_reads_it_again_and_finds_a_change_that_kept_size_and_time(staged, file):
    digest = staged(str(file)).digest
    status = file.stat()
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([MODEL[-1] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert staged(str(file)).digest == digest
    with pytest.raises(StagingError, match="expected sha256:"):
        staged(str(file), strict=True, expected_digest=digest)


def test_another_digest_than_expected_is_refused_and_nothing_is_noted(staged, file, contents):
    with pytest.raises(StagingError) as caught:
        staged(str(file), expected_digest=sha256(b""))
    assert caught.value.cause == "digest-mismatch"
    assert contents() == set()
    assert file.exists()


def test_a_digest_makes_it_verified_from_then_on(staged, file):
    assert staged(str(file)).verification == "unverified"
    assert staged(str(file), expected_digest=f"sha256:{sha256(MODEL)}").verification == "verified"
    again = staged(str(file))
    assert (again.verification, again.warnings, again.changed) == ("verified", [], False)


def test_a_folder_of_an_hf_model_is_one_model(staged, tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    for name, content in hf_model().items():
        (folder / name).write_bytes(content)
    (folder / "training_log.csv").write_bytes(b"-")
    model = staged(str(folder))
    assert model.path == str(folder)
    assert {one.path for one in model.files} == set(hf_model())
    lines = "".join(
        f"sha256:{sha256(content)}  {name}\n"
        for name, content in sorted(hf_model().items(), key=lambda f: f"sha256:{sha256(f[1])}")
    )
    assert model.digest.startswith("sha256:")
    assert len(lines.splitlines()) == len(model.files)


def test_all_parts_of_a_split_file_are_one_model(staged, tmp_path):
    for name, content in split_gguf(2).items():
        (tmp_path / name).write_bytes(content)
    model = staged(str(tmp_path / "big-00002-of-00002.gguf"))
    assert len(model.files) == 2
    assert model.metadata.parameters == 2 * 4096


@pytest.mark.parametrize(
    "make, cause",
    [
        (lambda path: None, "not-found"),
        (lambda path: path.write_bytes(b"no model"), "bad-model"),
        (lambda path: path.write_bytes(MODEL[:-1]), "bad-model"),
        (lambda path: path.mkdir(), "bad-model"),
        (os.mkfifo, "bad-model"),
    ],
    ids=["missing", "text", "truncated", "empty folder", "pipe"],
)
def test_what_is_no_model_is_told_so(staged, tmp_path, contents, make, cause):
    make(tmp_path / "odd.gguf")
    with pytest.raises(StagingError) as caught:
        staged(str(tmp_path / "odd.gguf"))
    assert caught.value.cause == cause
    assert contents() == set()


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", b"[]"),
        ("config.json", b"{" * 100_000),
        ("model.safetensors", b"\xff" * 8),
        ("model.safetensors", (2**40).to_bytes(8, "little") + b"{}"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0[]"),
        ("model.safetensors", hf_model()["model.safetensors"][:-1]),
        ("model.safetensors", b'\x2a\0\0\0\0\0\0\0{"a":{"shape":[-1],"data_offsets":[0,0]}}   '),
    ],
)
def test_a_hostile_hf_model_is_refused(staged, tmp_path, name, content):
    for file, good in hf_model().items():
        (tmp_path / file).write_bytes(content if file == name else good)
    with pytest.raises(StagingError) as caught:
        staged(str(tmp_path))
    assert caught.value.cause == "bad-model"


def test_cancelling_ends_the_reading(staged, file):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(StagingError) as caught:
        staged(str(file), cancel=cancel)
    assert caught.value.cause == "cancelled"


def test_removing_forgets_it_and_leaves_the_file(staged, file, cache, contents):
    model = staged(str(file))
    with Locks() as held:
        staged(str(file), hold_into=held)
        with pytest.raises(StagingError, match="is loaded"):
            cache.remove(model.id)
    assert cache.remove(model.id) == 0
    assert contents() == set()
    assert file.read_bytes() == MODEL


def test_provenance_and_handoff_say_where_it_came_from_and_whether_that_was_verified(staged, server, cache, file):
    server.files["/tiny.gguf"] = MODEL
    url = f"{server.url}/tiny.gguf"
    staged(url, expected_digest=sha256(MODEL))
    staged(url)
    staged(str(file))
    path = cache.root.parent / "provenance.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert (first["ref"], first["source_url"], first["verification"]) == (url, url, "verified")
    assert (first["size_bytes"], first["fetched_bytes"], first["architecture"]) == (len(MODEL), len(MODEL), "llama")
    assert first["files"] == [
        {"path": "tiny.gguf", "digest": f"sha256:{sha256(MODEL)}", "size_bytes": len(MODEL), "verified": True}
    ]
    assert first["time_ms"] > 0
    assert (second["verification"], second["fetched_bytes"]) == ("unverified", 0)
    (record,) = [one for one in cache.records() if not one.in_place]
    handoff = json.loads(cache.handoff_path(record.id).read_bytes())
    assert Path(handoff["path"]).read_bytes() == MODEL
    assert (handoff["digest"], handoff["metadata"]["quantization"]) == (f"sha256:{sha256(MODEL)}", "F32")
    assert handoff["metadata"]["chat_template"]


def test_a_torn_line_of_the_provenance_does_not_spoil_the_next(staged, file, cache):
    staged(str(file))
    path = cache.root.parent / "provenance.jsonl"
    path.write_bytes(path.read_bytes() + b'{"torn')
    file.write_bytes(gguf(5))
    staged(str(file))
    assert json.loads(path.read_text().splitlines()[-1])["digest"] == f"sha256:{sha256(gguf(5))}"


def test_the_events_fields_are_those_that_the_event_has(staged, file):
    from llama_orch.core.events.model import ModelStaged

    fields = staged(str(file)).event_fields()
    assert ModelStaged(host="local", **fields).digest == f"sha256:{sha256(MODEL)}"


def test_a_cache_of_a_later_version_is_not_robbed(staged, server, cache):
    server.files["/tiny.gguf"] = MODEL
    model = staged(f"{server.url}/tiny.gguf")
    name = cache.root / "names" / f"{model.id}.json"
    name.write_bytes(name.read_bytes().replace(b'"version": 1', b'"version": 2'))
    assert Cache(cache.root).collect() == []
    assert Path(model.path).read_bytes() == MODEL
