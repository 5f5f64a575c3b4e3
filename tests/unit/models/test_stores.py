"""Object stores through fsspec against an S3 server, and registries over the distribution API."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_orch.pools.models.errors import StagingError
from llama_orch.pools.models.references import parse
from llama_orch.pools.models.sources import source_of

from ...support.model_files import gguf, hf_model, sha256

MODEL = gguf(5, elements=1024 * 1024)
GGUF_LAYER = "application/vnd.ollama.image.model"


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[object, str]]:
    """An S3 client on a server of its own, and that server's address."""
    import boto3
    from moto.server import ThreadedMotoServer

    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        _, port = store.get_host_and_port()
        address = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3", endpoint_url=address, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
        )
        client.create_bucket(Bucket="models")
        yield client, address
    finally:
        store.stop()


@pytest.fixture
def s3(bucket, staged, monkeypatch):
    """Stages from the S3 server."""
    client, address = bucket
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return client, staged


def put(client, key, content):
    client.put_object(Bucket="models", Key=key, Body=content)


def test_an_object_comes_whole_and_a_second_ensure_writes_nothing(s3, cache, below):
    client, staged = s3
    put(client, "one/tiny.gguf", MODEL)
    model = staged("s3://models/one/tiny.gguf")
    assert Path(model.path).read_bytes() == MODEL
    assert model.source_url == "s3://models/one/tiny.gguf"
    before = below(cache.root.parent)
    assert staged("s3://models/one/tiny.gguf").fetched_bytes == 0
    assert below(cache.root.parent) == before
    put(client, "one/tiny.gguf", gguf(6))
    assert staged("s3://models/one/tiny.gguf").digest == f"sha256:{sha256(gguf(6))}"


def test_an_object_is_taken_up_where_it_ended(s3, cache):
    client, staged = s3
    put(client, "two/tiny.gguf", MODEL)

    class Cutting:
        """The store's source, whose first streams end early."""

        def __init__(self, reference):
            self.inner = source_of(reference)
            self.offsets = []

        def listing(self):
            return self.inner.listing()

        def open(self, file, offset):
            self.offsets.append(offset)
            stream = self.inner.open(file, offset)
            if len(self.offsets) < 3:
                read, left = stream.read, [100_000]

                def cut(size):
                    piece = read(min(size, left[0]))
                    left[0] -= len(piece)
                    return piece

                stream.read = cut
            return stream

    made = []
    model = staged("s3://models/two/tiny.gguf", source=lambda reference: made.append(Cutting(reference)) or made[0])
    assert made[0].offsets == [0, 100_000, 200_000]
    assert model.digest == f"sha256:{sha256(MODEL)}"


def test_a_prefix_is_a_folder_and_an_update_fetches_changed_objects_only(s3):
    client, staged = s3
    files = hf_model()
    for name, content in files.items():
        put(client, f"hf/{name}", content)
    model = staged("s3://models/hf")
    assert {path.name: path.read_bytes() for path in Path(model.path).iterdir()} == files
    put(client, "hf/tokenizer.json", b'{"other": 1}')
    assert staged("s3://models/hf").fetched_bytes == len(b'{"other": 1}')


def test_what_is_not_in_the_store_is_told_without_keys(s3, contents):
    _, staged = s3
    with pytest.raises(StagingError) as caught:
        staged("s3://models/none.gguf")
    assert caught.value.cause == "not-found"
    assert contents() == set()


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from pathlib import Path
from llama_orch.pools.models.cache import Cache
from llama_orch.pools.models.errors import StagingError
from llama_orch.pools.models.staging import stage
try:
    stage(sys.argv[2], cache=Cache(Path(sys.argv[3])))
except StagingError as error:
    print(error.cause, error.what_to_do, sep="|", end="")
"""


@pytest.mark.parametrize(
    "missing, ref, extra",
    [
        ("huggingface_hub", "hf:org/name", "models"),
        ("fsspec", "s3://models/tiny.gguf", "s3"),
        ("s3fs", "s3://models/tiny.gguf", "s3"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, missing, ref, extra):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, ref, str(tmp_path / "models")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"missing-package|python -m pip install 'llama-orch[{extra}]'", done.stderr


@pytest.mark.parametrize("scheme", ["local", "memory2", "simplecache", "zip", "reference", "nonsense"])
def test_schemes_that_lead_to_no_store_are_refused_by_name(staged, scheme):
    with pytest.raises(StagingError) as caught:
        staged(f"{scheme}://bucket/tiny.gguf")
    assert caught.value.cause in {"unsupported", "missing-package"}


def test_chained_addresses_are_refused():
    with pytest.raises(StagingError, match="leads to no store"):
        parse("s3::file:///etc/passwd")


# --- registries -------------------------------------------------------------------------------------------------------


def registry(server) -> str:
    return f"oci:127.0.0.1:{server.port}"


def test_a_model_of_a_registry_comes_verified_by_its_digest(staged, server):
    digest = server.push_image(
        "library/tiny", "1b", [(GGUF_LAYER, "", MODEL), ("application/vnd.ollama.image.license", "", b"free")]
    )
    model = staged(f"{registry(server)}/library/tiny:1b")
    assert Path(model.path).name == "tiny.gguf"
    assert Path(model.path).read_bytes() == MODEL
    assert (model.verification, model.revision) == ("verified", digest)
    asked = len(server.bytes_asked())
    assert staged(f"{registry(server)}/library/tiny:1b").fetched_bytes == 0
    assert len(server.bytes_asked()) == asked


def test_a_registry_that_asks_who_one_is_gets_the_token_that_it_gave(staged, server):
    server.tokens["/v2/"] = "yes"
    server.push_image("library/tiny", "latest", [(GGUF_LAYER, "", MODEL)])
    assert staged(f"{registry(server)}/library/tiny").digest == f"sha256:{sha256(MODEL)}"


def test_layers_with_titles_are_files_under_these_names(staged, server):
    files = hf_model()
    server.push_image("org/hf", "v1", [("application/octet-stream", name, files[name]) for name in files])
    model = staged(f"{registry(server)}/org/hf:v1")
    assert {path.name: path.read_bytes() for path in Path(model.path).iterdir()} == files


def test_a_layer_that_is_another_than_its_digest_is_refused_and_nothing_is_left(staged, server, contents):
    server.push_image("library/tiny", "latest", [(GGUF_LAYER, "", MODEL)])
    server.faults[f"/v2/library/tiny/blobs/sha256:{sha256(MODEL)}"] = [("flip", 100)]
    with pytest.raises(StagingError) as caught:
        staged(f"{registry(server)}/library/tiny")
    assert caught.value.cause == "digest-mismatch"
    assert contents() == set()


def test_a_manifest_that_is_another_than_its_digest_is_refused(staged, server, contents):
    digest = server.push_image("library/tiny", "latest", [(GGUF_LAYER, "", MODEL)])
    server.files[f"/v2/library/tiny/manifests/{digest}"] += b" "
    with pytest.raises(StagingError, match="another manifest"):
        staged(f"{registry(server)}/library/tiny@{digest}")
    assert contents() == set()


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"{}",
        b'{"layers": 7}',
        b'{"layers": []}',
        b'{"layers": [{"digest": "sha256:x", "size": 1}]}',
        b"[" * 9999,
    ],
)
def test_manifests_that_are_none_of_a_model_are_refused(staged, server, contents, manifest):
    server.files["/v2/library/odd/manifests/latest"] = manifest
    with pytest.raises(StagingError) as caught:
        staged(f"{registry(server)}/library/odd")
    assert caught.value.cause == "bad-model"
    assert contents() == set()


def test_titles_that_lead_elsewhere_are_refused(staged, server, contents):
    server.push_image("library/evil", "latest", [(GGUF_LAYER, "../../evil.gguf", MODEL)])
    with pytest.raises(StagingError) as caught:
        staged(f"{registry(server)}/library/evil")
    assert caught.value.cause == "hostile-name"
    assert contents() == set()


def test_a_registry_has_no_such_model(staged, server):
    with pytest.raises(StagingError) as caught:
        staged(f"{registry(server)}/library/none")
    assert caught.value.cause == "not-found"
