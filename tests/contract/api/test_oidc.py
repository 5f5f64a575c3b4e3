"""Tokens of an identity provider: whose they are, and which are not accepted (AUTH-1, attack 47)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from llama_orch.api.oidc import OidcProvider, fetcher
from llama_orch.core.auth_settings import AuthSettings, OidcSettings
from llama_orch.core.errors import BadTokenError, UnavailableError

from .identity_provider import AUDIENCE, IdentityProvider, part
from .keyed_server import PROMPT, KeyedServer, code_of


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    started = IdentityProvider()
    yield started
    started.close()


def settings_of(provider: IdentityProvider, **more: Any) -> OidcSettings:
    scopes: Any = {"llm-admin": "admin"}
    return OidcSettings(issuer=provider.issuer, audience=AUDIENCE, scopes=scopes, **more)


@pytest.fixture(scope="module")
def server(provider: IdentityProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    auth = AuthSettings(oidc=settings_of(provider))
    started = KeyedServer(tmp_path_factory.mktemp("oidc"), auth=auth)
    yield started
    started.stop()


def test_a_token_says_whose_tasks_these_are(server: KeyedServer, provider: IdentityProvider) -> None:
    alice, bob = provider.token("alice"), provider.token("bob")
    task_id = server.task(alice)
    found = server.ask(alice, "GET", f"/v1/tasks/{task_id}?wait=10000")
    assert found.json()["owner"].startswith("oidc:")
    assert "alice" not in found.text
    assert server.ask(provider.token("alice", jti="another"), "GET", f"/v1/tasks/{task_id}").status_code == 200
    assert server.ask(bob, "GET", f"/v1/tasks/{task_id}").status_code == 404
    assert server.ask(None, "GET", "/v1/tasks", headers={"x-api-key": alice}).status_code == 200


def test_its_scopes_are_those_that_the_configuration_gives_its_words(
    server: KeyedServer, provider: IdentityProvider
) -> None:
    assert server.ask(provider.token(), "GET", "/v1/keys").status_code == 403
    assert server.ask(provider.token(scope="openid llm-admin"), "GET", "/v1/keys").status_code == 200
    assert server.ask(provider.token(scope=["llm-admin"]), "GET", "/v1/keys").status_code == 200
    assert server.ask(provider.token(scope="admin"), "GET", "/v1/keys").status_code == 403
    assert server.ask(provider.token(scope={"llm-admin": 1}), "GET", "/v1/keys").status_code == 403


def test_keys_go_on_beside_it(server: KeyedServer) -> None:
    assert server.ask(server.mine, "GET", "/v1/tasks").status_code == 200
    assert server.ask(None, "GET", "/v1/tasks").status_code == 401


def unsigned(provider: IdentityProvider) -> str:
    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}."


def signed_with_the_public_key(provider: IdentityProvider, shape: str) -> str:
    """The public key as the secret of a symmetric signature, for verifiers that take the algorithm from the token."""
    public = provider.keys["one"].public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    secret = public.public_bytes(getattr(serialization.Encoding, shape), form)
    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    said = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'one'})}.{part(claims)}"
    mac = hmac.new(secret, said.encode(), hashlib.sha256).digest()
    return f"{said}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def signed_by_another(provider: IdentityProvider) -> str:
    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    return jwt.encode(claims, rsa.generate_private_key(65537, 2048), algorithm="RS256", headers={"kid": "one"})


def bringing_its_own_key(provider: IdentityProvider) -> str:
    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    own = rsa.generate_private_key(65537, 2048)
    jwk = RSAAlgorithm.to_jwk(own.public_key(), as_dict=True)
    return jwt.encode(claims, own, algorithm="RS256", headers={"kid": "one", "jwk": jwk, "jku": "http://127.0.0.1:1/"})


def changed(provider: IdentityProvider) -> str:
    head, _, signature = provider.token().split(".")
    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    return f"{head}.{part(claims | {'sub': 'root', 'scope': 'llm-admin'})}.{signature}"


FORGED = {
    "unsigned": unsigned,
    "alg None": lambda p: unsigned(p).replace(part({"alg": "none", "typ": "JWT"}), part({"alg": "None"})),
    "public key as secret, PEM": lambda p: signed_with_the_public_key(p, "PEM"),
    "public key as secret, DER": lambda p: signed_with_the_public_key(p, "DER"),
    "signed by another": signed_by_another,
    "its own key in the header": bringing_its_own_key,
    "changed claims": changed,
    "without its signature": lambda p: p.token().rpartition(".")[0] + ".",
    "another issuer": lambda p: p.token(iss="https://id.example"),
    "no issuer": lambda p: p.token(iss=None),
    "another audience": lambda p: p.token(aud="another-service"),
    "no audience": lambda p: p.token(aud=None),
    "expired": lambda p: p.token(exp=int(time.time()) - 60),
    "no end": lambda p: p.token(exp=None),
    "not yet valid": lambda p: p.token(nbf=int(time.time()) + 600),
    "nobody's": lambda p: p.token(sub=None),
    "an empty name": lambda p: p.token(""),
    "a name that is no text": lambda p: p.token(sub=None, **{"sub ": 7}),
    "an algorithm that is not configured": lambda p: p.token(algorithm="RS512"),
    "an unknown key": lambda p: jwt.encode({"a": 1}, p.keys["one"], algorithm="RS256", headers={"kid": "two"}),
    "the symmetric key of the set": lambda p: jwt.encode({"a": 1}, "secret", algorithm="HS256", headers={"kid": "symmetric"}),
    "nonsense": lambda _p: "a.b.c",
    "an empty header": lambda _p: f"{part({})}.{part({})}.",
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_what_is_not_its_own_valid_token_is_401(server: KeyedServer, provider: IdentityProvider, kind: str) -> None:
    token = FORGED[kind](provider)
    answer = server.ask(token, "GET", "/v1/tasks")
    assert (answer.status_code, code_of(answer.content)) == (401, "BAD_TOKEN"), answer.text
    assert token not in answer.text


def test_clocks_may_differ_a_little(server: KeyedServer, provider: IdentityProvider) -> None:
    assert server.ask(provider.token(exp=int(time.time()) - 5), "GET", "/v1/tasks").status_code == 200


# --- the provider's keys, in a time of the tests' own ----------------------------------------------------------------


class Time:
    def __init__(self) -> None:
        self.ns = time.time_ns()

    def __call__(self) -> int:
        return self.ns

    def go_on(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


def verified(verifier: OidcProvider, token: str) -> str:
    return asyncio.run(verifier.verify(token.encode())).owner


def test_a_key_that_is_not_known_is_asked_for_but_not_all_the_time(provider: IdentityProvider) -> None:
    clock = Time()
    verifier = OidcProvider(settings_of(provider), fetcher(), clock)
    verified(verifier, provider.token())
    asked = provider.asked
    provider.add("second")
    clock.go_on(9)
    with pytest.raises(BadTokenError, match="no key of this name"):
        verified(verifier, provider.token(kid="second"))
    assert provider.asked == asked, "it was asked a moment ago"
    clock.go_on(2)
    assert verified(verifier, provider.token(kid="second"))
    assert provider.asked == asked + 1
    for _ in range(20):
        clock.go_on(0.4)
        with pytest.raises(BadTokenError):
            verified(verifier, jwt.encode({"a": 1}, provider.keys["one"], algorithm="RS256", headers={"kid": "none"}))
    assert provider.asked == asked + 1


def test_keys_of_elliptic_curves_and_a_url_of_ones_own(provider: IdentityProvider) -> None:
    provider.add("curve", "EC")
    verifier = OidcProvider(settings_of(provider, jwks_url=f"{provider.issuer}/certs"), fetcher(), Time())
    assert verified(verifier, provider.token(kid="curve", algorithm="ES256"))


def test_a_key_that_was_withdrawn_is_forgotten_in_time(provider: IdentityProvider) -> None:
    clock = Time()
    provider.add("leaving")
    verifier = OidcProvider(settings_of(provider), fetcher(), clock)
    token = provider.token(kid="leaving", exp=int(time.time()) + 100_000)
    assert verified(verifier, token)
    provider.published.remove("leaving")
    assert verifier.known(token.encode())
    clock.go_on(61)
    assert verifier.known(token.encode()) is None, "a verdict is believed for a minute"
    clock.go_on(600)
    with pytest.raises(BadTokenError):
        verified(verifier, token)


def test_a_provider_that_is_down_is_503_at_first_and_no_matter_later(provider: IdentityProvider) -> None:
    clock = Time()
    verifier = OidcProvider(settings_of(provider), fetcher(), clock)
    provider.broken = True
    try:
        with pytest.raises(UnavailableError) as caught:
            verified(verifier, provider.token())
        assert caught.value.status == 503
        provider.broken = False
        clock.go_on(11)
        assert verified(verifier, provider.token())
        provider.broken = True
        clock.go_on(700)
        assert verified(verifier, provider.token(jti="later", exp=int(time.time()) + 10_000)), "its keys are kept"
    finally:
        provider.broken = False


@pytest.mark.parametrize(
    "told", ['{"keys": null}', '{"keys": 3}', "{}", "[]", "[" * 20_000, '{"keys": ["x", {"kty": []}]}']
)
def test_a_provider_that_tells_no_keys_is_503(provider: IdentityProvider, told: str) -> None:
    verifier = OidcProvider(
        settings_of(provider, jwks_url="http://127.0.0.1/certs"), lambda _url: json.loads(told), Time()
    )
    with pytest.raises(UnavailableError):
        verified(verifier, provider.token())


def test_many_who_wait_ask_once(provider: IdentityProvider) -> None:
    verifier = OidcProvider(settings_of(provider), fetcher(), Time())
    asked = provider.asked

    async def all_at_once() -> list[Any]:
        tokens = [provider.token(f"user-{n}").encode() for n in range(20)]
        return await asyncio.gather(*(verifier.verify(token) for token in tokens))

    assert len({caller.owner for caller in asyncio.run(all_at_once())}) == 20
    assert provider.asked == asked + 1


@pytest.mark.parametrize("url", ["http://id.example/certs", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_nothing_is_fetched_unencrypted_from_elsewhere_or_from_files(url: str) -> None:
    with pytest.raises(ValueError, match="is not encrypted"):
        fetcher()(url)


def test_verified_tokens_cost_no_verification_again(server: KeyedServer, provider: IdentityProvider) -> None:
    token = provider.token("frequent")
    first = server.task(token)
    assert server.ask(token, "POST", "/v1/tasks", json=PROMPT).status_code == 202
    assert json.loads(server.ask(token, "GET", f"/v1/tasks/{first}").text)["owner"].startswith("oidc:")


def test_the_settings_know_no_symmetric_algorithm(tmp_path: Path) -> None:
    from llama_orch.cli.config import load
    from llama_orch.core.errors import ConfigError

    path = tmp_path / "c.yaml"
    for algorithm in ("HS256", "none", "RS1"):
        path.write_text(f"auth: {{oidc: {{issuer: 'https://id.example', audience: a, algorithms: [{algorithm}]}}}}\n")
        with pytest.raises(ConfigError, match="algorithms"):
            load(path, environ={})
