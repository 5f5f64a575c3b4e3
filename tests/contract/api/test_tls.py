"""TLS and certificates of clients: streams as without, and nobody gets in who may not (AUTH-1, attack 46)."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from llama_orch.api.tls import server_context, subject_of
from llama_orch.client import Client
from llama_orch.core.auth_settings import TlsSettings
from llama_orch.core.errors import ConfigError
from llama_orch.core.settings import LimitSettings

from .certificates import Authority
from .keyed_server import PROMPT, SECRETS, code_of
from .live_server import LiveServer, mock_settings


class Stage:
    """An authority, a stranger, and a server for clients with a certificate of the first."""

    def __init__(self, folder: Path) -> None:
        self.ours, self.theirs = Authority(folder, "ours"), Authority(folder, "theirs")
        self.cert, self.key = self.ours.issue("server")
        self.alice, self.bob = self.ours.issue("alice"), self.ours.issue("bob")
        self.mallory = self.theirs.issue("mallory")

    def tls(self, **more: Any) -> TlsSettings:
        return TlsSettings(cert_file=self.cert, key_file=self.key, **more)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("certificates"))


def serve(folder: Path, tls: TlsSettings, **more: Any) -> LiveServer:
    return LiveServer(folder, mock_settings(tls=tls), **more).start()


@pytest.fixture(scope="module")
def plain(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = serve(tmp_path_factory.mktemp("tls"), stage.tls(), secrets=None)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def mutual(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    tls = stage.tls(client_ca_file=str(stage.ours.ca_file), client_identity=True)
    server = serve(tmp_path_factory.mktemp("mtls"), tls, secrets=SECRETS)
    yield server
    server.stop()


def trusting(stage: Stage, shown: tuple[str, str] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(stage.ours.ca_file))
    if shown is not None:
        context.load_cert_chain(*shown)
    return context


def client(server: LiveServer, context: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(base_url=server.url, verify=context, trust_env=False, timeout=20)


def test_streams_come_token_by_token_over_tls(plain: LiveServer, stage: Stage) -> None:
    assert plain.url.startswith("https://")
    with client(plain, trusting(stage)) as http:
        body = {"model_ref": "mock", "prompt": "[[mock tokens=3000]]"}
        task_id = http.post("/v1/tasks", json=body).json()["task_id"]
        with http.stream("GET", f"/v1/tasks/{task_id}/stream") as answer:
            said = "".join(answer.iter_text())
    assert said.count("event: token") == 3000
    assert said.count("event: end") == 1


def test_the_official_client_and_the_sdk_speak_it(plain: LiveServer, stage: Stage) -> None:
    with httpx2.Client(verify=trusting(stage), trust_env=False) as http:
        one = openai.OpenAI(base_url=f"{plain.url}/v1", api_key="any", http_client=http)
        messages: list[Any] = [{"role": "user", "content": "x"}]
        pieces = list(one.chat.completions.create(model="mock", messages=messages, stream=True))
        assert pieces[-1].choices[0].finish_reason
    with Client(plain.url, "any", ca_file=stage.ours.ca_file) as sdk:
        assert sdk.pools()
    with Client(plain.url, "any", ca_file=stage.cert) as pinned:
        assert pinned.pools(), "the server's own certificate may be what is trusted"


def test_a_reader_that_leaves_is_heard(plain: LiveServer, stage: Stage) -> None:
    with client(plain, trusting(stage)) as http:
        body = {"model_ref": "mock", "prompt": "[[mock fault=silent:1]]", "cancel_on_disconnect": True}
        task_id = http.post("/v1/tasks", json=body).json()["task_id"]
        with http.stream("GET", f"/v1/tasks/{task_id}/stream") as answer:
            next(line for line in answer.iter_lines() if line == "event: token")
    with client(plain, trusting(stage)) as http:
        assert http.get(f"/v1/tasks/{task_id}?wait=20000").json()["state"] == "cancelled"


def test_who_does_not_speak_tls_hears_nothing(plain: LiveServer) -> None:
    host, port = plain.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as one:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        try:
            said = one.recv(65536)
        except ConnectionResetError:
            said = b""
    assert b"HTTP/1.1" not in said


def test_a_handshake_that_is_not_ended_is_cut_off_by_time(make_server: Callable[..., LiveServer], stage: Stage) -> None:
    server = make_server(tls=stage.tls(), limits=LimitSettings(header_timeout_ms=300))
    host, port = server.url.removeprefix("https://").split(":")
    for begun in (b"", b"\x16\x03\x01\x02\x00"):
        with socket.create_connection((host, int(port)), timeout=20) as one:
            one.sendall(begun)
            try:
                assert one.recv(65536) == b""
            except ConnectionResetError:
                continue


def test_older_versions_are_refused(stage: Stage) -> None:
    context = server_context(stage.tls())
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        shake_hands(context, old)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> str | None:
    """The version that both agree on, without a network. :raises ssl.SSLError: they do not."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(down, up, server_hostname="localhost")
    other = server.wrap_bio(up, down, server_side=True)
    for _ in range(10):
        done = 0
        for side in (one, other):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                continue
        if done == 2:
            break
    return other.version()


def test_tls_1_2_and_1_3_are_spoken(stage: Stage) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = server_context(stage.tls())
        assert context is not None
        ours = trusting(stage)
        ours.minimum_version = ours.maximum_version = version
        assert shake_hands(context, ours) == version.name.replace("_", ".")


# --- certificates of clients -----------------------------------------------------------------------------------------


def test_the_subject_of_a_certificate_is_an_owner(mutual: LiveServer, stage: Stage) -> None:
    with client(mutual, trusting(stage, stage.alice)) as alice, client(mutual, trusting(stage, stage.bob)) as bob:
        task_id = alice.post("/v1/tasks", json=PROMPT).json()["task_id"]
        assert alice.get(f"/v1/tasks/{task_id}").json()["owner"].startswith("cert:")
        assert bob.get(f"/v1/tasks/{task_id}").status_code == 404
        assert alice.get("/v1/keys").status_code == 403
        assert alice.get("/v1/tasks", headers={"Authorization": "Bearer wrong"}).status_code == 401, (
            "a key that is sent counts"
        )


@pytest.mark.parametrize("who", ["nobody", "mallory"])
def test_without_a_certificate_of_the_authority_there_is_no_connection(
    mutual: LiveServer, stage: Stage, who: str
) -> None:
    shown = stage.mallory if who == "mallory" else None
    with client(mutual, trusting(stage, shown)) as http, pytest.raises(httpx.TransportError):
        http.get("/health")


def test_a_certificate_is_a_door_and_no_name_where_it_is_not_said_to_be(
    make_server: Callable[..., LiveServer], stage: Stage
) -> None:
    server = make_server(secrets=SECRETS, tls=stage.tls(client_ca_file=str(stage.ours.ca_file)))
    with client(server, trusting(stage, stage.alice)) as alice:
        answer = alice.get("/v1/tasks")
        assert (answer.status_code, code_of(answer.content)) == (401, "MISSING_TOKEN")


def test_subjects_are_told_apart_in_full() -> None:
    one = {"subject": ((("organizationName", "lab"),), (("commonName", "alice"),))}
    assert subject_of(one) == "organizationName=lab,commonName=alice"
    two = {"subject": ((("organizationName", "lab,commonName=alice"),),)}
    assert subject_of(two) != subject_of(one)
    assert subject_of({}) == subject_of(None) == ""


# --- files -----------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_the_files_is_told_by_name(stage: Stage, tmp_path: Path) -> None:
    rubbish, open_key = tmp_path / "rubbish.pem", tmp_path / "open.pem"
    rubbish.write_text("nothing")
    rubbish.chmod(0o600)
    open_key.write_bytes(Path(stage.key).read_bytes())
    open_key.chmod(0o644)
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"cert_file": "", "key_file": stage.key}, "tls.cert_file", "is missing"),
        ({"cert_file": "", "client_ca_file": stage.cert}, "tls.cert_file", "is missing"),
        ({"cert_file": "", "client_identity": True}, "tls.cert_file", "is missing"),
        ({"cert_file": stage.cert}, "tls.key_file", "is missing"),
        ({"cert_file": "/none.pem", "key_file": stage.key}, "tls.cert_file", "cannot be read"),
        ({"cert_file": stage.cert, "key_file": "/none.pem"}, "tls.key_file", "cannot be read"),
        ({"cert_file": stage.cert, "key_file": str(open_key)}, "tls.key_file", "can be read by others; chmod 600"),
        ({"cert_file": stage.cert, "key_file": stage.alice[1]}, "tls.cert_file", "is not the key of that certificate"),
        ({"cert_file": str(rubbish), "key_file": stage.key}, "tls.cert_file", "holds no usable PEM"),
        (
            {"cert_file": stage.cert, "key_file": stage.key, "client_ca_file": str(rubbish)},
            "tls.client_ca_file",
            "holds no certificate",
        ),
        (
            {"cert_file": stage.cert, "key_file": stage.key, "client_identity": True},
            "tls.client_ca_file",
            "whose certificates shall be identities",
        ),
    ]
    for given, field, told in cases:
        with pytest.raises(ConfigError) as caught:
            server_context(TlsSettings(**given))
        assert caught.value.field == field, given
        assert told in caught.value.message, given
    assert server_context(TlsSettings()) is None
