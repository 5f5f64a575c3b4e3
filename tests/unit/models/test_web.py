"""Files over https: resumed, bounded, held against digests; what fails leaves nothing that looks like a model."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from pathlib import Path

import pytest

from llama_orch.pools.models.cache import Cache
from llama_orch.pools.models.errors import StagingError
from llama_orch.pools.models.http import Client
from llama_orch.pools.models.sources.web import WebSource

from ...support.certificates import certificate
from ...support.model_files import gguf, sha256
from ...support.model_server import serving

MODEL = gguf(7, elements=64 * 1024)


@pytest.fixture
def url(server):
    server.files["/models/tiny.gguf"] = MODEL
    return f"{server.url}/models/tiny.gguf"


def test_a_file_comes_whole_with_its_digest_and_what_it_is(staged, url, cache):
    model = staged(url)
    assert Path(model.path).read_bytes() == MODEL
    assert Path(model.path).name == "tiny.gguf"
    assert (model.digest, model.size_bytes, model.fetched_bytes) == (f"sha256:{sha256(MODEL)}", len(MODEL), len(MODEL))
    assert (model.metadata.architecture, model.metadata.quantization, model.metadata.ctx_max) == ("llama", "F32", 2048)
    assert model.metadata.parameters == 64 * 1024
    assert model.metadata.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2
    assert cache.blob(model.digest).stat().st_mode & 0o777 == 0o400


def test_without_a_digest_it_warns_and_with_one_it_is_verified(staged, url):
    model = staged(url)
    assert model.verification == "unverified"
    assert "unverified" in model.warnings[0]
    again = staged(url, expected_digest=f"sha256:{sha256(MODEL)}")
    assert (again.verification, again.warnings, again.fetched_bytes) == ("verified", [], 0)


def test_strict_without_a_digest_warns_as_well(staged, url):
    assert staged(url, strict=True).verification == "unverified"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("how", ["argument", "reference"])
def test_another_digest_is_refused_and_nothing_is_left(staged, url, contents, how, strict):
    wrong = sha256(b"another")
    with pytest.raises(StagingError, match=r"expected sha256:.*got sha256:") as caught:
        staged(url, expected_digest=wrong, strict=strict) if how == "argument" else staged(
            f"{url}#sha256={wrong}", strict=strict
        )
    assert caught.value.cause == "digest-mismatch"
    assert contents() == set()


def test_a_second_ensure_fetches_and_writes_nothing(staged, url, server, cache, below):
    staged(url)
    before, asked = below(cache.root.parent), len(server.bytes_asked())
    model = staged(url)
    assert (model.fetched_bytes, model.changed) == (0, False)
    assert len(server.bytes_asked()) == asked
    assert below(cache.root.parent) == before


def test_with_its_digest_known_a_second_ensure_asks_nobody(staged, url, server):
    digest = sha256(MODEL)
    staged(url, expected_digest=digest)
    asked = len(server.asked)
    staged(url, expected_digest=digest)
    assert len(server.asked) == asked


def test_a_file_that_changed_at_its_source_comes_again_and_the_old_one_goes(staged, url, server, cache):
    first = staged(url)
    server.files["/models/tiny.gguf"] = other = gguf(8)
    second = staged(url)
    assert second.digest == f"sha256:{sha256(other)}"
    assert Path(second.path).read_bytes() == other
    assert not cache.blob(first.digest).exists()
    assert not Path(first.path).exists()


def test_offline_uses_what_is_there_and_asks_nobody(staged, url, server):
    staged(url)
    asked = len(server.asked)
    assert staged(url, offline=True).digest == f"sha256:{sha256(MODEL)}"
    assert len(server.asked) == asked


def test_offline_without_the_file_says_so(staged, url, server):
    with pytest.raises(StagingError) as caught:
        staged(url, offline=True)
    assert caught.value.cause == "offline"
    assert "models pull" in caught.value.what_to_do
    assert not server.asked


def test_a_source_that_is_away_is_no_trouble_when_the_file_is_there(staged, url, server):
    staged(url)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and nobody answers there
        server.redirects["/models/tiny.gguf"] = f"http://127.0.0.1:{nobody.getsockname()[1]}/gone"
        model = staged(url)
    assert "could not be asked" in model.warnings[0]
    assert Path(model.path).read_bytes() == MODEL


@pytest.mark.parametrize("at", [0, 1, 1000, len(MODEL) - 1])
def test_a_connection_that_is_cut_is_taken_up_where_it_ended(staged, url, server, at):
    server.faults["/models/tiny.gguf"] = [("cut", at)]
    assert staged(url).digest == f"sha256:{sha256(MODEL)}"
    ranges = [one.headers.get("Range") for one in server.bytes_asked()]
    assert ranges == [None, f"bytes={at}-" if at else None]


def test_what_was_fetched_stays_when_connections_are_cut_for_good_and_the_next_pull_goes_on(staged, url, server, cache):
    server.faults["/models/tiny.gguf"] = [("cut", 1000), ("cut", 1000), ("cut", 1000)]
    with pytest.raises(StagingError, match=r"ended after 3000 of \d+ bytes .tried 3 times") as caught:
        staged(url)
    assert caught.value.cause == "interrupted"
    assert cache.records() == []
    assert not list((cache.root / "blobs").iterdir())
    model = staged(url)
    assert model.digest == f"sha256:{sha256(MODEL)}"
    assert model.fetched_bytes == len(MODEL) - 3000
    assert server.bytes_asked()[-1].headers["Range"] == "bytes=3000-"


def test_a_part_of_older_content_is_thrown_away(staged, url, server):
    server.faults["/models/tiny.gguf"] = [("cut", 1000)] * 3
    with pytest.raises(StagingError):
        staged(url)
    server.files["/models/tiny.gguf"] = other = gguf(9)
    assert staged(url).digest == f"sha256:{sha256(other)}"
    assert "Range" not in server.bytes_asked()[-1].headers


def test_content_that_changes_between_two_connections_is_not_mixed(staged, url, server):
    other = gguf(9, elements=64 * 1024)
    etags = iter(['"one"', '"one"', '"two"', '"two"', '"two"'])

    class Changing(dict):
        def get(self, path, default=None):
            etag = next(etags)
            server.files["/models/tiny.gguf"] = MODEL if etag == '"one"' else other
            return etag

    server.etags = Changing()
    server.faults["/models/tiny.gguf"] = [("cut", 1000)]
    assert staged(url).digest in {f"sha256:{sha256(other)}", f"sha256:{sha256(MODEL)}"}


def test_a_spoilt_part_is_fetched_again_from_its_start(staged, url, server, cache):
    server.faults["/models/tiny.gguf"] = [("cut", 5000)] * 3
    with pytest.raises(StagingError):
        staged(url, expected_digest=sha256(MODEL))
    (part,) = list(cache.root.glob("partial/*/files/*"))
    part.write_bytes(b"\0" * part.stat().st_size)
    model = staged(url, expected_digest=sha256(MODEL))
    assert (model.verification, Path(model.path).read_bytes()) == ("verified", MODEL)


def test_a_server_that_sends_all_of_it_whatever_was_asked_for_is_understood(staged, url, server):
    server.faults["/models/tiny.gguf"] = [("cut", 1000), ("no-range", 0)]
    assert staged(url).digest == f"sha256:{sha256(MODEL)}"


def test_a_server_that_sends_another_part_than_asked_for_is_not_believed(staged, url, server, contents):
    server.faults["/models/tiny.gguf"] = [("cut", 1000), ("shifted", 7)]
    assert staged(url).digest == f"sha256:{sha256(MODEL)}"
    server.files["/models/tiny.gguf"] = gguf(3)
    server.faults["/models/tiny.gguf"] = [("cut", 1000), ("shifted", 7), ("cut", 9), ("shifted", 1), ("cut", 3)]
    with pytest.raises(StagingError, match=r"another part than was asked for|connection ended"):
        staged(url)


@pytest.mark.parametrize("says", [len(MODEL) + 1, len(MODEL) - 1, 0, 2**62])
def test_a_server_that_lies_about_lengths_is_refused_and_nothing_is_left(staged, url, server, contents, says):
    server.faults["/models/tiny.gguf"] = [("says", says)] * 5
    with pytest.raises(StagingError) as caught:
        staged(url)
    assert caught.value.cause == "wrong-length"
    assert contents() == set()


def test_a_body_that_is_longer_than_announced_is_refused_and_nothing_is_left(staged, url, server, contents):
    server.faults["/models/tiny.gguf"] = [("chunked", 100)]
    with pytest.raises(StagingError, match="more than the") as caught:
        staged(url)
    assert caught.value.cause == "wrong-length"
    assert contents() == set()


def test_a_length_that_no_disk_holds_is_refused_before_anything_is_fetched(staged, url, server, tmp_path):
    cache = Cache(tmp_path / "small", free_bytes=lambda path: 100_000)
    with pytest.raises(StagingError, match=r"bytes are to come, and the disk of .* has 100000 free") as caught:
        staged(url, cache=cache)
    assert caught.value.cause == "disk-full"
    assert not server.bytes_asked()
    assert not list(cache.root.glob("partial/*"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(staged, url, server, status):
    server.faults["/models/tiny.gguf"] = [("status", status)] * 2
    assert staged(url).fetched_bytes == len(MODEL)


@pytest.mark.parametrize("status, cause", [(403, "unauthorized"), (404, "not-found"), (410, "not-found")])
def test_a_refusal_is_told_at_once(staged, url, server, status, cause, contents):
    server.faults["/models/tiny.gguf"] = [("status", status)]
    with pytest.raises(StagingError) as caught:
        staged(url)
    assert caught.value.cause == cause
    assert len(server.bytes_asked()) == 1


def test_a_web_page_instead_of_a_model_is_refused_and_nothing_is_left(staged, url, server, contents):
    server.files["/models/tiny.gguf"] = b"<!doctype html><title>Please sign in</title>"
    with pytest.raises(StagingError, match="no GGUF") as caught:
        staged(url)
    assert caught.value.cause == "bad-model"
    assert contents() == set()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda model: model[: len(model) // 2], id="truncated"),
        pytest.param(lambda model: model[:8] + b"\xff" * 8 + model[16:], id="absurd tensor count"),
        pytest.param(lambda model: model[:16] + b"\xff" * 8 + model[24:], id="absurd entry count"),
        pytest.param(lambda model: model[:24] + b"\xff" * 8 + model[32:], id="absurd length of a key"),
        pytest.param(lambda model: b"GGUF\x03\0\0\0" + b"\0" * 16, id="empty"),
    ],
)
def test_a_hostile_or_truncated_gguf_is_refused_and_nothing_is_left(staged, url, server, contents, spoil):
    server.files["/models/tiny.gguf"] = spoil(MODEL)
    with pytest.raises(StagingError) as caught:
        staged(url)
    assert caught.value.cause == "bad-model"
    assert str(contents()) == "set()"


def test_cancelling_ends_a_stalled_transfer_and_keeps_what_came(staged, url, server, cache):
    server.faults["/models/tiny.gguf"] = [("stall", 2000)]
    cancel = threading.Event()
    threading.Thread(target=lambda: (server.stalled.wait(30), cancel.set()), daemon=True).start()
    with pytest.raises(StagingError) as caught:
        staged(url, cancel=cancel)
    assert caught.value.cause == "cancelled"
    assert staged(url).digest == f"sha256:{sha256(MODEL)}"


def test_progress_ends_with_all_bytes(staged, url):
    seen = []
    staged(url, progress=seen.append)
    assert (seen[-1].phase, seen[-1].file) == ("fetch", "tiny.gguf")
    assert seen[-1].done_bytes == seen[-1].total_bytes == len(MODEL)
    assert [one.done_bytes for one in seen] == sorted(one.done_bytes for one in seen)


def test_signatures_of_an_address_stand_nowhere(staged, url, server, cache):
    model = staged(f"{url}?X-Amz-Signature=planted-canary&token=planted-canary")
    assert model.source_url == url
    for path in cache.root.parent.rglob("*"):
        if path.is_file():
            assert b"planted-canary" not in path.read_bytes()
    server.files["/models/tiny.gguf"] = b""
    with pytest.raises(StagingError) as caught:
        staged(f"{url}?sig=planted-canary#sha256={'0' * 64}")
    assert "planted-canary" not in json.dumps(caught.value.to_dict())
    assert staged(f"{url}?X-Amz-Signature=another", offline=True).path == model.path


def test_plain_http_leads_to_this_machine_alone(staged):
    with pytest.raises(StagingError, match="plain http is for this machine only"):
        staged("http://models.example/tiny.gguf")


def test_redirects_end(staged, url, server):
    server.redirects["/models/tiny.gguf"] = url
    with pytest.raises(StagingError, match="redirects more than"):
        staged(url)


def test_redirects_do_not_leave_this_machine_without_tls(staged, url, server):
    server.redirects["/models/tiny.gguf"] = "http://models.example/tiny.gguf"
    with pytest.raises(StagingError, match="without TLS"):
        staged(url)


def test_tls_is_used_certificates_are_checked_and_https_never_leads_to_http(staged, tmp_path, server):
    cert, key = certificate(tmp_path, "models")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with serving(context) as secure:
        secure.files["/tiny.gguf"] = MODEL
        secure.faults["/tiny.gguf"] = [("cut", 4000)]
        trusting = Client(context=ssl.create_default_context(cafile=str(cert)))
        url = f"{secure.url}/tiny.gguf"
        with pytest.raises(StagingError, match="certificate is not trusted"):
            staged(url)
        model = staged(url, source=lambda reference: WebSource(reference, trusting))
        assert model.digest == f"sha256:{sha256(MODEL)}"
        secure.redirects["/down.gguf"] = f"{server.url}/down.gguf"
        with pytest.raises(StagingError, match="without TLS"):
            staged(f"{secure.url}/down.gguf", source=lambda reference: WebSource(reference, trusting))
