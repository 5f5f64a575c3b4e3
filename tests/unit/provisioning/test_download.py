"""Fetching: resumed, bounded, held against the digest."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_orch.pools.provisioning import ProvisionError
from llama_orch.pools.provisioning.download import TRIES, fetch, without_credentials

from .conftest import FileServer, sha256

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def pauses():
    return []


def fetched(files, part, pauses, content=CONTENT, **more):
    files.files["/a"] = content
    fetch(f"{files.url}/a", part, sha256=sha256(content), pause=pauses.append, **more)
    return part.read_bytes()


def test_a_file_comes_whole_and_for_its_owner_alone(files, tmp_path, pauses):
    heard = []
    assert fetched(files, tmp_path / "p", pauses, progress=lambda *told: heard.append(told)) == CONTENT
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o600
    assert heard[-1] == ("download", len(CONTENT), len(CONTENT), "bytes")
    assert pauses == []


def test_what_broke_off_goes_on_where_it_ended(files, tmp_path, pauses):
    files.faults = ["cut:1000", "cut:500"]
    assert fetched(files, tmp_path / "p", pauses) == CONTENT
    assert files.ranges == ["", "bytes=1000-", "bytes=1500-"]
    assert len(pauses) == 2


def test_a_server_without_ranges_sends_all_of_it_again(files, tmp_path, pauses):
    files.faults = ["cut:1000", "whole"]
    assert fetched(files, tmp_path / "p", pauses) == CONTENT


def test_a_range_that_begins_elsewhere_is_not_joined_on(files, tmp_path, pauses):
    files.faults = ["cut:1000", "gap"]
    assert fetched(files, tmp_path / "p", pauses) == CONTENT


def test_a_beginning_from_an_earlier_run_is_used(files, tmp_path, pauses):
    (tmp_path / "p").write_bytes(CONTENT[:4000])
    assert fetched(files, tmp_path / "p", pauses) == CONTENT
    assert files.ranges == ["bytes=4000-"]
    assert fetched(files, tmp_path / "p", pauses) == CONTENT, "all of it lay there"


@pytest.mark.parametrize("junk", [b"x" * 100, CONTENT + b"more"])
def test_a_beginning_of_something_else_is_thrown_away(files, tmp_path, pauses, junk):
    (tmp_path / "p").write_bytes(junk)
    assert fetched(files, tmp_path / "p", pauses) == CONTENT


def test_another_digest_is_refused_with_both_and_leaves_nothing(files, tmp_path, pauses):
    files.files["/a"] = CONTENT
    with pytest.raises(ProvisionError) as caught:
        fetch(f"{files.url}/a?token=geheim", tmp_path / "p", sha256="0" * 64, pause=pauses.append)
    assert caught.value.cause == "wrong-digest"
    assert caught.value.permanent
    assert sha256(CONTENT) in caught.value.message
    assert "0" * 64 in caught.value.message
    assert "geheim" not in caught.value.message
    assert not (tmp_path / "p").exists()


def test_trouble_that_may_pass_is_tried_again_and_then_told(files, tmp_path, pauses):
    files.faults = ["status:503", "status:429"]
    assert fetched(files, tmp_path / "p", pauses) == CONTENT
    (tmp_path / "p").unlink()
    files.faults = ["status:500"] * TRIES
    with pytest.raises(ProvisionError) as caught:
        fetched(files, tmp_path / "p", pauses)
    assert (caught.value.cause, caught.value.permanent) == ("fetch-failed", False)
    assert "HTTP 500" in caught.value.message


def test_an_answer_that_is_final_is_not_asked_for_twice(files, tmp_path, pauses):
    with pytest.raises(ProvisionError, match="HTTP 404"):
        fetch(f"{files.url}/absent", tmp_path / "p", sha256="0" * 64, pause=pauses.append)
    assert len(files.ranges) == 1


def test_nobody_there_is_told(tmp_path, pauses):
    with pytest.raises(ProvisionError, match="refused") as caught:
        fetch("http://127.0.0.1:1/a", tmp_path / "p", sha256="0" * 64, pause=pauses.append)
    assert caught.value.cause == "fetch-failed"


def test_more_than_the_bound_is_refused_and_leaves_nothing_to_go_on_with(files, tmp_path, pauses):
    with pytest.raises(ProvisionError) as caught:
        fetched(files, tmp_path / "p", pauses, limit_bytes=100)
    assert caught.value.cause == "bad-archive"
    assert (tmp_path / "p").stat().st_size == 0


def test_giving_up_ends_it_and_keeps_what_came(files, tmp_path, pauses):
    came = []
    files.faults = ["cut:1000"]
    with pytest.raises(ProvisionError) as caught:
        fetched(files, tmp_path / "p", pauses, stop=lambda: bool(came), progress=lambda *told: came.append(told))
    assert caught.value.cause == "cancelled"
    assert (tmp_path / "p").read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_to_anything_but_http_is_not_followed(files, tmp_path, pauses, target):
    files.files["/a"] = CONTENT
    files.faults = [f"to:{target}"]
    with pytest.raises(ProvisionError, match="cannot be fetched"):
        fetch(f"{files.url}/a", tmp_path / "p", sha256=sha256(CONTENT), pause=pauses.append)


def test_a_redirect_to_another_place_is_followed(files, tmp_path, pauses):
    files.files["/b"] = CONTENT
    files.faults = [f"to:{files.url}/b"]
    assert fetched(files, tmp_path / "p", pauses) == CONTENT


@pytest.mark.parametrize("scheme", ["ftp://x/y", "data:,x", "ssh://x/y", "nonsense"])
def test_other_kinds_of_addresses_are_refused(tmp_path, scheme):
    with pytest.raises(ProvisionError) as caught:
        fetch(scheme, tmp_path / "p", sha256="0" * 64)
    assert caught.value.cause == "bad-configuration"


def test_a_file_of_this_machine_is_copied(tmp_path):
    (tmp_path / "a b").write_bytes(CONTENT)
    for url in (str(tmp_path / "a b"), (tmp_path / "a b").as_uri()):
        fetch(url, tmp_path / "p", sha256=sha256(CONTENT))
        assert (tmp_path / "p").read_bytes() == CONTENT
    with pytest.raises(ProvisionError, match="there is no file"):
        fetch(str(tmp_path / "absent"), tmp_path / "p", sha256=sha256(CONTENT))


def test_credentials_are_not_written_down():
    assert without_credentials("https://user:geheim@host:1/a?token=geheim#x") == "https://host:1/a"
    assert without_credentials("/a/b") == "/a/b"


@settings(max_examples=40)
@given(
    content=st.binary(min_size=1, max_size=3000),
    before=st.binary(max_size=200),
    faults=st.lists(
        st.one_of(st.integers(0, 2000).map(lambda n: f"cut:{n}"), st.sampled_from(["whole", "gap", "status:503", ""])),
        max_size=TRIES - 1,
    ),
)
def test_whatever_breaks_what_arrives_is_what_was_named(tmp_path_factory, content, before, faults):
    files = FileServer()
    part = tmp_path_factory.mktemp("fetched") / "p"
    part.write_bytes(before)
    files.faults = list(faults)
    refusals = []
    try:
        assert fetched(files, part, [], content) == content
    except ProvisionError as error:
        refusals.append(error.cause)
    finally:
        files.close()
    assert refusals in ([], ["fetch-failed"])
