"""Archives that nobody has to trust."""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.pools.provisioning import ProvisionError
from llama_orch.pools.provisioning.archive import Limits, unpack

from .conftest import SERVER, tar_of, tree_of, zip_of


def unpacked(tmp_path, content, **limits):
    (tmp_path / "a").write_bytes(content)
    into = tmp_path / "into"
    into.mkdir()
    unpack(tmp_path / "a", into, "llama-server", limits=Limits(**limits))
    return into


def refused(tmp_path, content, match="refused", **limits):
    with pytest.raises(ProvisionError, match=match) as caught:
        unpacked(tmp_path, content, **limits)
    assert caught.value.cause == "bad-archive"
    assert caught.value.permanent


def attempted(place, content):
    """Unpacked, or refused in the one way that there is."""
    refusals = []
    try:
        unpacked(place, content)
    except ProvisionError as error:
        refusals.append(error.cause)
    assert refusals in ([], ["bad-archive"])
    return not refusals


def member(name, kind=tarfile.REGTYPE, content=b"", target="", mode=0o644):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, len(content), target, mode
    return info, content


def tar_with(*members, mode="w:gz", **more):
    made = io.BytesIO()
    opened: Any = tarfile.open
    with opened(fileobj=made, mode=mode, **more) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if content else None)
    return made.getvalue()


def zip_with(name, content, mode):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as bundle:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        bundle.writestr(info, content)
    return made.getvalue()


FILES = {"build/bin/llama-server*": SERVER, "build/bin/libggml.so": b"lib", "LICENSE": b"text"}
PLAIN = tar_of(FILES, "w:")


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        gzip.compress(PLAIN),
        bz2.compress(PLAIN),
        lzma.compress(PLAIN),
        zip_of({k.rstrip("*"): v for k, v in FILES.items()}),
    ],
    ids=["tar", "gzip", "bzip2", "xz", "zip"],
)
def test_archives_of_every_kind_are_told_by_their_content(tmp_path, content):
    into = unpacked(tmp_path, content)
    assert (into / "build/bin/llama-server").read_bytes() == SERVER
    assert (into / "LICENSE").read_bytes() == b"text"
    assert len(tree_of(into)) == 5


def test_a_program_alone_gets_the_servers_name_and_can_be_run(tmp_path):
    into = unpacked(tmp_path, SERVER)
    assert (into / "llama-server").read_bytes() == SERVER
    assert os.access(into / "llama-server", os.X_OK)


def test_what_is_unpacked_is_its_owners_alone_and_has_no_special_bits(tmp_path):
    into = unpacked(tmp_path, tar_with(member("a", content=b"x", mode=0o6777), member("b", content=b"x", mode=0o666)))
    assert stat.S_IMODE((into / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((into / "b").stat().st_mode) == 0o600


def test_links_between_libraries_are_kept(tmp_path):
    into = unpacked(
        tmp_path,
        tar_with(
            member("lib/libx.so", tarfile.SYMTYPE, target="libx.so.1"),
            member("lib/libx.so.1", content=b"library"),
            member("lib/same", tarfile.LNKTYPE, target="lib/libx.so.1"),
            member("up", tarfile.SYMTYPE, target="lib/../lib/libx.so"),
        ),
    )
    for name in ("lib/libx.so", "lib/same", "up"):
        assert (into / name).read_bytes() == b"library"


@pytest.mark.parametrize(
    "members, match",
    [
        ([member("/etc/cron.d/x", content=b"x")], "absolute"),
        ([member("../x", content=b"x")], "climbs"),
        ([member("a/../../x", content=b"x")], "climbs"),
        ([member("a\x01b", content=b"x")], "proper name"),
        ([member("a\\..\\b", content=b"x")], "proper name"),
        ([member("C:x", content=b"x")], "absolute"),
        ([member("a/" * 20 + "x", content=b"x")], "proper name"),
        ([member("x" * 600, content=b"x")], "proper name"),
        ([member("x", content=b"1"), member("x", content=b"2")], "twice"),
        ([member("x", content=b"1"), member("x/y", content=b"2")], "no folder"),
        ([member("x", tarfile.SYMTYPE, target="/etc/passwd")], "leads out"),
        ([member("x", tarfile.SYMTYPE, target="../../etc/passwd")], "leads out"),
        ([member("d/x", tarfile.SYMTYPE, target="a/../../../y")], "leads out"),
        ([member("x", tarfile.SYMTYPE, target="absent")], "nowhere"),
        ([member("x", tarfile.SYMTYPE, target="x")], "nowhere"),
        ([member("x", tarfile.SYMTYPE, target="")], "target"),
        ([member("x", tarfile.LNKTYPE, target="/etc/passwd")], "absolute"),
        ([member("x", tarfile.LNKTYPE, target="absent")], "no file before"),
        ([member("x", tarfile.CHRTYPE)], "no file, folder or link"),
        ([member("x", tarfile.BLKTYPE)], "no file, folder or link"),
        ([member("x", tarfile.FIFOTYPE)], "no file, folder or link"),
        # A link to a folder, through which the next member would be written.
        ([member("d/y", content=b"1"), member("l", tarfile.SYMTYPE, target="d"), member("l/z", content=b"2")], "twice"),
        # Each link stays inside by its letters; one by way of the other does not.
        (
            [
                member("a/b/up", tarfile.SYMTYPE, target="../.."),
                member("a/b/f", content=b"1"),
                member("out", tarfile.SYMTYPE, target="a/b/up/../" + Path("/").name + "x"),
            ],
            "nowhere|leads out",
        ),
    ],
)
def test_a_hostile_member_is_refused_by_name(tmp_path, members, match):
    refused(tmp_path, tar_with(*members), match)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "into"}, "nothing beside it"


def test_a_link_that_leads_out_by_way_of_another_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"not yours")
    content = tar_with(
        member("a/b/f", content=b"1"),
        member("a/b/up", tarfile.SYMTYPE, target="../.."),
        member("out", tarfile.SYMTYPE, target="a/b/up/../secret"),
    )
    refused(tmp_path, content, "leads out")


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644])
def test_a_zip_can_hide_nothing_either(tmp_path, mode):
    refused(tmp_path, zip_with("x", b"/etc/passwd", mode))


def test_a_zip_with_a_climbing_name_or_a_cipher_is_refused(tmp_path):
    (tmp_path / "1").mkdir()
    refused(tmp_path / "1", zip_of({"../x": b"1"}), "climbs")
    locked = bytearray(zip_of({"x": b"1"}))
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "2").mkdir()
    refused(tmp_path / "2", bytes(locked), "encrypted")


@pytest.mark.parametrize("limits", [{"total_bytes": 5000}, {"members": 3}])
@pytest.mark.parametrize("make", [tar_of, zip_of], ids=["tar", "zip"])
def test_more_than_the_bounds_is_refused_while_it_is_unpacked(tmp_path, make, limits):
    refused(tmp_path, make({f"f{n}": bytes(2000) for n in range(5)}), "more than", **limits)
    assert sum(path.stat().st_size for path in (tmp_path / "into").iterdir()) <= 6000


def test_a_compressed_desert_is_refused_by_what_comes_out(tmp_path):
    bomb = gzip.compress(tar_of({"x": bytes(50_000_000)}, "w:"))
    assert len(bomb) < 100_000
    refused(tmp_path, bomb, "more than", total_bytes=1_000_000)
    assert sum(path.stat().st_size for path in (tmp_path / "into").iterdir()) <= 3_000_000


def test_a_header_of_absurd_length_is_not_read_into_memory(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 4 * 2**30
    content = gzip.compress(header.tobuf(tarfile.PAX_FORMAT) + bytes(100_000))
    refused(tmp_path, content, f"a header in it is {4 * 2**30} bytes long")


@pytest.mark.parametrize(
    "content",
    [b"", b"text", bytes(2000), b"PK\x03\x04junk", b"\x1f\x8bjunk", gzip.compress(b"x" * 999), PLAIN[:700]],
    ids=["nothing", "text", "zeros", "zip", "gzip", "compressed", "half"],
)
def test_what_is_no_archive_or_half_of_one_is_refused(tmp_path, content):
    with pytest.raises(ProvisionError) as caught:
        unpacked(tmp_path, content)
    assert caught.value.cause == "bad-archive"


names = st.lists(
    st.one_of(
        st.sampled_from(["..", ".", "", "a", "b", "/", "~", "\x00", "..\\", "é", "x" * 300]), st.text(max_size=5)
    ),
    min_size=1,
    max_size=6,
).map("/".join)
hostile = st.lists(
    st.tuples(
        names.filter(lambda name: "\x00" not in name),
        st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]),
        st.binary(max_size=20),
        names.filter(lambda name: "\x00" not in name),
    ),
    max_size=8,
)


@given(hostile)
def test_whatever_an_archive_names_nothing_is_written_or_reached_outside(tmp_path_factory, members):
    place = tmp_path_factory.mktemp("hostile")
    (place / "secret").write_bytes(b"not yours")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", errors="surrogateescape") as tar:
        for name, kind, content, target in members:
            try:
                info, _ = member(name, kind, content if kind == tarfile.REGTYPE else b"", target)
                tar.addfile(info, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
            except (ValueError, UnicodeError):
                continue
    into = place / "into"
    if attempted(place, made.getvalue()):
        for path in into.rglob("*"):
            assert path.resolve().is_relative_to(into.resolve())
    assert {path.name for path in place.iterdir()} == {"a", "into", "secret"}
    assert (place / "secret").read_bytes() == b"not yours"
    assert (place / "secret").stat().st_nlink == 1


@given(st.lists(st.tuples(names, st.binary(max_size=20), st.integers(0, 0xFFFF)), max_size=6))
def test_whatever_a_zip_names_nothing_is_written_outside(tmp_path_factory, members):
    place = tmp_path_factory.mktemp("hostile")
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as bundle, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name that comes twice is what is tried here
        for name, content, mode in members:
            try:
                info = zipfile.ZipInfo(name or "x")
                info.external_attr = mode << 16
                bundle.writestr(info, content)
            except (ValueError, UnicodeError, struct.error):
                continue
    into = place / "into"
    if attempted(place, made.getvalue()):
        for path in into.rglob("*"):
            assert path.resolve().is_relative_to(into.resolve())
            assert PurePosixPath(path.relative_to(into)).parts
    assert {path.name for path in place.iterdir()} == {"a", "into"}


@given(st.data())
def test_damage_anywhere_is_a_clear_refusal_or_harmless(tmp_path_factory, data):
    kind = data.draw(st.sampled_from([PLAIN, gzip.compress(PLAIN, mtime=0), zip_of({"a": b"1" * 500})]))
    raw = bytearray(kind)
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    place = tmp_path_factory.mktemp("damaged")
    attempted(place, bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    assert {path.name for path in place.iterdir()} == {"a", "into"}
