"""Who sends a request: its key, a token of an identity provider, what a trusted proxy says, or a client's certificate (AUTH-1).

The order in which they are looked at: what a trusted proxy says, then the key, then the certificate. Nothing is
remembered from one request of a connection to the next.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from hmac import compare_digest
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import msgspec

from ..core.auth_settings import ProxySettings
from ..core.errors import BadTokenError, ForbiddenError, InvalidParamsError, MissingTokenError, RequestError
from ..core.services.caller import SCOPES, Caller
from ..core.services.keys import KeyService, digest_of, identity_of
from ..core.services.limits import Meter
from ..core.settings import Settings

Headers = Sequence[tuple[bytes, bytes]]

#: routes that need nobody to say who they are have this in place of scopes
PUBLIC = ("public",)
#: longest bearer that is looked at; tokens of identity providers have some thousand bytes
MOST_TOKEN_BYTES = 16_384
#: verdicts on addresses are remembered, up to so many
_REMEMBERED = 1024

_KEY_IN_QUERY = re.compile(
    rb"(?i)(?:^|[&;])(?:x-)?(?:api[_-]?key|key|token|access[_-]?token|auth[_-]?token|bearer|authorization|secret)(?:=|&|$)"
).search
_KEY_ANYWHERE = re.compile(rb"lo_[A-Za-z0-9_-]{43}").search
_JWT = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*").fullmatch

LOCAL = Caller(owner="local", identity="localhost")
NOBODY = Caller(owner="", identity="anonymous", scopes=())


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Digests of the keys that stand in no journal; "" = there is none."""

    #: of the key that the environment or a file brought
    bootstrap: str = ""
    #: of the key that this start wrote for commands on this machine
    local: str = ""


class Provider(Protocol):
    """Verifies tokens of an identity provider."""

    def known(self, token: bytes) -> Caller | None:
        """Whose token this is, if it was verified lately."""
        ...

    async def verify(self, token: bytes) -> Caller:
        """Whose token this is. :raises BadTokenError: it is not valid."""
        ...


def hashed_identity(kind: str, *parts: str) -> tuple[str, str]:
    """Owner and identity of somebody who is known elsewhere: names stay out of the logs."""
    digest = digest_of("\0".join(parts).encode("utf-8", "surrogatepass"))
    return f"{kind}:{digest[:32]}", f"{kind}:{digest[:6]}"


def refuse_key_in_url(raw_path: bytes, query: bytes) -> None:
    """:raises InvalidParamsError: there is a key in the URL, where logs and histories keep it."""
    if not query and b"lo_" not in raw_path and b"%" not in raw_path:
        return
    plain = unquote_to_bytes(query) if b"%" in query else query
    path = unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path
    if _KEY_IN_QUERY(plain) or _KEY_ANYWHERE(plain) or _KEY_ANYWHERE(path):
        msg = "there is a key in the URL: keys do not belong in URLs, where logs and histories keep them"
        raise InvalidParamsError(
            msg,
            field="url",
            got="***",
            remedy="Send it as Authorization: Bearer KEY or x-api-key: KEY; if it was a real one, rotate it.",
        )


def token_of(headers: Headers) -> bytes | None:
    """The key that a request brings.

    :raises InvalidParamsError: it brings several.
    :raises BadTokenError: it brings something else than a bearer.
    """
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            token = rest.strip()
            if scheme.lower() != b"bearer" or not token:
                msg = "the Authorization header does not hold a bearer"
                raise BadTokenError(msg, field="Authorization", remedy="Send Authorization: Bearer KEY.")
        elif name == b"x-api-key":
            token = value.strip()
            if not token:
                msg = "the x-api-key header is empty"
                raise BadTokenError(msg, field="x-api-key")
        else:
            continue
        if found is None:
            found = token
        elif found != token:
            msg = "the request brings two different keys"
            raise InvalidParamsError(
                msg, field="Authorization", got="***", remedy="Send one key, in Authorization or in x-api-key."
            )
    return found


class Authentication:
    """Tells callers from requests.

    :param secrets: digests of the keys that stand in no journal.
    :param provider: verifies tokens of the identity provider, where one is configured.
    :param public: paths that everybody may call.
    """

    def __init__(
        self,
        keys: KeyService,
        settings: Settings,
        *,
        secrets: Secrets,
        provider: Provider | None,
        public: frozenset[str],
    ) -> None:
        self._keys = keys
        self._secrets = secrets
        self._provider = provider
        self._public = public
        self._proxy = TrustedProxy(settings.auth.proxy) if settings.auth.proxy.header else None
        tls = settings.tls
        self._certificates = tuple(tls.client_scopes) if tls.client_identity else ()
        self._bootstrap = Caller(owner="bootstrap", identity=identity_of(secrets.bootstrap), scopes=SCOPES)

    @property
    def open(self) -> bool:
        """Whether everybody is taken for the machine's own user: nothing says who is who."""
        return not (self._secrets.bootstrap or self._provider or self._proxy or self._certificates or self._keys.any)

    def caller_of(self, scope: dict[str, Any]) -> Caller | None:
        """Who sends this request; ``None``: a token that only :meth:`verified` can tell.

        :raises RequestError: nobody that is known, and why.
        """
        refuse_key_in_url(scope.get("raw_path") or scope["path"].encode(), scope["query_string"])
        if scope["path"] in self._public:
            return self._visitor(scope)
        headers = scope["headers"]
        if self._proxy is not None:
            said = self._proxy.caller_of(headers, scope.get("client"))
            if said is not None:
                return said
        if self.open:
            return LOCAL
        token = token_of(headers)
        if token is None:
            certificate = scope.get("llama_orch.certificate")
            if certificate and self._certificates:
                owner, identity = hashed_identity("cert", certificate)
                return Caller(owner=owner, identity=identity, scopes=self._certificates)
            msg = "this server asks for a key, and the request brings none"
            raise MissingTokenError(msg, field="Authorization")
        if len(token) > MOST_TOKEN_BYTES:
            msg = "what the request brings is too long to be a key"
            raise BadTokenError(msg, field="Authorization")
        return self._holder_of(token, scope.get("client"))

    def _visitor(self, scope: dict[str, Any]) -> Caller:
        """Who calls what everybody may call: with a key that is good somebody who may be told more."""
        if self.open:
            return LOCAL
        try:
            token = token_of(scope["headers"])
            found = self._holder_of(token, scope.get("client")) if token is not None else None
        except RequestError:
            return NOBODY
        return found or NOBODY

    def _holder_of(self, token: bytes, client: Sequence[Any] | None) -> Caller | None:
        secrets, digest = self._secrets, digest_of(token)
        if secrets.local and compare_digest(secrets.local, digest):
            if client is None or not ipaddress.ip_address(client[0]).is_loopback:
                msg = "this key is for commands on the server's own machine"
                raise ForbiddenError(msg, field="Authorization", remedy="Make one: `llama-orch keys create`.")
            return LOCAL
        if secrets.bootstrap and compare_digest(secrets.bootstrap, digest):
            return self._bootstrap
        if self._provider is not None and _JWT(token):
            return self._provider.known(token)
        return self._keys.find(digest)

    async def verified(self, scope: dict[str, Any]) -> Caller:
        """Whose token of the identity provider a request brings. :raises BadTokenError: it is not valid, and why."""
        token = token_of(scope["headers"])
        assert self._provider is not None and token is not None, "caller_of found such a token"
        return await self._provider.verify(token)


class TrustedProxy:
    """Believes what a proxy says of who asks, if it comes from one of its addresses."""

    def __init__(self, settings: ProxySettings) -> None:
        self._header = settings.header.lower().encode()
        self._networks = [ipaddress.ip_network(peer, strict=False) for peer in settings.peers]
        self._scopes = tuple(settings.scopes)
        self._known: dict[str, bool] = {}

    def caller_of(self, headers: Headers, client: Sequence[Any] | None) -> Caller | None:
        """Whom the proxy names; ``None``: nobody, or it is no proxy that says it.

        :raises InvalidParamsError: it names several.
        """
        said = [value for name, value in headers if name == self._header]
        if not said or client is None or not self._trusts(client[0]):
            return None
        if len(said) > 1 or not said[0].strip():
            msg = "the proxy names nobody, or more than one"
            raise InvalidParamsError(
                msg, field=self._header.decode(), got=len(said), remedy="It has to name one caller."
            )
        owner, identity = hashed_identity("proxy", said[0].strip().decode("latin-1"))
        return Caller(owner=owner, identity=identity, scopes=self._scopes)

    def _trusts(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            ip = ipaddress.ip_address(address)
            mapped = getattr(ip, "ipv4_mapped", None)
            known = any((mapped or ip) in network for network in self._networks)
            if len(self._known) < _REMEMBERED:
                self._known[address] = known
        return known


def rate_headers(meters: Sequence[Meter]) -> list[tuple[bytes, bytes]]:
    """Where a caller stands with its limits, in the headers that OpenAI's clients know."""
    out: list[tuple[bytes, bytes]] = []
    for meter in meters:
        what = meter.what.encode()
        out += [
            (b"x-ratelimit-limit-" + what, b"%d" % meter.limit),
            (b"x-ratelimit-remaining-" + what, b"%d" % meter.remaining),
            (b"x-ratelimit-reset-" + what, _duration(meter.reset_ms)),
        ]
    return out


def _duration(ms: int) -> bytes:
    """A time as OpenAI writes it: ``6m0s``, ``1.5s``, ``20ms``."""
    if ms < 1000:
        return b"%dms" % ms
    minutes, rest = divmod(ms, 60_000)
    seconds = f"{rest / 1000:g}s"
    return (f"{minutes}m{seconds}" if minutes else seconds).encode()
