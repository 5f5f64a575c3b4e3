"""The configuration of who may call, and over which kind of connection (AUTH-1); part of :mod:`~.settings`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Scopes = Annotated[list[Literal["inference", "read", "admin"]], Meta(min_length=1, max_length=3)]
#: algorithms with a public and a private half; what else a token may name is never tried
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip


def _default_scopes() -> list[Literal["inference", "read", "admin"]]:
    return ["inference", "read"]


class OidcSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens of an identity provider, as bearers (OpenID Connect); needs the extra ``oidc``."""

    #: who signs, exactly as its tokens say in ``iss``; "" = none is accepted
    issuer: str = ""
    #: whom its tokens are for, as they say in ``aud``
    audience: str = ""
    #: where its public keys are; "" = as ``ISSUER/.well-known/openid-configuration`` says
    jwks_url: str = ""
    #: certificate of who signed the provider's own; "" = the system's
    ca_file: str = ""
    #: signatures that are accepted
    algorithms: Annotated[list[Algorithm], Meta(min_length=1)] = field(default_factory=lambda: ["RS256", "ES256"])
    #: how far the clocks of provider and server may be apart
    leeway_ms: Annotated[int, Meta(ge=0, le=300_000)] = 30_000
    #: how long its keys are believed without asking again
    keys_ms: Annotated[int, Meta(ge=10_000, le=86_400_000)] = 600_000
    #: the claim that says who it is
    owner_claim: str = "sub"
    #: the claim that says what they may: a list, or words with spaces between
    scopes_claim: str = "scope"
    #: which of our scopes a word of that claim stands for
    scopes: dict[str, Literal["inference", "read", "admin"]] = field(default_factory=dict)
    #: what everybody may who has a valid token
    default_scopes: list[Literal["inference", "read", "admin"]] = field(default_factory=_default_scopes)


class ProxySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A proxy in front that knows who asks; it is believed only where both keys are set."""

    #: header in which it says who; it has to remove what clients send under that name
    header: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{0,64}$")] = ""
    #: addresses or networks that it connects from
    peers: list[str] = field(default_factory=list)
    #: what those may whom it names
    scopes: Scopes = field(default_factory=_default_scopes)


class TlsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Encrypted connections, TLS 1.2 or newer."""

    #: certificate with those that signed it, PEM; "" = no TLS
    cert_file: str = ""
    #: its private key, PEM, readable by its owner alone
    key_file: str = ""
    #: certificates of who may sign those of clients, PEM; "" = clients need none
    client_ca_file: str = ""
    #: the subject of a client's certificate is an identity, so that it needs no key
    client_identity: bool = False
    #: what those may who show a certificate
    client_scopes: Scopes = field(default_factory=_default_scopes)


class AuthSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may call (AUTH-1). Without any of it, and without keys, the server is open to this machine and to it alone."""

    #: file with a key that is accepted with all scopes, readable by its owner alone; ``LLORCH_API_TOKEN`` does the same
    token_file: str = ""
    #: make an admin key at the first start and print it, once: for containers
    first_key: bool = False
    oidc: OidcSettings = field(default_factory=OidcSettings)
    proxy: ProxySettings = field(default_factory=ProxySettings)
