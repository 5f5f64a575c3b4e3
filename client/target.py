"""Which server a client talks to, and with which key: arguments, then the environment, then the server of this machine."""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from .errors import LlamaOrchError, UnreachableError

#: what a server without keys accepts
NO_KEY = "local"
_FILE = "server.json"
_KEY = re.compile(r"[!-~]+").fullmatch


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server answers, and what it is told of the caller.

    :raises LlamaOrchError: the key can be none; what it is instead is not repeated.
    """

    url: str
    #: a key as it came from a file or a variable, whose line end is none of it
    token: str = field(repr=False)
    #: whom to trust for https; "" = the system's authorities
    ca_file: str = ""

    def __post_init__(self) -> None:
        key = self.token.strip() or NO_KEY
        if not _KEY(key):
            error = LlamaOrchError("the API key holds a space, a line end or another character that no key has")
            error.remedy = "Look at where it comes from, such as LLORCH_API_TOKEN: it has to be the key alone."
            raise error
        object.__setattr__(self, "token", key)


class Target:
    """The server as it is now: one that was found on this machine may have been started again elsewhere.

    :param find: looks for it again.
    """

    def __init__(self, server: Server, find: Callable[[], Server]) -> None:
        self._find = find
        self.server = server

    def look_again(self) -> bool:
        """Find it again, after it did not answer or knew the key no more; whether it is another one.

        While none is found the last one stays.
        """
        before = self.server
        try:
            self.server = self._find()
        except UnreachableError:
            return False
        return self.server != before


def target_of(url: str | None, token: str | None, environ: Mapping[str, str] | None = None) -> Target:
    """The server that is named, else the one of ``LLORCH_URL``, else the one that runs on this user's data directory.

    The key is the named one, else that of ``LLORCH_API_TOKEN``; the key in a server's own file goes to that server alone.
    For https ``LLORCH_CA_FILE`` names whom to trust, else the server's own file.

    :param environ: default: this process's.
    :raises LlamaOrchError: the address is none.
    :raises UnreachableError: none is named, and none runs here.
    """
    given = os.environ if environ is None else environ
    key = (token or given.get("LLORCH_API_TOKEN") or "").strip()
    named = checked(url or given.get("LLORCH_URL") or "") if url or given.get("LLORCH_URL") else ""
    folder = data_directory(given)

    def find() -> Server:
        try:
            found = _read(folder / _FILE)
        except UnreachableError:
            if not named:
                raise
            found = {}
        if named and found.get("url") != named:
            return Server(named, key or NO_KEY, given.get("LLORCH_CA_FILE") or "")
        ca_file = given.get("LLORCH_CA_FILE") or found.get("ca_file") or ""
        return Server(checked(found["url"]), key or found.get("token") or NO_KEY, ca_file)

    return Target(find(), find)


def data_directory(environ: Mapping[str, str]) -> Path:
    """Where this user's server keeps its data, and says where it answers."""
    if environ.get("LLORCH_DATA_DIR"):
        return Path(environ["LLORCH_DATA_DIR"])
    from platformdirs import user_data_path

    return user_data_path("llama-orch", appauthor=False)


def checked(url: str) -> str:
    """An address without its last slash. :raises LlamaOrchError: it is none."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        error = LlamaOrchError(f"{shown(url)!r} is no server address")
        error.remedy = "It looks like http://127.0.0.1:8080."
        raise error
    return url.rstrip("/")


def shown(url: str) -> str:
    """An address as errors repeat it: without a name and a password in it."""
    return re.sub(r"//[^/?#]*@", "//***@", url)


def trust(url: str, ca_file: str | Path | None, client_cert: tuple[str, str] | None) -> ssl.SSLContext:
    """How a TLS connection is checked: by the system's authorities, or those of ``ca_file`` alone.

    :param client_cert: files of the certificate and the key that the client shows.
    """
    if urlsplit(url).scheme != "https":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loads nothing, trusts nobody
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    if ca_file:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the server's own certificate may be what is trusted
    if client_cert is not None:
        context.load_cert_chain(*client_cert)
    return context


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, dict) and isinstance(found.get("url"), str):
            return found
    except (OSError, ValueError):
        pass
    raise UnreachableError(f"no server is named, and none runs on {path.parent}")
