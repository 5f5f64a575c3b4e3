"""Naming a model is enough: it gets a pool of its own, which is loaded when it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.cli.config import is_path, is_reference, load, source_name
from llama_orch.cli.config_check import check


def _load(tmp_path: Path, text: str) -> object:
    file = tmp_path / "llama-orch.yaml"
    file.write_text(text)
    return load(str(file), environ={"LLORCH_DATA_DIR": str(tmp_path / "data")})


def test_a_model_that_no_pool_names_gets_a_pool(tmp_path: Path) -> None:
    loaded = _load(tmp_path, "models: {coder: hf:org/coder-GGUF/coder-q4.gguf}\nmodel_pools: {keep_alive_ms: 5000}\n")
    pools = {pool.id: pool for pool in loaded.settings.pools}  # type: ignore[attr-defined]
    assert set(pools) == {"haiku", "coder"}
    coder = pools["coder"]
    assert (coder.model, coder.devices, coder.preload, coder.keep_alive_ms) == ("coder", "auto", False, 5000)


def test_a_model_that_a_pool_names_gets_none(tmp_path: Path) -> None:
    loaded = _load(
        tmp_path, "models: {coder: hf:org/coder-GGUF/coder-q4.gguf}\npools: [{id: mine, model: coder, devices: auto}]\n"
    )
    assert [pool.id for pool in loaded.settings.pools] == ["mine"]  # type: ignore[attr-defined]


def test_names_that_are_no_pool_ids_make_ids_that_are_their_own(tmp_path: Path) -> None:
    loaded = _load(tmp_path, 'models: {"a b": "hf:o/r/1.gguf", "a/b": "hf:o/r/2.gguf", "haiku!": "hf:o/r/3.gguf"}\n')
    ids = [pool.id for pool in loaded.settings.pools]  # type: ignore[attr-defined]
    assert ids == ["haiku", "a-b", "a-b-1", "haiku-1"]


def test_a_pool_may_name_a_reference_itself(tmp_path: Path) -> None:
    loaded = _load(tmp_path, "pools: [{id: p, model: 'hf:org/repo@v1/some-q4.gguf', devices: auto}]\n")
    settings = loaded.settings  # type: ignore[attr-defined]
    assert settings.pools[0].model == "some-q4"
    assert settings.models == {"some-q4": "hf:org/repo@v1/some-q4.gguf"}
    assert check(loaded) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model, reference, path",
    [
        ("hf:org/repo", True, False),
        ("https://example.org/m.gguf", True, False),
        ("s3://bucket/m.gguf", True, False),
        ("file:/m.gguf", False, True),
        ("m.gguf", False, True),
        ("~/m.gguf", False, True),
        ("haiku", False, False),
        ("org/model", False, True),
    ],
)
def test_references_files_and_names_are_told_apart(model: str, reference: bool, path: bool) -> None:
    assert (is_reference(model), is_path(model)) == (reference, path)


def test_a_reference_is_named_after_its_last_part() -> None:
    assert source_name("hf:org/repo@main") == "repo"
    assert source_name("https://example.org/a/m-q4.gguf?x=1") == "m-q4"


@pytest.mark.parametrize(
    "provisioning, key",
    [
        ("{mode: binary, url: 'http://127.0.0.1/x'}", "provisioning.sha256"),
        ("{mode: source, git: /x}", "provisioning.ref"),
        ("{mode: container}", "provisioning.image"),
        ("{mode: package, image: x}", "provisioning.image"),
        ("{mode: package, url: 'http://x'}", "provisioning.url"),
    ],
)
def test_keys_that_a_mode_needs_or_does_not_take_are_told(tmp_path: Path, provisioning: str, key: str) -> None:
    loaded = _load(tmp_path, f"pools: [{{id: p, model: haiku, provisioning: {provisioning}}}]\n")
    assert f"pools[0].{key}" in [fault.key for fault in check(loaded)]  # type: ignore[arg-type]
