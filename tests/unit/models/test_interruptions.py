"""Kills, power losses and full disks in the middle of a pull; several processes that pull the same."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llama_orch.pools.models.cache import Cache
from llama_orch.pools.models.errors import StagingError
from llama_orch.pools.models.partial import PartialFile
from llama_orch.pools.models.transfer import Listing, RemoteFile

from ...support.model_files import gguf, sha256

MODEL = gguf(11, elements=512 * 1024)

PULL = """
import sys
from pathlib import Path
from llama_orch.pools.models.cache import Cache
from llama_orch.pools.models.errors import StagingError
from llama_orch.pools.models.staging import stage
try:
    staged = stage(sys.argv[1], cache=Cache(Path(sys.argv[2])), waits_s=())
    print(staged.digest, staged.fetched_bytes)
except StagingError as error:
    print(error.cause)
"""


def pull(url: str, root: Path, **options) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PULL, url, str(root)], stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("at", [0, 1, 700_000, len(MODEL) - 1])
def test_a_pull_that_was_killed_goes_on_where_it_was_and_has_the_right_digest(server, staged, cache, at):
    server.files["/tiny.gguf"] = MODEL
    server.faults["/tiny.gguf"] = [("stall", at)]
    url = f"{server.url}/tiny.gguf"
    process = pull(url, cache.root)
    assert server.stalled.wait(60)
    part = wait_for_part(cache, at)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert cache.records() == []
    here = part.stat().st_size if part else 0
    model = staged(url)
    assert model.digest == f"sha256:{sha256(MODEL)}"
    assert Path(model.path).read_bytes() == MODEL
    assert model.fetched_bytes == len(MODEL) - here
    assert not cache.partial(model.id).exists()


def wait_for_part(cache: Cache, size: int) -> Path | None:
    """The part of the only transfer, once everything that came is written."""
    pause = threading.Event()
    for _ in range(3_000):
        found = list(cache.root.glob("partial/*/files/*"))
        # The last piece is only written when it is full or the body ends: what is there may be less.
        if found and (not size or found[0].stat().st_size >= size // (1 << 20) * (1 << 20)):
            return found[0]
        pause.wait(0.02)
    return None


def test_after_a_power_loss_only_what_was_synced_counts(tmp_path):
    part = PartialFile(tmp_path / "files" / "a", tmp_path / "notes", content="c", boot="one", size_bytes=100)
    part.write(b"x" * 60)
    part.close()
    same = PartialFile(tmp_path / "files" / "a", tmp_path / "notes", content="c", boot="one", size_bytes=100)
    assert same.resumed_bytes == 60
    same.close()
    later = PartialFile(tmp_path / "files" / "a", tmp_path / "notes", content="c", boot="two", size_bytes=100)
    assert later.resumed_bytes == 0
    assert (tmp_path / "files" / "a").stat().st_size == 0
    later.close()


def test_a_part_that_is_a_link_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        PartialFile(tmp_path / "files" / "a", tmp_path / "notes", content="c", boot="one")
    assert target.read_bytes() == b"precious"


def test_a_disk_that_fills_up_is_told_and_nothing_is_left(server, cache, contents):
    server.files["/tiny.gguf"] = MODEL

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    process = pull(f"{server.url}/tiny.gguf", cache.root, preexec_fn=small_files_only)
    out, _ = process.communicate(timeout=60)
    assert out.strip() == "disk-full"
    assert contents() == set()


@pytest.mark.parametrize("kind", ["web", "file"])
def test_a_cache_that_cannot_be_written_is_told(server, staged, tmp_path, kind):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "tiny.gguf").write_bytes(MODEL)
    server.files["/tiny.gguf"] = MODEL
    ref = f"{server.url}/tiny.gguf" if kind == "web" else str(tmp_path / "tiny.gguf")
    with pytest.raises(StagingError, match="Not a directory") as caught:
        staged(ref, cache=Cache(tmp_path / "file" / "models"))
    assert caught.value.cause == "disk-failed"


def test_of_several_processes_that_pull_the_same_one_fetches(server, cache):
    server.files["/tiny.gguf"] = MODEL
    url = f"{server.url}/tiny.gguf"
    processes = [pull(url, cache.root) for _ in range(3)]
    said = sorted(process.communicate(timeout=60)[0].split()[1] for process in processes)
    assert said == ["0", "0", str(len(MODEL))]
    assert len(server.bytes_asked()) == 1


def test_a_child_that_inherits_the_locks_keeps_the_model_when_its_parent_is_gone(server, staged, tmp_path):
    server.files["/tiny.gguf"] = MODEL
    cache = Cache(tmp_path / "data" / "models", limit_bytes=1)
    model = staged(f"{server.url}/tiny.gguf", cache=Cache(cache.root))
    held = cache.hold(model.id)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=held.descriptors)
    try:
        held.release()
        assert cache.in_use(model.id)
        assert [one for one in cache.collect() if one.kind == "model"] == []
        with pytest.raises(StagingError, match="is loaded"):
            cache.remove(model.id)
    finally:
        child.kill()
        child.wait(30)
    assert [one.what for one in cache.collect()] == [model.ref]
    assert not Path(model.path).exists()


def test_a_spoilt_blob_is_found_by_strict_and_fetched_again(server, staged, cache):
    server.files["/tiny.gguf"] = MODEL
    url = f"{server.url}/tiny.gguf"
    model = staged(url)
    blob = cache.blob(model.digest)
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([MODEL[-1] ^ 1]))
    assert staged(url).fetched_bytes == 0
    again = staged(url, strict=True)
    assert "damaged on the disk" in again.warnings[0]
    assert (again.fetched_bytes, again.digest) == (len(MODEL), model.digest)
    assert cache.blob(model.digest).read_bytes() == MODEL


def test_a_size_that_does_not_fit_the_limit_is_refused_with_the_numbers_before_it_is_fetched(server, staged, tmp_path):
    server.files["/tiny.gguf"] = MODEL
    server.files["/loaded.gguf"] = other = gguf(1)
    cache = Cache(tmp_path / "data" / "models", limit_bytes=len(MODEL) + len(other) - 1)
    loaded = staged(f"{server.url}/loaded.gguf", cache=cache)
    asked = len(server.bytes_asked())
    with cache.hold(loaded.id):
        with pytest.raises(
            StagingError, match=rf"needs {len(MODEL)} bytes, .* and {len(other)} of them are in use"
        ) as caught:
            staged(f"{server.url}/tiny.gguf", cache=cache)
        assert caught.value.cause == "cache-full"
        assert len(server.bytes_asked()) == asked
    staged(f"{server.url}/tiny.gguf", cache=cache)
    assert [record.ref for record in cache.records()] == [f"{server.url}/tiny.gguf"]


def test_a_file_of_untold_length_stops_where_the_disk_would_be_full(staged, tmp_path, contents):
    cache = Cache(tmp_path / "data" / "models", free_bytes=lambda path: 100 << 20)

    class Endless:
        offset, total, etag = 0, -1, ""
        sent = 0

        def read(self, size):
            self.sent += size
            return MODEL[:size]

        def interrupt(self):
            pass

        def close(self):
            pass

    stream = Endless()

    class Source:
        def listing(self):
            return Listing(source_url="endless:", files=[RemoteFile(path="endless.gguf")])

        def open(self, file, offset):
            return stream

    with pytest.raises(StagingError) as caught:
        staged("https://models.example/endless.gguf", cache=cache, source=lambda reference: Source())
    assert caught.value.cause == "disk-full"
    assert stream.sent <= 100 << 20
    assert contents() == set()
