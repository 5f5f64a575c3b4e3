"""Encrypted connections: what the configured files make, checked before anything starts (AUTH-1)."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..core.auth_settings import TlsSettings
from ..core.errors import ConfigError


def server_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """How connections are encrypted; ``None`` = they are not.

    :raises ConfigError: a file is missing, cannot be read, is readable by others, or holds something else.
    """
    if not settings.cert_file:
        for name in ("key_file", "client_ca_file"):
            if getattr(settings, name):
                raise _wrong("cert_file", "", f"is missing; tls.{name} is of no use without it")
        if settings.client_identity:
            raise _wrong("cert_file", "", "is missing; tls.client_identity is of no use without it")
        return None
    if not settings.key_file:
        raise _wrong("key_file", "", "is missing: the private key of tls.cert_file")
    if settings.client_identity and not settings.client_ca_file:
        raise _wrong("client_ca_file", "", "is missing: whose certificates shall be identities (tls.client_identity)?")
    for name in ("cert_file", "key_file", "client_ca_file"):
        path = getattr(settings, name)
        if path:
            _require_readable(name, path)
    if Path(settings.key_file).stat().st_mode & 0o077:
        raise _wrong("key_file", settings.key_file, "can be read by others; chmod 600 it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.cert_file, settings.key_file, password=_no_password)
    except ssl.SSLError as error:
        what = "is not the key of that certificate" if error.reason == "KEY_VALUES_MISMATCH" else "holds no usable PEM"
        got = f"{settings.cert_file}, {settings.key_file}"
        raise _wrong("cert_file", got, f"with tls.key_file: one {what} ({error.reason or error})") from error
    except ValueError as error:
        raise _wrong("key_file", settings.key_file, "is protected by a passphrase; store it without one") from error
    if settings.client_ca_file:
        try:
            context.load_verify_locations(settings.client_ca_file)
        except ssl.SSLError as error:
            raise _wrong("client_ca_file", settings.client_ca_file, f"holds no certificate ({error.reason})") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def subject_of(certificate: dict[str, Any] | None) -> str:
    """The subject of a client's certificate as one text, another for each; "" without one."""
    if not certificate:
        return ""
    return ",".join(f"{name}={quote(value)}" for part in certificate.get("subject", ()) for name, value in part)


def _no_password() -> str:
    msg = "a passphrase is asked for"
    raise ValueError(msg)


def _require_readable(name: str, path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise _wrong(name, path, f"cannot be read: {error.strerror or error}") from error


def _wrong(name: str, got: str, message: str) -> ConfigError:
    return ConfigError(
        f"tls.{name}: {f'{got} ' if got else ''}{message}",
        field=f"tls.{name}",
        got=got,
        remedy="Name PEM files: tls.cert_file, tls.key_file and, for certificates of clients, tls.client_ca_file.",
    )
