"""`models …`: against a server of files, as a person, a pipe and a program see it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llama_orch.cli import exits
from llama_orch.pools.models.cache import Cache

from ...support.model_files import gguf, hf_model, sha256
from ...support.model_server import serving

MODEL = gguf(1)


@pytest.fixture
def files():
    with serving() as state:
        state.files["/tiny.gguf"] = MODEL
        state.files["/other.gguf"] = gguf(2)
        yield state


@pytest.fixture
def url(files):
    return f"{files.url}/tiny.gguf"


def cache_of(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "data" / "models")


def test_pull_prints_the_path_for_programs_and_remarks_for_people(call, url):
    done = call("models", "pull", url)
    assert done.status == exits.OK
    assert Path(done.out.strip()).read_bytes() == MODEL
    assert "unverified" in done.err
    assert "llama, 4.1K, F32, context 2048" in done.err


def test_pull_as_json_tells_all_and_a_second_one_fetched_nothing(call, url):
    (first,) = json.loads(call("models", "pull", url, "--json").out)["models"]
    assert (first["digest"], first["fetched_bytes"], first["changed"]) == (f"sha256:{sha256(MODEL)}", len(MODEL), True)
    assert (first["name"], first["state"], first["quantization"]) == ("tiny", "ready", "F32")
    (second,) = json.loads(call("models", "pull", url, "--json").out)["models"]
    assert (second["fetched_bytes"], second["changed"]) == (0, False)


def test_pull_of_a_name_of_the_configuration(call, url, files, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"models:\n  mine: {url}\n")
    done = call("models", "pull", "mine", "--config", str(config), "--json")
    assert json.loads(done.out)["models"][0]["name"] == "mine"


def test_pull_from_the_hub_that_the_environment_names(call, files):
    files.publish("org/tiny", {"tiny.gguf": MODEL})
    call.environ["HF_ENDPOINT"] = files.url
    (model,) = json.loads(call("models", "pull", "hf:org/tiny", "--json").out)["models"]
    assert model["verification"] == "verified"


def test_a_wrong_digest_is_an_error_with_a_remedy_and_nothing_is_listed(call, url):
    done = call("models", "pull", url, "--digest", "0" * 64)
    assert done.status == exits.FAILED
    assert "expected sha256:000" in done.err
    assert "Traceback" not in done.err
    assert json.loads(call("models", "list", "--json").out)["models"] == []


def test_errors_as_json_have_a_cause(call):
    done = call("models", "pull", "http://127.0.0.1:1/tiny.gguf", "--offline", "--json")
    error = json.loads(done.err)["error"]
    assert (error["code"], done.status) == ("MODEL_UNAVAILABLE", exits.FAILED)
    assert "models pull" in error["remedy"]


def test_what_is_no_reference_is_a_usage_error(call):
    done = call("models", "pull", "hf:org")
    assert done.status == exits.USAGE
    assert "hf: is followed by" in done.err


def test_downloads_that_are_forbidden_are_not_made(call, url, files):
    done = call("models", "pull", url, "--set", "manager.forbid_downloads=true")
    assert done.status == exits.FAILED
    assert not files.asked


def test_at_a_terminal_there_is_a_bar(call, files, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    files.files["/large.gguf"] = gguf(3, elements=1024 * 1024)
    done = call("models", "pull", f"{files.url}/large.gguf", terminal=True)
    assert "fetching large.gguf" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.err)
    assert "\x1b" not in call("models", "pull", f"{files.url}/large.gguf", terminal=False).err


def test_list_show_pin_and_rm(call, url, tmp_path):
    call("models", "pull", url)
    rows = [line.split("\t") for line in call("models", "list").out.splitlines()]
    assert [row[:5] for row in rows] == [
        ["NAME", "STATE", "SIZE", "PARAMETERS", "QUANTIZATION"],
        ["tiny", "ready", "16.6 KiB", "4.1K", "F32"],
    ]
    shown = json.loads(call("models", "show", "tiny", "--json").out)
    assert shown["files"] == [
        {"path": "tiny.gguf", "digest": f"sha256:{sha256(MODEL)}", "size_bytes": len(MODEL), "verified": False}
    ]
    assert json.loads(Path(shown["handoff"]).read_text())["path"] == shown["path"]
    assert shown["chat_template"]
    assert f"sha256:{sha256(MODEL)}" in call("models", "show", sha256(MODEL)[:8]).out
    assert json.loads(call("models", "pin", "tiny", "--json").out) == {"ref": url, "pinned": True}
    refused = call("models", "rm", "tiny")
    assert (refused.status, "unpin" in refused.err) == (exits.FAILED, True)
    call("models", "unpin", url)
    removed = json.loads(call("models", "rm", "tiny", "--json").out)
    assert removed == {"removed": [{"ref": url, "freed_bytes": len(MODEL)}]}
    assert call("models", "show", "tiny").status == exits.FAILED
    assert cache_of(tmp_path).used_bytes() == 0


def test_rm_of_a_loaded_model_is_refused(call, url, tmp_path):
    call("models", "pull", url)
    cache = cache_of(tmp_path)
    (record,) = cache.records()
    with cache.hold(record.id):
        assert json.loads(call("models", "list", "--json").out)["models"][0]["state"] == "loaded"
        done = call("models", "rm", "tiny", "--force")
        assert (done.status, "is loaded" in done.err) == (exits.FAILED, True)


def test_add_takes_a_file_where_it_lies_and_prints_the_lines_that_serve_it(call, tmp_path):
    import yaml

    path = tmp_path / "mine: #1.gguf"
    path.write_bytes(MODEL)
    done = call("models", "add", str(path), "--name", "my model")
    assert yaml.safe_load(done.out) == {"models": {"my model": str(path)}}
    path.unlink()
    assert json.loads(call("models", "list", "--json").out)["models"][0]["state"] == "gone"
    assert call("models", "add", "hf:org/name").status == exits.USAGE


def test_gc_says_what_would_go_and_then_removes_it(call, url, files):
    call("models", "pull", url)
    call("models", "pull", f"{files.url}/other.gguf")
    call("models", "pin", "tiny")
    limit = ("--limit", "20k")
    dry = json.loads(call("models", "gc", "--dry-run", *limit, "--json").out)
    assert (dry["dry_run"], dry["freed_bytes"]) == (True, len(gguf(2)))
    assert [one["what"] for one in dry["removed"]] == [f"{files.url}/other.gguf"]
    assert len(json.loads(call("models", "list", "--json").out)["models"]) == 2
    done = json.loads(call("models", "gc", *limit, "--json").out)
    assert done["removed"] == dry["removed"]
    assert done["used_bytes"] == len(MODEL)
    assert call("models", "gc", "--limit", "much").status == exits.USAGE


def test_the_configured_limit_holds_for_pulls(call, files, url):
    files.files["/large.gguf"] = gguf(3, elements=512 * 1024)
    done = call("models", "pull", f"{files.url}/large.gguf", "--set", "manager.model_cache_mib=1")
    assert done.status == exits.FAILED
    assert "model_cache_mib" in done.err


def test_fit_of_gpus_that_are_told(call, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(MODEL)
    done = call("models", "fit", str(path), "--gpu", "24GiB", "--gpu", "12 GiB", "--slots", "2", "--json")
    told = json.loads(done.out)
    assert [one["devices"] for one in told["fits"]] == [["gpu0"], ["gpu1"], ["gpu0", "gpu1"]]
    assert [one["ctx"] for one in told["fits"]] == [2048] * 3
    assert told["best"] == ["gpu1"]
    none = call("models", "fit", str(path), "--gpu", "600MiB")
    assert none.status == exits.FAILED
    assert "does not fit" in none.out
    assert "smaller quantization" in none.err


def test_fit_of_this_machine_and_of_the_bundled_model(call):
    told = json.loads(call("models", "fit", "haiku", "--json").out)
    assert "cpu" in {device for one in told["fits"] for device in one["devices"]}


def test_fit_reads_the_head_of_a_model_that_is_not_here(call, files, url, tmp_path):
    done = call("models", "fit", url, "--gpu", "8G", "--json")
    assert json.loads(done.out)["ctx_max"] == 2048
    assert json.loads(call("models", "list", "--json").out)["models"] == []
    assert call("models", "fit", "nothing", "--gpu", "8G").status == exits.FAILED


def test_fit_of_a_folder_for_vllm(call, tmp_path):
    config = json.loads(hf_model()["config.json"]) | {"vocab_size": 600, "intermediate_size": 256}
    for name, content in (hf_model() | {"config.json": json.dumps(config).encode()}).items():
        (tmp_path / "hf").mkdir(exist_ok=True)
        (tmp_path / "hf" / name).write_bytes(content)
    told = json.loads(call("models", "fit", str(tmp_path / "hf"), "--gpu", "24G", "--json").out)
    assert told["fits"][0]["ctx"] == 4096


def test_scan_finds_what_is_in_the_home(call, tmp_path):
    folder = tmp_path / ".lmstudio/models/org/tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(MODEL)
    found = json.loads(call("models", "scan", "--json").out)["models"]
    assert (str(folder / "tiny.gguf"), "llama") in {(one["path"], one.get("architecture")) for one in found}
    assert call("models", "scan", str(tmp_path / "none")).status == exits.USAGE


def test_references_of_the_configuration_are_checked_and_names_with_a_colon_are_names(call, tmp_path):
    config = tmp_path / "config.yaml"
    external = (
        "{id: o, engine: llamacpp, model: 'llama3:8b', provisioning: {mode: external, url: 'http://127.0.0.1:1'}}"
    )
    config.write_text(f"models: {{big: 'hf:org/repo:Q4_K_M', gpt: 'llama3:8b'}}\npools: [{external}]\n")
    settings = json.loads(call("config", "check", str(config), "--json").out)["settings"]
    assert [(pool["id"], pool["model"]) for pool in settings["pools"]] == [("o", "llama3:8b"), ("big", "big")]
    config.write_text("pools: [{id: a, model: 'hf:org'}]\n")
    done = call("config", "check", str(config))
    assert done.status == exits.USAGE
    assert "hf: is followed by org/repo" in done.err


def test_help_loads_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys; from llama_orch.cli.main import main; main(['models', '--help']);"
        "print([name for name in ('huggingface_hub', 'fsspec', 'httpx', 'rich', 's3fs', 'llama_orch.pools.models.staging')"
        " if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"
