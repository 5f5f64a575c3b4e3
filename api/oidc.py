"""Tokens of an identity provider: signed JWTs, verified with the public keys that it publishes (AUTH-1).

Which signatures are accepted is configured and never taken from a token; all of them have a public and a private half. The
provider is asked for its keys off the event loop, when none are known, they are old, or a token names one that is not
among them, and then not more often than every ten seconds: nobody can make the server ask by sending nonsense.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import logging
import ssl
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ..core.auth_settings import OidcSettings
from ..core.errors import BadTokenError, ConfigError, UnavailableError
from ..core.services.caller import SCOPES, Caller
from .auth import hashed_identity

if TYPE_CHECKING:
    import jwt

_log = logging.getLogger("llama_orch.api")
_TIMEOUT_S: Final = 5.0
_MOST_BYTES: Final = 1_048_576
#: least time between two questions to the provider
_PAUSE_NS: Final = 10_000_000_000
#: verified tokens that are remembered
_MOST_TOKENS: Final = 4096
#: a verified token is looked at again after this time at the latest
_TRUST_NS: Final = 60_000_000_000
#: what comes of a provider that does not answer, or not with keys
_UNUSABLE: Final = (OSError, ValueError, KeyError, TypeError, RecursionError, http.client.HTTPException)

Fetch = Callable[[str], Mapping[str, Any]]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        """Nothing is asked instead."""


def fetcher(ca_file: str = "") -> Fetch:
    """Fetches JSON objects over HTTPS, and from this machine over HTTP; blocks. Follows no redirects.

    :param ca_file: certificates of who may sign the provider's; "" = the system's.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({}), _NoRedirects()
    )

    def fetch(url: str) -> Mapping[str, Any]:
        _require_safe(url)
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            found = json.loads(answer.read(_MOST_BYTES))
        if not isinstance(found, dict):
            msg = "it is no JSON object"
            raise ValueError(msg)
        return found

    return fetch


def _require_safe(url: str) -> None:
    parts = urlsplit(url)
    local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        msg = f"{url[:200]!r} is not encrypted"
        raise ValueError(msg)


class OidcProvider:
    """Verifies the tokens of one identity provider.

    :param fetch: fetches JSON; blocks.
    :param now_ns: Unix time, nanoseconds.
    :raises ConfigError: the library that verifies is not installed.
    """

    def __init__(self, settings: OidcSettings, fetch: Fetch, now_ns: Callable[[], int]) -> None:
        try:
            import jwt
        except ImportError as error:
            msg = "auth.oidc: tokens of an identity provider are verified by PyJWT, which is not installed"
            raise ConfigError(
                msg, field="auth.oidc", remedy="Install the extra: pip install 'llama-orch[oidc]'."
            ) from error
        self._jwt = jwt
        self._settings = settings
        self._fetch = fetch
        self._now_ns = now_ns
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_ns = 0
        self._asked_ns = 0
        self._asking: asyncio.Task[None] | None = None
        #: verified tokens by digest, with whose they are and until when that is believed; the oldest first
        self._verified: OrderedDict[bytes, tuple[Caller, int]] = OrderedDict()

    def known(self, token: bytes) -> Caller | None:
        """Whose token this is, if it was verified within the last minute."""
        found = self._verified.get(hashlib.sha256(token).digest())
        return found[0] if found is not None and self._now_ns() < found[1] else None

    async def verify(self, token: bytes) -> Caller:
        """Whose token this is.

        :raises BadTokenError: it is not valid, and why.
        :raises UnavailableError: the provider's keys could not be fetched.
        """
        text = token.decode("ascii")
        try:
            header = self._jwt.get_unverified_header(text)
        except self._jwt.PyJWTError as error:
            raise _bad("it cannot be read") from error
        if header.get("alg") not in self._settings.algorithms:
            raise _bad(f"its signature is none of {', '.join(self._settings.algorithms)}")
        key = await self._key(str(header.get("kid", "")))
        claims = self._claims(text, key)
        caller = self._caller(claims)
        until = min(self._now_ns() + _TRUST_NS, (int(claims["exp"]) * 1000 + self._settings.leeway_ms) * 1_000_000)
        self._verified[hashlib.sha256(token).digest()] = (caller, until)
        while len(self._verified) > _MOST_TOKENS:
            self._verified.popitem(last=False)
        return caller

    def _claims(self, text: str, key: jwt.PyJWK) -> dict[str, Any]:
        settings = self._settings
        try:
            claims: dict[str, Any] = self._jwt.decode(
                text,
                key.key,
                algorithms=list(settings.algorithms),
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_ms / 1000,
                options={"require": ["exp", "iss", "aud", settings.owner_claim]},
            )
        except self._jwt.ExpiredSignatureError as error:
            raise _bad("its time is over") from error
        except self._jwt.InvalidAudienceError as error:
            raise _bad("it is for somebody else (aud)") from error
        except self._jwt.InvalidIssuerError as error:
            raise _bad("it is from somebody else (iss)") from error
        except self._jwt.MissingRequiredClaimError as error:
            raise _bad(f"the claim {error.claim} is missing") from error
        except (self._jwt.PyJWTError, ValueError, TypeError) as error:
            raise _bad("its signature or its claims are not valid") from error
        return claims

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        settings = self._settings
        subject = claims[settings.owner_claim]
        if not isinstance(subject, str) or not subject:
            raise _bad(f"the claim {settings.owner_claim} names nobody")
        said = claims.get(settings.scopes_claim, "")
        words = (
            said.split()
            if isinstance(said, str)
            else [w for w in said if isinstance(w, str)]
            if isinstance(said, list)
            else []
        )
        granted = {*settings.default_scopes, *(settings.scopes[word] for word in words if word in settings.scopes)}
        owner, identity = hashed_identity("oidc", settings.issuer, subject)
        return Caller(owner=owner, identity=identity, scopes=tuple(scope for scope in SCOPES if scope in granted))

    # --- the provider's keys ---------------------------------------------------------------------------------

    async def _key(self, kid: str) -> jwt.PyJWK:
        now = self._now_ns()
        stale = now - self._fetched_ns > self._settings.keys_ms * 1_000_000
        found = self._keys.get(kid)
        if (found is None or stale) and (not self._asked_ns or now - self._asked_ns > _PAUSE_NS or self._asking):
            await self._refresh()
            found = self._keys.get(kid)
        if found is not None:
            return found
        if not self._keys:
            msg = "tokens cannot be verified now: the identity provider's keys could not be fetched"
            raise UnavailableError(msg, retry_after_ms=10_000, remedy="Try again; the server's log says why.")
        raise _bad("the identity provider has no key of this name (kid)")

    async def _refresh(self) -> None:
        """Ask the provider for its keys, once for all who wait; what it had is kept when it does not answer."""
        if self._asking is None:
            self._asked_ns = self._now_ns()
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        await asyncio.shield(self._asking)

    def _asked(self, _task: asyncio.Task[None]) -> None:
        self._asking = None

    async def _ask(self) -> None:
        try:
            self._keys = await asyncio.to_thread(self._fetch_keys)
            self._fetched_ns = self._now_ns()
        except (*_UNUSABLE, self._jwt.PyJWTError) as error:
            _log.warning("the keys of %s could not be fetched: %s", self._settings.issuer, error)

    def _fetch_keys(self) -> dict[str, jwt.PyJWK]:
        settings = self._settings
        url = settings.jwks_url
        if not url:
            described = self._fetch(settings.issuer.rstrip("/") + "/.well-known/openid-configuration")
            if described.get("issuer") != settings.issuer:
                msg = f"it describes itself as {str(described.get('issuer'))[:200]!r}"
                raise ValueError(msg)
            url = str(described["jwks_uri"])
        keys = {}
        for one in self._fetch(url)["keys"]:
            # Keys for other purposes, and of kinds that nobody knows, stand beside those that sign.
            if isinstance(one, dict) and one.get("kty") in ("RSA", "EC", "OKP") and one.get("use", "sig") == "sig":
                try:
                    keys[str(one.get("kid", ""))] = self._jwt.PyJWK(one)
                except self._jwt.PyJWTError:
                    continue
        return keys


def _bad(why: str) -> BadTokenError:
    return BadTokenError(f"the token is not accepted: {why}", field="Authorization", remedy="Get a new token.")
