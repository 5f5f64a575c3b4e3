"""The keys that a start of the server brings along: one from its environment or a file, one for commands on this machine."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ConfigError
from ..core.settings import Settings

if TYPE_CHECKING:
    from ..api.auth import Secrets

VARIABLE = "LLORCH_API_TOKEN"
#: shorter ones can be guessed
LEAST_CHARACTERS = 16
_USABLE = re.compile(rf"[!-~]{{{LEAST_CHARACTERS},4096}}")


@dataclass(frozen=True, slots=True)
class Access:
    """Keys that stand in no journal; neither is ever printed or logged."""

    #: from the environment or a file; "" = there is none
    bootstrap: str = field(repr=False)
    #: new at each start, for commands on this machine, which read it from the server's file
    local: str = field(repr=False)

    def secrets(self) -> Secrets:
        """What requests are held against."""
        from ..api.auth import Secrets
        from ..core.services.keys import digest_of

        bootstrap = digest_of(self.bootstrap.encode()) if self.bootstrap else ""
        return Secrets(bootstrap=bootstrap, local=digest_of(self.local.encode()))


def access_of(settings: Settings, environ: Mapping[str, str]) -> Access:
    """The keys of a start.

    :raises ConfigError: the key of the environment or the file cannot be used, and why.
    """
    from ..core.services.keys import secret_from

    path = settings.auth.token_file
    token = environ.get(VARIABLE, "")
    if token and path:
        msg = f"auth.token_file: {VARIABLE} names a key as well"
        raise ConfigError(
            msg, field="auth.token_file", got=path, remedy=f"Set either of them, not both: unset {VARIABLE}."
        )
    if path:
        token = _read(Path(path))
    if token and not _USABLE.fullmatch(token):
        where = f"auth.token_file: the key in {path}" if path else f"{VARIABLE}: the key in it"
        msg = f"{where} has {len(token)} characters; it takes {LEAST_CHARACTERS} or more of ASCII, without spaces"
        raise ConfigError(
            msg, field="auth.token_file" if path else VARIABLE, got="***", remedy="Make one: openssl rand -hex 32."
        )
    return Access(token, secret_from(secrets.token_bytes))


def _read(path: Path) -> str:
    """The key in a file that its owner alone can read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
            mode = os.fstat(descriptor).st_mode
            token = file.read(8192).strip()
    except OSError as error:
        msg = f"auth.token_file: {path} cannot be read: {error.strerror or error}"
        raise ConfigError(
            msg, field="auth.token_file", got=str(path), remedy="Name a file that holds the key."
        ) from error
    if mode & 0o077:
        msg = f"auth.token_file: {path} can be read by others"
        raise ConfigError(msg, field="auth.token_file", got=f"{mode & 0o777:03o}", remedy=f"chmod 600 {path}")
    if not token:
        msg = f"auth.token_file: {path} is empty"
        raise ConfigError(msg, field="auth.token_file", got=str(path), remedy="Write a key of 16 characters or more.")
    return token


def auth_faults(settings: Settings) -> list[tuple[str, object, str]]:
    """What is wrong with the settings of who may call: key, what it got, why."""
    import ipaddress

    found: list[tuple[str, object, str]] = []
    oidc, proxy = settings.auth.oidc, settings.auth.proxy
    if oidc.issuer and not oidc.audience:
        found.append(("auth.oidc.audience", "", "is missing: without it tokens for other services would be accepted"))
    if not oidc.issuer and (oidc.audience or oidc.jwks_url):
        found.append(("auth.oidc.issuer", "", "is missing; the other keys of auth.oidc are of no use without it"))
    for name in ("issuer", "jwks_url"):
        url = getattr(oidc, name)
        if url and not re.match(r"https://[^\s/@]+|http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)", url):
            found.append((f"auth.oidc.{name}", url, f"got {url!r}, takes an https:// address"))
    if proxy.header and not proxy.peers:
        found.append(("auth.proxy.peers", "[]", "is missing: whose header is to be believed?"))
    if proxy.peers and not proxy.header:
        found.append(("auth.proxy.header", "", "is missing: in which header does the proxy say who asks?"))
    if proxy.header.lower() in {"authorization", "x-api-key", "host", "cookie", "x-forwarded-for", "forwarded"}:
        found.append(("auth.proxy.header", proxy.header, f"got {proxy.header!r}, which clients send themselves"))
    for peer in proxy.peers:
        try:
            ipaddress.ip_network(peer, strict=False)
        except ValueError:
            found.append(("auth.proxy.peers", peer, f"got {peer!r}, takes addresses or networks, such as 10.0.0.0/24"))
    return found
