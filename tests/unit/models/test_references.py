"""What a model may be called."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.pools.models.errors import CAUSES, StagingError
from llama_orch.pools.models.names import checked_path
from llama_orch.pools.models.references import default_name, is_remote, parse


@pytest.mark.parametrize(
    "text, path",
    [
        ("models/a.gguf", "/base/models/a.gguf"),
        ("file:models/a.gguf", "/base/models/a.gguf"),
        ("file:/srv/a.gguf", "/srv/a.gguf"),
        ("file:///srv/with%20blank.gguf", "/srv/with blank.gguf"),
        ("file://localhost/srv/a.gguf", "/srv/a.gguf"),
        ("FILE:/srv/a.gguf", "/srv/a.gguf"),
    ],
)
def test_paths_are_relative_to_the_configuration(text, path):
    reference = parse(text, base_dir=Path("/base"))
    assert (reference.kind, reference.path, reference.text) == ("file", path, f"file:{path}")


@pytest.mark.parametrize(
    "text, repository, revision, file, variant",
    [
        ("hf:org/name", "org/name", "", "", ""),
        ("hf://org/name", "org/name", "", "", ""),
        ("hf:org/name@v1.2", "org/name", "v1.2", "", ""),
        ("hf:org/name@refs%2Fpr%2F7/a.gguf", "org/name", "refs/pr/7", "a.gguf", ""),
        ("hf:org/name/sub/a.gguf", "org/name", "", "sub/a.gguf", ""),
        ("hf:org/name:Q4_K_M", "org/name", "", "", "Q4_K_M"),
        ("hf:org/name@main:Q4_K_M", "org/name", "main", "", "Q4_K_M"),
        ("hf:org/name:Q4_K_M@main", "org/name", "main", "", "Q4_K_M"),
    ],
)
def test_references_of_the_hub(text, repository, revision, file, variant):
    found = parse(text)
    assert (found.repository, found.revision, found.file, found.variant) == (repository, revision, file, variant)
    assert parse(found.text) == found


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a\0b", "hf:", "hf:org", "hf:org/", "hf:/name", "hf:org/name@", "hf:org/name/", "hf:../../etc", "hf:org/..",
        "hf:org/name@../x", "hf:org/name/../../etc/passwd", "hf:org/name//etc", "hf:org/name:Q4/a.gguf", "hf:o rg/name",
        "https://", "https:///path", "https://host:99999/x", "https://[::1/x", "http://models.example/x", "file:", "file://[", "~nobody-of-that-name/a.gguf", "s3://[/x", "local://[/x", "https://[/x",
        "file://elsewhere/x", "s3:bucket/key", "oci:", "oci:name", "oci:reg.example/UPPER", "oci:reg.example/a@sha256:12",
        "https://models.example/a.gguf#sha256=12", "https://models.example/a.gguf#part",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_told_so(text):
    with pytest.raises(StagingError) as caught:
        parse(text)
    assert caught.value.cause in {"bad-reference", "hostile-name"}


PREFIXES = ("", "~", "file:", "file://", "hf:", "https://", "http://127.0.0.1", "s3://", "oci:", "local://", "x:")


@given(st.builds(str.__add__, st.sampled_from(PREFIXES), st.text() | st.text("abz019/@:.#?=[]%~-_&", max_size=40)))
def test_any_text_is_a_reference_or_is_refused(text):
    try:
        reference = parse(text)
    except StagingError as error:
        refused = error
    else:
        assert len(reference.id) == 32
        return
    assert refused.cause in CAUSES


@given(st.text(min_size=1))
def test_no_name_of_a_source_leads_out_of_its_folder(name):
    try:
        checked = checked_path(name)
    except StagingError:
        return
    folder = Path("/cache/files")
    assert folder in (folder / checked).parents
    assert Path(checked).parts == tuple(checked.split("/"))


PLANTED = "planted"


def test_users_passwords_and_keys_are_in_no_name():
    for text in (
        f"https://user:{PLANTED}@models.example/a.gguf?sig={PLANTED}&token={PLANTED}",
        f"s3://{PLANTED}:{PLANTED}@bucket/a.gguf",
        f"https://models.example/a.gguf?other={PLANTED}",
    ):
        reference = parse(text)
        assert PLANTED not in reference.text + repr(reference)


def test_queries_tell_models_apart_and_signatures_do_not():
    one = parse("https://models.example/get?model=a&X-Amz-Signature=1")
    assert one.id == parse("https://models.example/get?X-Amz-Signature=2&model=a").id
    assert one.id != parse("https://models.example/get?model=b&X-Amz-Signature=1").id


@pytest.mark.parametrize(
    "text, name",
    [
        ("/srv/big.gguf", "big"),
        ("hf:org/name", "name"),
        ("hf:org/name:Q4_K_M", "name-Q4_K_M"),
        ("hf:org/name@main/sub/a.gguf", "a"),
        ("https://models.example/x/a.gguf?download=true", "a"),
        ("s3://bucket/folder/", "folder"),
        ("oci:reg.example/library/tiny:1b", "tiny"),
    ],
)
def test_a_model_without_a_name_is_called_by_its_file_or_repository(text, name):
    assert default_name(text) == name


@pytest.mark.parametrize(
    "text, remote",
    [
        ("haiku", False),
        ("llama3:8b", False),
        ("a/b.gguf", False),
        ("file:/a", False),
        ("hf:a/b", True),
        ("s3://b/k", True),
    ],
)
def test_names_with_a_colon_are_no_addresses(text, remote):
    assert is_remote(text) is remote


def test_every_cause_says_what_to_do():
    for cause, advice in CAUSES.items():
        assert StagingError(cause, "it failed").what_to_do == advice
        assert advice[0].isupper()
        assert advice.endswith(".")
